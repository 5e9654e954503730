from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
import torch

from capfilt.config import ImageConfig
from capfilt.data.batch import Batch
from capfilt.data.config import AugmentConfig, DatasetConfig
from capfilt.data.example import stable_id
from capfilt.data.loader import Loader
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.models.images import PixelSpec, decode, fit
from capfilt.models.vocabulary import Vocabulary
from capfilt.record import Source
from tests.data.conftest import (
    SIZE,
    annotated,
    jpeg,
    many,
    open_loader,
    write_captions,
    write_output,
    write_raw,
)

PLAIN = AugmentConfig(enabled=False)


@pytest.fixture
def output(tmp_path: Path) -> DatasetConfig:
    """60 images in four shards, each with a web and a synthetic text."""
    shards = [many(start, 15) for start in (0, 100, 200, 300)]
    return DatasetConfig(write_output(str(tmp_path / "out"), shards))


def first(loader: Loader, count: int, start: int = 0) -> list[Batch]:
    try:
        return list(islice(loader.batches(start), count))
    finally:
        loader.close()


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys == other.keys
        assert one.texts == other.texts
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.image_ids, other.image_ids)
        assert torch.equal(one.text_ids, other.text_ids)


def keys_of(batches: list[Batch]) -> Counter[str]:
    return Counter(key for batch in batches for key in batch.keys)


def test_an_epoch_shows_every_image_once_over_ranks(
    vocabulary: Vocabulary, output: DatasetConfig
) -> None:
    batches = []
    for rank in range(3):
        loader = open_loader(vocabulary, output, rank=rank, world=3, batch_size=5, workers=2)
        assert loader.steps_per_epoch == 4
        batches += first(loader, 8)
    assert set(keys_of(batches).values()) == {2}
    assert len(keys_of(batches)) == 60


def test_a_batch_is_what_it_says(vocabulary: Vocabulary, output: DatasetConfig) -> None:
    loader = open_loader(vocabulary, output, batch_size=60, augment=PLAIN)
    [batch] = first(loader, 1)
    assert batch.images.dtype == torch.uint8
    assert len(batch) == 60
    for i, key in enumerate(batch.keys):
        number = int(key.rpartition("/")[2])
        assert key == f"out/{number // 100:05d}/{number:06d}"
        assert batch.image_ids[i] == stable_id(key)
        expected = fit(decode(jpeg(number), ImageConfig()), PixelSpec(SIZE))
        assert torch.equal(batch.images[i], expected)
        texts = [f"{source} text of {number}" for source in ("web", "synthetic")]
        ids = [tokens[1:] for tokens in vocabulary.encode(texts, max_tokens=30)]
        nth = ids.index(batch.texts[i])
        assert batch.texts[i][-1] == vocabulary.end
        assert batch.text_ids[i] == stable_id(texts[nth])
    assert batch.image_ids.unique().numel() == 60


def test_one_text_is_drawn_anew_in_each_epoch(
    vocabulary: Vocabulary, output: DatasetConfig
) -> None:
    batches = first(open_loader(vocabulary, output, batch_size=60), 6)
    drawn = [dict(zip(batch.keys, batch.text_ids.tolist(), strict=True)) for batch in batches]
    kinds = Counter(len({epoch[key] for epoch in drawn}) for key in drawn[0])
    assert kinds[2] > 50  # of 60; both texts in six epochs with probability 0.97
    assert not torch.equal(*(batch.images[batch.image_ids.argsort()] for batch in batches[:2]))


def test_pairs_are_examples_of_their_own(vocabulary: Vocabulary, output: DatasetConfig) -> None:
    pairs = DatasetConfig(output.path, texts="pairs")
    loader = open_loader(vocabulary, pairs, batch_size=8)
    assert loader.examples == {"out": 120}
    batches = first(loader, 15)
    seen = Counter(
        pair
        for b in batches
        for pair in zip(b.image_ids.tolist(), b.text_ids.tolist(), strict=True)
    )
    assert len(seen) == 120
    assert set(seen.values()) == {1}


