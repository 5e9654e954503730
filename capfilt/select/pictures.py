"""The rules on images, which read samples and not only ledgers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfilt.cut import CODES, Codes, CutConfig, Mask, Rows
from capfilt.errors import ConfigError
from capfilt.io.likeness import EvaluationSet, Likeness, likeness, near_earlier
from capfilt.record import Reason, Sample
from capfilt.run.flow import in_order
from capfilt.select.origin import Origin
from capfilt.select.where import Where

BATCH = 256  # samples in memory


def judge_images(
    origin: Origin, config: CutConfig, begin: Callable[[str], Rows]
) -> dict[str, Codes]:
    """Why images are dropped: by shard, a reason's code per image, 0 for those that stay.

    Only images that still have a text are looked at, so of duplicates the first one that is any
    good stays.

    Args:
        origin: Whose images.
        config: Its `where`, `exclude` and `dedupe_images` count.
        begin: A shard's texts after the rules on texts.

    Raises:
        ConfigError: No sample has a field that `where` names.
        InputError: Samples cannot be read.
    """
    judge = _Images(config)
    images: dict[str, Codes] = {}
    looks: dict[str, _Looks] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="hash") as pool:
        for shard_id in origin.commits:
            needed = begin(shard_id).with_kept()
            codes = images[shard_id] = np.zeros(len(needed), dtype=np.uint8)
            numbers: list[int] = []
            likes: list[Likeness] = []
            for batch in _batches(origin.samples(shard_id, needed)):
                kept, hashes = judge.batch(batch, codes, pool)
                numbers += kept
                likes += hashes
            looks[shard_id] = _Looks.of(numbers, likes)
    judge.check_fields()
    if config.dedupe_images:
        _drop_later(images, looks, config.dedupe_images)
    return images


@dataclass(frozen=True)
class _Looks:
    """The hashes of a shard's images as columns, 32 bytes an image."""

    numbers: npt.NDArray[np.int64]
    sha256: npt.NDArray[np.uint64]  # shape [N, 2]: its first 128 bits
    phash: npt.NDArray[np.uint64]
    visible: Mask  # has a phash

    @classmethod
    def of(cls, numbers: list[int], likes: list[Likeness]) -> _Looks:
        halves = b"".join(like.sha256[:16] for like in likes)
        return cls(
            np.array(numbers, dtype=np.int64),
            np.frombuffer(halves, dtype=np.uint64).reshape(-1, 2),
            np.array([like.phash or 0 for like in likes], dtype=np.uint64),
            np.array([like.phash is not None for like in likes], dtype=bool),
        )


@dataclass
class _Images:
    config: CutConfig

    def __post_init__(self) -> None:
        self._where = Where(self.config.where) if self.config.where else None
        exclude = self.config.exclude
        self._excluded = EvaluationSet.load(exclude) if exclude else None
        self._hashes = bool(exclude) or self.config.dedupe_images is not None
        by_looks = self.config.dedupe_images == "perceptual"
        self._look = by_looks or (self._excluded is not None and len(self._excluded.phash) > 0)
        self._seen: set[str] = set()  # metadata fields

    def batch(
        self, batch: list[tuple[int, Sample]], codes: Codes, pool: ThreadPoolExecutor
    ) -> tuple[list[int], list[Likeness]]:
        """Judge some samples; give the numbers and hashes of those that stay."""
        if self._where is not None:
            fields = [sample.metadata for _, sample in batch]
            self._seen.update(name for tree in fields for name in tree)
            passes = self._where.mask(fields)
            for (number, _), passed in zip(batch, passes, strict=True):
                codes[number] = 0 if passed else CODES[Reason.METADATA_FILTERED]
            batch = [part for part, passed in zip(batch, passes, strict=True) if passed]
        if not self._hashes:
            return [], []
        hashed = list(in_order(pool, self._hash, [sample for _, sample in batch], most=BATCH))
        numbers = [number for number, _ in batch]
        if self._excluded is None:
            return numbers, hashed
        held = self._excluded.holds(hashed)
        codes[np.array(numbers, dtype=int)[held]] = CODES[Reason.EVALUATION_IMAGE]
        stays = [place for place in range(len(numbers)) if not held[place]]
        return [numbers[place] for place in stays], [hashed[place] for place in stays]

    def _hash(self, sample: Sample) -> Likeness:
        if sample.image is None:
            raise ConfigError(
                "duplicates and evaluation images are found by the images, and this OUTPUT has none"
            )
        return likeness(sample.image, look=self._look)

    def check_fields(self) -> None:
        """See that `where` names fields that there are.

        Raises:
            ConfigError: One is in no sample's metadata.
        """
        for name in self._where.fields if self._where is not None and self._seen else ():
            if name not in self._seen:
                known = ", ".join(sorted(self._seen)[:20])
                raise ConfigError(f"--where: no sample has a field {name}; there are {known}")


def _drop_later(images: Mapping[str, Codes], looks: Mapping[str, _Looks], how: str) -> None:
    """Drop what an earlier image is already: by bytes, and where asked for by looks."""
    halves = np.concatenate([of_shard.sha256 for of_shard in looks.values()])
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable, so the earlier comes first
    same = np.zeros(len(halves), dtype=bool)
    same[order[1:]] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    reasons = np.where(same, CODES[Reason.DUPLICATE_IMAGE], 0)
    if how == "perceptual":
        visible = np.concatenate([of_shard.visible for of_shard in looks.values()])
        hashes = np.concatenate([of_shard.phash for of_shard in looks.values()])
        near = np.zeros(len(halves), dtype=bool)
        near[visible] = near_earlier(hashes[visible])
        reasons = np.where(near & ~same, CODES[Reason.NEAR_DUPLICATE_IMAGE], reasons)
    at = 0
    for shard_id, of_shard in looks.items():
        images[shard_id][of_shard.numbers] = reasons[at : at + len(of_shard.numbers)]
        at += len(of_shard.numbers)


def _batches(
    samples: Iterator[tuple[int, Sample]],
) -> Iterator[list[tuple[int, Sample]]]:
    batch: list[tuple[int, Sample]] = []
    for part in samples:
        batch.append(part)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
