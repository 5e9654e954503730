from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from capfilt.data.batch import Batch
from capfilt.errors import InputError
from capfilt.train import features
from capfilt.train.features import FeatureCache, Features, open_cache
from tests.train.small import make_batch, rows
from tests.train.small_blip2 import make_vit


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