def test_only_texts_of_the_sources_asked_for_are_seen(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    both, web = (Source.WEB, Source.SYNTHETIC), (Source.WEB,)
    samples = [annotated(n, (web, both, (Source.SYNTHETIC,), ())[n % 4]) for n in range(40)]
    place = write_output(str(tmp_path / "out"), [samples[:16], samples[16:]])
    for texts in ("one", "pairs"):
        dataset = DatasetConfig(place, texts=texts, sources=("synthetic",))  # type: ignore[arg-type]
        loader = open_loader(vocabulary, dataset, batch_size=4)
        assert loader.examples == {"out": 20}
        batches = first(loader, 5)
        assert {int(key[-6:]) % 4 for key in keys_of(batches)} == {1, 2}
        wanted = {stable_id(f"synthetic text of {n}") for n in range(40)}
        assert {i for b in batches for i in b.text_ids.tolist()} <= wanted


@pytest.mark.parametrize("texts", ["one", "pairs"])
def test_a_resume_goes_on_byte_for_byte_with_other_workers(
    vocabulary: Vocabulary, output: DatasetConfig, texts: str
) -> None:
    dataset = DatasetConfig(output.path, texts=texts, weight=0.7)  # type: ignore[arg-type]
    whole = first(open_loader(vocabulary, dataset, batch_size=4, rank=1, world=2), 30)
    for start, workers in ((0, 3), (1, 1), (7, 2), (19, 4)):
        loader = open_loader(vocabulary, dataset, batch_size=4, rank=1, world=2, workers=workers)
        assert_same(first(loader, 30 - start, start), whole[start:])


def test_parquet_gives_what_tar_gives(vocabulary: Vocabulary, tmp_path: Path) -> None:
    shards = [many(0, 150), many(200, 100)]
    for texts in ("one", "pairs"):
        found = []
        for form in ("webdataset", "parquet"):
            place = write_output(str(tmp_path / f"{texts}-{form}" / "out"), shards, form=form)  # type: ignore[arg-type]
            loader = open_loader(vocabulary, DatasetConfig(place, texts=texts), batch_size=50)  # type: ignore[arg-type]
            batches = first(loader, round(loader.steps_per_epoch))
            rows = [
                (key, ids, image.sum().item())
                for b in batches
                for key, ids, image in zip(b.keys, b.texts, b.images, strict=True)
            ]
            found.append(sorted(rows))
        assert found[0] == found[1]


def test_raw_shards_with_and_without_stats(vocabulary: Vocabulary, tmp_path: Path) -> None:
    write_raw(tmp_path / "counted/00000.tar", 30, stats=True)
    write_raw(tmp_path / "looked-at/00000.tar", 30, stats=False)
    for name in ("counted", "looked-at"):
        loader = open_loader(vocabulary, DatasetConfig(str(tmp_path / name)), batch_size=10)
        batches = first(loader, 3)
        assert len(keys_of(batches)) == 30
        wanted = {stable_id(f"a web text, {n}") for n in range(30)}
        assert {i for b in batches for i in b.text_ids.tolist()} <= wanted | {
            stable_id(f"a web text, {n} ") for n in range(30)
        }


def test_human_captions_and_web_shards_by_weight(
    vocabulary: Vocabulary, tmp_path: Path, output: DatasetConfig
) -> None:
    human = DatasetConfig(
        str(write_captions(tmp_path, 20)), images=str(tmp_path / "images"), texts="pairs"
    )
    fifth = DatasetConfig(output.path, weight=0.2)
    loader = open_loader(vocabulary, human, fifth, batch_size=8, workers=2)
    assert loader.examples == {"human": 100, "out": 60}
    assert loader.steps_per_epoch == 112 / 8
    seen = keys_of(first(loader, 5 * 14))
    by_set = {
        name: [n for key, n in seen.items() if key.startswith(name)] for name in ("human", "out")
    }
    assert by_set == {"human": [25] * 20, "out": [1] * 60}


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_shards_elsewhere(
    kind: str, vocabulary: Vocabulary, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = f"memory://{tmp_path.name}" if kind == "memory" else request.getfixturevalue("s3")
    found = []
    for place in (files.join(root, "out"), str(tmp_path / "out")):
        for form in ("webdataset", "parquet"):
            write_output(f"{place}-{form}/out", [many(0, 20), many(50, 20)], form=form)  # type: ignore[arg-type]
        datasets = [
            DatasetConfig(f"{place}-{f}/out", texts="pairs") for f in ("webdataset", "parquet")
        ]
        found.append(first(open_loader(vocabulary, *datasets, batch_size=10, workers=2), 20))
    assert_same(*found)


def test_broken_images_are_replaced_alike_after_a_resume(
    vocabulary: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [
        annotated(
            n, (Source.WEB,), b"<html>" if n % 5 == 0 else b"\xff\xd8\xff" if n == 3 else None
        )
        for n in range(100)
    ]
    dataset = DatasetConfig(write_output(str(tmp_path / "out"), [samples[:50], samples[50:]]))
    loader = open_loader(vocabulary, dataset, batch_size=10)
    with caplog.at_level(logging.WARNING, "capfilt"):
        whole = first(loader, 10)
    assert loader.left_out == {"image_not_an_image": 20, "image_corrupt": 1}
    assert re.search(r"out/0000./0000.[05] is left out \(image_not_an_image\)", caplog.text)
    assert "10 examples were left out so far" in caplog.text
    assert len(caplog.records) == 6
    seen = keys_of(whole)
    assert len(seen) == 79  # every image that can be decoded
    assert seen.total() == 100
    assert max(seen.values()) <= 4
    assert_same(first(open_loader(vocabulary, dataset, batch_size=10, workers=2), 6, 4), whole[4:])


def test_a_dataset_of_broken_images_is_an_error(vocabulary: Vocabulary, tmp_path: Path) -> None:
    samples = [annotated(n, (Source.WEB,), b"no image") for n in range(20)]
    dataset = DatasetConfig(write_output(str(tmp_path / "out"), [samples]))
    with pytest.raises(
        InputError, match=r"out/00000/0000\d\d: cannot be used \(image_not_an_image"
    ):
        first(open_loader(vocabulary, dataset, batch_size=4), 1)


def test_a_shard_that_lost_its_end_is_one_line(
    vocabulary: Vocabulary, output: DatasetConfig
) -> None:
    loader = open_loader(vocabulary, output, batch_size=15)
    shard = Path(output.path, "data/00002.tar")
    shard.write_bytes(shard.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"^[^\n]*00002.tar: a truncated tar[^\n]*$"):
        first(loader, 8)


def workers_of_this_process() -> list[int]:
    """Process ids of the loader's workers."""
    return [
        int(pid)
        for file in Path("/proc/self/task").glob("*/children")
        for pid in file.read_text().split()
        if b"multiprocessing" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_a_killed_worker_is_one_line(
    vocabulary: Vocabulary, output: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # seconds
    others = workers_of_this_process()
    loader = open_loader(vocabulary, output, workers=2)
    batches: Iterator[Batch] = loader.batches()
    next(batches)
    worker, _ = (pid for pid in workers_of_this_process() if pid not in others)
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.5)  # a step that goes on: the next batch is where one hears of it
    with pytest.raises(InputError, match=r"^a data worker died [^\n]* lower data.workers \(2\)$"):
        list(islice(batches, 50))
    loader.close()


def test_close_ends_a_worker_that_hangs(
    vocabulary: Vocabulary, output: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # seconds
    others = workers_of_this_process()
    loader = open_loader(vocabulary, output)
    next(loader.batches())
    [worker] = (pid for pid in workers_of_this_process() if pid not in others)
    os.kill(worker, signal.SIGSTOP)
    loader.close()
    try:
        until = time.monotonic() + 120
        while worker in workers_of_this_process():  # a dead one goes when its parent asks for it
            multiprocessing.active_children()
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_close_ends_the_batches(vocabulary: Vocabulary, output: DatasetConfig) -> None:
    loader = open_loader(vocabulary, output)
    batches = loader.batches()
    next(batches)
    loader.close()
    assert list(batches) == []
    loader.close()


def test_fingerprint_is_of_what_decides_a_batch(
    vocabulary: Vocabulary, output: DatasetConfig
) -> None:
    def of(dataset: DatasetConfig = output, **options: int) -> str:
        return open_loader(vocabulary, dataset, **options).fingerprint  # type: ignore[arg-type]

    assert of() == of(workers=4) == of(rank=1, world=1)
    others = [of(seed=1), of(world=2), of(batch_size=8), of(DatasetConfig(output.path, weight=0.5))]
    assert len({of(), *others}) == 5


def test_a_batch_moves_its_tensors(vocabulary: Vocabulary, output: DatasetConfig) -> None:
    [batch] = first(open_loader(vocabulary, output), 1)
    moved = batch.to("meta")
    assert moved.images.device.type == moved.image_ids.device.type == "meta"
    assert moved.texts is batch.texts
