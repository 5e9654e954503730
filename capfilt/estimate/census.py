"""How much an input holds: shards, bytes, images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capfilt.config import ImageConfig
from capfilt.io.reader import read_samples
from capfilt.record import Reason
from capfilt.shard import InputShard


@dataclass(frozen=True)
class Census:
    """What an input holds; `counted` of its shards have a number of images that is known.

    img2dataset's `_stats.json` says it. Where no shard has one, a few are counted. The images of
    all others are taken to be as large as those.
    """

    shards: int
    size_bytes: int
    images: int
    counted: int
    has_stats: bool  # whether the counts are from `_stats.json`

    @property
    def is_exact(self) -> bool:
        """Whether every shard's images are known."""
        return self.counted == self.shards


def take_census(
    shards: Sequence[InputShard], some: Sequence[InputShard], limits: ImageConfig
) -> Census:
    """Count an input.

    Args:
        shards: All of it.
        some: Shards to be counted by reading them, where none has a `_stats.json`.
        limits: Of a run; an image that a run would not take is still one.

    Raises:
        InputError: One of them cannot be read.
    """
    known = {shard.id: shard.expected for shard in shards if shard.expected is not None}
    has_stats = bool(known)
    if not has_stats:
        known = {shard.id: _count(shard, limits) for shard in some}
    size_bytes = sum(shard.size_bytes for shard in shards)
    known_bytes = sum(shard.size_bytes for shard in shards if shard.id in known)
    images = sum(known.values())
    if len(known) < len(shards) and known_bytes:
        images = round(images * size_bytes / known_bytes)
    return Census(len(shards), size_bytes, images, len(known), has_stats)


def _count(shard: InputShard, limits: ImageConfig) -> int:
    return sum(sample.problem is not Reason.NO_IMAGE for sample in read_samples(shard, limits))
