"""A small web: img2dataset-like shards of pictures, and the models to run over them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capfilt.config import RunConfig, resolve
from capfilt.run.job import run
from capfilt.run.summary import Summary
from capfilt.run.where import Where
from tests import checkpoints

TEXTS = [
    "A dog on the grass",
    "buy now free shipping",
    "IMG_0001.JPG",
    "two red birds in a tree (2019)",
    "",
    "a woman with a bike",
]


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoints.make_captioner(tmp_path_factory.mktemp("captioner")))


@pytest.fixture(scope="session")
def filter_(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoints.make_filter(tmp_path_factory.mktemp("filter")))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoints.make_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def config(captioner: str, filter_: str) -> RunConfig:
    return resolve(
        options={"captioner": captioner, "filter": filter_}, overrides=["compute.batch_size=5"]
    )


def picture(seed: int, side: int = 40) -> bytes:
    """A JPEG of coloured patches, another for each seed."""
    patches = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((side + 8, side), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def write_shard(folder: Path, index: int, count: int, *, finished: bool = True) -> None:
    """Write an img2dataset `webdataset` shard of `count` samples."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{index:05d}.tar", "w") as tar:
        for i in range(count):
            number = index * 100 + i
            key = f"{number:09d}"
            text = TEXTS[number % len(TEXTS)]
            fields = {
                "caption": text,
                "url": f"http://host.invalid/{key}",
                "key": key,
                "error_message": None,
                "similarity": i / 8,
            }
            for ending, content in (
                ("jpg", picture(number)),
                ("json", json.dumps(fields).encode()),
                ("txt", text.encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    if finished:
        stats = {"count": count, "successes": count, "failed_to_download": 0}
        (folder / f"{index:05d}_stats.json").write_text(json.dumps(stats))


@pytest.fixture
def web(tmp_path: Path) -> str:
    """Four shards of 12 samples each."""
    for index in range(4):
        write_shard(tmp_path / "web", index, 12)
    return str(tmp_path / "web")


def hashes(output: str | Path) -> dict[str, str]:
    """sha256 of every data and ledger file, by path."""
    root = Path(output)
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in ("data", "ledger")
        for file in sorted((root / folder).rglob("*"))
        if file.is_file()
    }


def local(config: RunConfig, web: str, output: Path, **options: Any) -> Summary:
    """A run in this process."""
    return run(config, Where(web, str(output), local=True, **options))


def commits(output: str | Path) -> dict[str, dict[str, Any]]:
    """Every commit less what may differ between two runs of the same: seconds and worker."""
    found = {}
    for file in sorted(Path(output, "commits").rglob("*.json")):
        commit = json.loads(file.read_text())
        del commit["telemetry"]
        found[file.stem] = commit
    return found


def ledger_rows(output: str | Path) -> list[dict[str, Any]]:
    """Every row of every ledger."""
    import pyarrow.dataset

    return list(pyarrow.dataset.dataset(Path(output, "ledger")).to_table().to_pylist())


def tar_samples(path: Path) -> Iterator[dict[str, bytes]]:
    """A data shard's samples as extension -> bytes, with `__key__`."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            samples.setdefault(key, {"__key__": key.encode()})[ending] = content.read()
    yield from samples.values()
