from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from capfilt.data.batch import Batch
from capfilt.errors import CommitError, InputError
from capfilt.train import features
from capfilt.train.features import FeatureCache, Features, open_cache
from tests.train.room import files_up_to
from tests.train.small import make_batch, rows
from tests.train.small_blip2 import make_vit

LIMIT = 10_000  # bytes; the features of five images take more


class Counted:
    """A frozen encoder that counts its images."""

    def __init__(self, cache: FeatureCache) -> None:
        self.vit = make_vit()
        self.cache = cache
        self.images = 0

    def of(self, batch: Batch) -> Tensor:
        return self.cache.of(batch, self._encode)

    def _encode(self, images: Tensor) -> Tensor:
        self.images += len(images)
        with torch.no_grad():
            return self.vit.features(images)


def expected(batch: Batch) -> Tensor:
    with torch.no_grad():
        return make_vit().features(batch.images)


def test_an_image_is_encoded_once_also_by_a_later_process(tmp_path: Path) -> None:
    batch = make_batch(6)
    first = Counted(FeatureCache(tmp_path))
    for wanted in (slice(0, 4), slice(2, 6), slice(0, 6)):
        some = rows(batch, wanted)
        torch.testing.assert_close(first.of(some), expected(some), atol=1e-6, rtol=0)
    assert first.images == 6
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # the last batch had nothing new
    second = Counted(FeatureCache(tmp_path))
    assert torch.equal(second.of(rows(batch, slice(1, 5))), first.of(rows(batch, slice(1, 5))))
    assert second.images == 0


def test_one_image_twice_in_a_batch_has_one_place(tmp_path: Path) -> None:
    batch = make_batch(4)
    same = rows(batch, slice(0, 1)).images
    batch = replace(batch, image_ids=torch.tensor([7, 7, 8, 9]))
    batch.images[1] = same[0]
    cache = FeatureCache(tmp_path)
    torch.testing.assert_close(Counted(cache).of(batch), expected(batch), atol=1e-6, rtol=0)
    again = Counted(cache)
    again.of(batch)
    assert again.images == 0


def test_shards_of_other_processes_are_found(tmp_path: Path) -> None:
    mine, theirs = Counted(FeatureCache(tmp_path)), Counted(FeatureCache(tmp_path))
    batch = make_batch(4)
    mine.of(rows(batch, slice(0, 1)))
    for _ in range(2):
        theirs.of(batch)
    mine.of(batch)
    assert (mine.images, theirs.images) == (1, 4)


def test_full_shards_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(6)
    size = expected(rows(batch, slice(0, 1))).nbytes
    monkeypatch.setattr(features, "_SHARD_BYTES", 2 * size)
    made = Counted(FeatureCache(tmp_path))
    found = torch.cat([made.of(rows(batch, slice(i, i + 1))) for i in range(6)])
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    torch.testing.assert_close(found, expected(batch), atol=1e-6, rtol=0)


def test_cache_is_of_the_encoders_weights_and_of_what_it_sees(tmp_path: Path) -> None:
    def folder(seed: int = 0, *what: object, dtype: torch.dtype = torch.float32) -> Path:
        return open_cache(tmp_path, make_vit(seed).to(dtype), *what)._folder

    assert folder() == folder()
    assert len({folder(), folder(1), folder(0, 224), folder(dtype=torch.bfloat16)}) == 4
    learned = make_vit()
    torch.nn.init.ones_(learned.norm.bias)  # it learns, and comes after the features
    assert open_cache(tmp_path, learned)._folder == folder()


def test_features_with_a_cache_are_those_without(tmp_path: Path) -> None:
    batch = make_batch(5)
    plain, kept = Features(make_vit().bfloat16()), Features(make_vit().bfloat16())
    kept.keep(tmp_path)
    wanted = plain.of(batch)
    assert wanted.dtype == torch.bfloat16
    for _ in range(3):
        assert torch.equal(kept.of(batch), wanted)
    assert not kept.of(batch).requires_grad


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    made = Counted(FeatureCache(tmp_path))
    for _ in range(2):
        made.of(make_batch(3))
    [shard] = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(InputError, match=r"\.safetensors: cannot be read .*: remove it"):
        Counted(FeatureCache(tmp_path)).of(make_batch(3))


def write_all(cache: FeatureCache, batch: Batch) -> None:
    """All of a batch's features go to a shard."""
    features = expected(batch)
    for _ in range(2):
        cache.of(batch, lambda images: features[: len(images)])


def test_shard_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    cache, batch = FeatureCache(tmp_path), make_batch(6)
    with files_up_to(LIMIT), pytest.raises(CommitError, match=r"\.safetensors: File too large"):
        write_all(cache, batch)
    assert list(tmp_path.iterdir()) == []
    write_all(cache, batch)  # there is room again, and nothing is forgotten
    again = Counted(FeatureCache(tmp_path))
    torch.testing.assert_close(again.of(batch), expected(batch), atol=1e-6, rtol=0)
    assert again.images == 0


def test_what_a_writer_killed_half_way_left_is_removed(tmp_path: Path) -> None:
    cache, batch = FeatureCache(tmp_path), make_batch(6)
    features = expected(batch)
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the system kills it in the middle
        with files_up_to(LIMIT):
            for _ in range(2):
                cache.of(batch, lambda _: features)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGXFSZ
    [half] = tmp_path.iterdir()
    assert 0 < half.stat().st_size <= LIMIT
    again = Counted(FeatureCache(tmp_path))
    assert list(tmp_path.iterdir()) == []
    torch.testing.assert_close(again.of(batch), expected(batch), atol=1e-6, rtol=0)
    assert again.images == 6
