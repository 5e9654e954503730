"""The rules on images, which read samples and not only ledgers."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from capfilt.config import ImageConfig
from capfilt.cut import CODES, Codes, CutConfig, Mask, Rows
from capfilt.errors import ConfigError
from capfilt.io.likeness import EvaluationSet, Likeness, likeness
from capfilt.io.looks import Looks, find_duplicates
from capfilt.record import Reason, Sample
from capfilt.run.flow import in_order
from capfilt.select.origin import Origin
from capfilt.select.where import Where

BATCH = 256  # samples in memory


def judge_images(
    origin: Origin,
    config: CutConfig,
    begin: Callable[[str], Rows],
    excluded: EvaluationSet | None,
    output_url: str | None,
) -> dict[str, Codes]:
    """Why images are dropped: by shard, a reason's code per image, 0 for those that stay.

    Only images that still have a text are looked at, so of duplicates the first one that is any
    good stays.

    Args:
        origin: Whose images.
        config: Its `where` and `dedupe_images` count.
        begin: A shard's texts after the rules on texts.
        excluded: The evaluation sets.
        output_url: Where hashes are kept, so that a resume need not read the images again.

    Raises:
        ConfigError: No sample has a field that `where` names, or there are no images.
        InputError: Samples cannot be read.
    """
    where = None if config.where is None else _Filter(Where(config.where), origin)
    hasher = _Hasher(origin, config, excluded, output_url)
    codes: dict[str, Codes] = {}
    looks: dict[str, Looks] = {}
    for shard_id in origin.commits:
        stays = begin(shard_id).with_kept()
        of_shard = codes[shard_id] = np.zeros(len(stays), dtype=np.uint8)
        if where is not None:
            filtered = stays & ~where.passes(shard_id, stays)
            of_shard[filtered] = CODES[Reason.METADATA_FILTERED]
            stays &= ~filtered
        if excluded is None and config.dedupe_images is None:
            continue
        found = hasher.looks(shard_id, stays)
        if excluded is not None:
            held = found.held_by(excluded)
            of_shard[found.numbers[held]] = CODES[Reason.EVALUATION_IMAGE]
            found = found.only(~held)
        looks[shard_id] = found
    if where is not None:
        where.check_fields()
    if config.dedupe_images:
        for shard_id, duplicates in find_duplicates(looks, config.dedupe_images).items():
            for number, reason in duplicates.items():
                codes[shard_id][number] = CODES[reason]
    return codes


class _Filter:
    """`where` over the metadata of shards."""

    def __init__(self, where: Where, origin: Origin) -> None:
        self._where, self._origin = where, origin
        self._seen: set[str] = set()

    def passes(self, shard_id: str, needed: Mask) -> Mask:
        """Which images pass, of those that are needed; shape [N]."""
        found = np.zeros(len(needed), dtype=bool)
        samples = self._origin.samples(shard_id, needed, images=False)
        while batch := list(itertools.islice(samples, BATCH)):
            fields = [sample.metadata for _, sample in batch]
            self._seen.update(name for tree in fields for name in tree)
            found[[number for number, _ in batch]] = self._where.mask(fields)
        return found

    def check_fields(self) -> None:
        """See that `where` names fields that there are.

        Raises:
            ConfigError: One is in no sample's metadata, or of another kind in all.
        """
        self._where.check()
        for name in self._where.fields if self._seen else ():
            if name not in self._seen:
                known = ", ".join(sorted(self._seen)[:20])
                raise ConfigError(f"--where: no sample has a field {name}; there are {known}")


class _Hasher:
    """Hashes the images of shards on all cores, or recalls what was hashed."""

    def __init__(
        self,
        origin: Origin,
        config: CutConfig,
        excluded: EvaluationSet | None,
        output_url: str | None,
    ) -> None:
        self._origin, self._output_url = origin, output_url
        by_looks = config.dedupe_images == "perceptual"
        self._look = by_looks or (excluded is not None and excluded.looks)
        self._limits = ImageConfig(**origin.manifest.config["images"])

    def looks(self, shard_id: str, needed: Mask) -> Looks:
        """The hashes of the images that are needed."""
        commit = self._origin.commits[shard_id]
        made_of = json.dumps(
            [commit.input.url, commit.input.version, commit.fingerprint, self._look]
        )
        if self._output_url is not None:
            known = Looks.recall(self._output_url, shard_id, made_of)
            if known is not None and np.isin(np.flatnonzero(needed), known.numbers).all():
                return known.only(needed[known.numbers])
        found = self._hashed(shard_id, needed)
        if self._output_url is not None:
            found.keep(self._output_url, shard_id, made_of)
        return found

    def _hashed(self, shard_id: str, needed: Mask) -> Looks:
        numbers: list[int] = []

        def images() -> Iterator[Sample]:
            for number, sample in self._origin.samples(shard_id, needed):
                numbers.append(number)
                yield sample

        cores = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(cores, thread_name_prefix="hash") as pool:
            likes = list(in_order(pool, self._hash, images(), most=BATCH))
        return Looks.of(numbers, likes)

    def _hash(self, sample: Sample) -> Likeness:
        if sample.image is None:
            raise ConfigError(
                "duplicates and evaluation images are found by the images, and this OUTPUT has none"
            )
        return likeness(sample.image, look=self._look, limits=self._limits)
