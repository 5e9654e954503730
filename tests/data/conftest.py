"""Small datasets of every kind that training reads."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from capfilt.config import OutputConfig
from capfilt.data.config import AugmentConfig, DataConfig, DatasetConfig
from capfilt.data.loader import Loader
from capfilt.io import commits, files, outputs, publish
from capfilt.io.commits import Commit, InputRecord, OutputRecord
from capfilt.io.ledger import LedgerWriter
from capfilt.io.writer import open_writer
from capfilt.models.vocabulary import Vocabulary
from capfilt.record import Annotated, Reason, Sample, Score, Source, Text, Verdict
from capfilt.tally import Tally
from tests import checkpoints
from tests.io.conftest import s3, s3_server  # noqa: F401  fixtures

SIZE = 16  # pixels
Format = Literal["webdataset", "parquet"]


def jpeg(seed: int, side: int = 24) -> bytes:
    """A JPEG of patches, another for each seed."""
    patches = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((side + 8, side), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def annotated(number: int, sources: Sequence[Source], image: bytes | None = None) -> Annotated:
    """A sample that kept a text of each of some sources, the others dropped."""
    texts = tuple(
        Text(source, 0, f"{source} text of {number}", Score(0.7), verdict, reason)
        for source in (Source.WEB, Source.SYNTHETIC)
        for verdict, reason in [
            (Verdict.KEPT, None)
            if source in sources
            else (Verdict.DROPPED, Reason.BELOW_MIN_MATCH_PROB)
        ]
    )
    kept = tuple(text for text in texts if text.verdict is Verdict.KEPT)
    raw = jpeg(number) if image is None else image
    sample = Sample(f"{number:06d}", raw, "jpg", texts[:1], {"url": f"http://x.invalid/{number}"})
    return Annotated(sample, texts, kept, Verdict.KEPT if kept else Verdict.DROPPED)


def write_output(
    place: str, shards: Sequence[Sequence[Annotated]], *, form: Format = "webdataset", **config: Any
) -> str:
    """Write shards as `capfilt run` does: data, ledger, commit."""
    output = OutputConfig(form, **config)
    for index, samples in enumerate(shards):
        name = f"{index:05d}"
        tally = Tally()
        with (
            publish_to(place, outputs.data_path(name, output)) as data,
            open_writer(data, output) as writer,
        ):
            for one in samples:
                tally.add(one)
                if one.verdict is Verdict.KEPT:
                    writer.write(one)
        with (
            publish_to(place, outputs.ledger_path(name)) as ledger,
            LedgerWriter(ledger, metadata={}) as rows,
        ):
            for one in samples:
                rows.write(one)
        path = outputs.data_path(name, output)
        size, sha256 = files.digest(files.join(place, path))
        record = InputRecord("in", "tar", 0, "")
        files_of = {path: OutputRecord(size, sha256)}
        commits.write_commit(place, Commit(name, record, "f", {}, tally.to_dict(), files_of))
    return place


@contextmanager
def publish_to(place: str, path: str) -> Iterator[Path]:
    """A local file that is put at a path of an output at the end."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file")
        yield file
        publish.write_bytes(files.join(place, path), file.read_bytes())


def many(start: int, count: int, sources: Sequence[Source] = tuple(Source)) -> list[Annotated]:
    """Samples that all keep the same kinds of text."""
    return [annotated(number, sources) for number in range(start, start + count)]


def write_raw(path: Path, count: int, *, stats: bool, texts: bool = True) -> Path:
    """Write a shard as img2dataset's `webdataset` form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            members = {
                "jpg": jpeg(number),
                "json": json.dumps({"key": f"{number:09d}"}).encode(),
                "txt": f"A web text, {number}!".encode() if texts else b"",
            }
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    if stats:
        path.with_name(f"{path.stem}_stats.json").write_text(json.dumps({"successes": count}))
    return path


def write_captions(folder: Path, count: int, captions: int = 5) -> Path:
    """Write a captions file of BLIP's form beside a folder `images`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pairs = []
    for number in range(count):
        (folder / "images" / f"{number}.jpg").write_bytes(jpeg(number))
        texts = [f"caption {i} of {number}" for i in range(captions)]
        pairs.append({"image": f"{number}.jpg", "caption": texts})
    path = folder / "human.json"
    path.write_text(json.dumps(pairs))
    return path


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    tokenizer = checkpoints.tokenizer()
    start, end = tokenizer.bos_token_id, tokenizer.sep_token_id
    return Vocabulary(tokenizer, start=start, end=end, size=len(tokenizer))


def open_loader(
    vocabulary: Vocabulary,
    *datasets: DatasetConfig,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 4,
    seed: int = 0,
    workers: int = 1,
    augment: AugmentConfig | None = None,
) -> Loader:
    """A loader of small images."""
    config = DataConfig(
        datasets=datasets,
        image_size=SIZE,
        augment=augment or AugmentConfig(),
        workers=workers,
    )
    return Loader(
        config, rank=rank, world=world, batch_size=batch_size, vocabulary=vocabulary, seed=seed
    )
