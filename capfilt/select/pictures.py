"""The rules on images, which read samples and not only ledgers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from capfilt.cut import CODES, Codes, CutConfig, Rows
from capfilt.errors import ConfigError
from capfilt.io.likeness import EvaluationSet, Likeness, Looks, find_duplicates, likeness
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
    looks: dict[str, Looks] = {}
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
            looks[shard_id] = Looks.of(numbers, likes)
    judge.check_fields()
    if config.dedupe_images:
        for shard_id, of_shard in find_duplicates(looks, config.dedupe_images).items():
            for number, reason in of_shard.items():
                images[shard_id][number] = CODES[reason]
    return images


@dataclass
class _Images:
    config: CutConfig

    def __post_init__(self) -> None:
        self._where = Where(self.config.where) if self.config.where is not None else None
        exclude = self.config.exclude
        self._excluded = EvaluationSet.load(exclude) if exclude else None
        self._hashes = bool(exclude) or self.config.dedupe_images is not None
        by_looks = self.config.dedupe_images == "perceptual"
        self._look = by_looks or (self._excluded is not None and self._excluded.looks)
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
