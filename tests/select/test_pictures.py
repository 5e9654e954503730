from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capfilt.config import resolve
from capfilt.cut import CutConfig
from capfilt.errors import ConfigError
from capfilt.run.job import Where, run
from capfilt.run.verify import verify
from capfilt.select.select import forecast, select
from tests.run.conftest import ledger_rows
from tests.select.conftest import Runs


def photo(seed: int, side: int = 200, quality: int = 90) -> bytes:
    """As full of detail as a photograph is; of a seed in any size the same."""
    patches = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((200, 200), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.resize((side, side)).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def scaled(seed: int) -> bytes:
    return photo(seed, side=120, quality=60)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def crowd(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run over pictures 0 to 9, then two copies and three smaller ones of them."""
    folder = tmp_path_factory.mktemp("crowd")
    (folder / "web").mkdir()
    pictures = [photo(n) for n in range(10)]
    for shard, images in enumerate((pictures, [pictures[1], scaled(2), pictures[3]])):
        with tarfile.open(folder / f"web/{shard}.tar", "w") as tar:
            for place, image in enumerate([*images, scaled(4 + shard)]):
                add(tar, f"{shard}{place:02d}.jpg", image)
                add(tar, f"{shard}{place:02d}.txt", b"a text")
    config = resolve(
        options={**runs.models, "filter": "none"},
    )
    run(config, Where(input=str(folder / "web"), output=str(folder / "run"), local=True))
    return str(folder / "run")


def dropped(output: str | Path) -> dict[str, str]:
    """Reason by key, and all texts of an image share it."""
    found = {row["key"]: row["reason"] for row in ledger_rows(output) if row["reason"]}
    counts = Counter(row["key"] for row in ledger_rows(output) if row["reason"])
    assert set(counts.values()) <= {2}
    return found


def test_exact_duplicates_leave_the_first(crowd: str, tmp_path: Path) -> None:
    select(crowd, str(tmp_path / "cut"), CutConfig(dedupe_images="exact"))
    assert dropped(tmp_path / "cut") == {"100": "duplicate_image", "102": "duplicate_image"}
    assert verify(str(tmp_path / "cut")).problems == ()
    counts = json.loads((tmp_path / "cut/commits/1.json").read_text())["counts"]
    assert counts["dropped_texts"] == {"duplicate_image": 4}


def test_perceptual_duplicates_leave_the_first(crowd: str, tmp_path: Path) -> None:
    select(crowd, str(tmp_path / "cut"), CutConfig(dedupe_images="perceptual"))
    same, near = "duplicate_image", "near_duplicate_image"
    expected = {"010": near, "100": same, "101": near, "102": same, "103": near}
    assert dropped(tmp_path / "cut") == expected


def test_evaluation_images_are_dropped_in_whatever_size(crowd: str, tmp_path: Path) -> None:
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/1.jpg").write_bytes(photo(1))
    (tmp_path / "benchmark/5.jpg").write_bytes(photo(5, side=350))
    config = CutConfig(exclude=(str(tmp_path / "benchmark"),), dedupe_images="exact")
    select(crowd, str(tmp_path / "cut"), config)
    found = dropped(tmp_path / "cut")
    assert {key for key, reason in found.items() if reason == "evaluation_image"} == {
        "001",
        "005",
        "100",
        "103",
    }
    assert found["102"] == "duplicate_image"
    assert len(found) == 5


def test_images_are_needed(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="this OUTPUT has none"):
        forecast(runs["texts"], CutConfig(dedupe_images="exact"))
