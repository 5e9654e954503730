"""What no shard can tell alone: the score that cuts off a fraction, and what comes a second time.

Each fact takes a pass over all ledgers, shard by shard on threads. Kept in memory are 2^16 counters
for the cutoff, whatever the size of the dataset; 8 bytes a kept text for duplicate captions; a byte
an image for filters, and 33 bytes an image for duplicate images.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from capfilt.cut import (
    CODES,
    REASONS,
    Codes,
    CutConfig,
    Rows,
    ScoreName,
    apply_cutoff,
    apply_mix,
    apply_thresholds,
    check_scores,
    score_of,
    sortable,
)
from capfilt.errors import InputError
from capfilt.io.likeness import EvaluationSet
from capfilt.record import Reason
from capfilt.run.flow import in_order
from capfilt.select.origin import Origin
from capfilt.select.pictures import judge_images
from capfilt.select.wording import repeats

Result = TypeVar("Result")
_HALF_BITS = 16  # of a float32: the cutoff is found in two passes of 2^16 counters


@dataclass(frozen=True)
class Cutoff:
    """The least `sortable` score that stays, and how many texts at it stay, by shard."""

    score: int
    of_equal: Mapping[str, int]


@dataclass(frozen=True)
class Facts:
    """Of the whole dataset; what a rule that is off would need is empty."""

    images: Mapping[str, Codes] = field(default_factory=dict)  # by shard: reasons, per image
    cutoff: Cutoff | None = None
    captions: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # rows to drop
    excluded: str | None = None  # digest of the evaluation sets

    def digest(self) -> str:
        """sha256 of all facts, in hex: other facts, another cut."""
        digest = hashlib.sha256()
        for part in (self.images, self.captions):
            for shard_id, values in sorted(part.items()):
                digest.update(f"{shard_id}\n".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        if self.cutoff is not None:
            digest.update(repr((self.cutoff.score, sorted(self.cutoff.of_equal.items()))).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Survey:
    """Judges the shards of an origin; the facts come from its own earlier passes."""

    origin: Origin
    config: CutConfig
    facts: Facts = Facts()

    @classmethod
    def of(cls, origin: Origin, config: CutConfig, output_url: str | None = None) -> Survey:
        """Find all facts that the rules need.

        Args:
            origin: What is cut.
            config: The rules.
            output_url: Where hashes of images are kept for a resume.

        Raises:
            InputError, ConfigError: A ledger or an image cannot be read, a score is missing.
        """
        survey = cls(origin, config)
        if config.judges_images:
            excluded = EvaluationSet.load(config.exclude) if config.exclude else None
            images = judge_images(origin, config, survey.begin, excluded, output_url)
            survey = survey._knowing(
                images=images, excluded=None if excluded is None else excluded.digest()
            )
        if config.keep_fraction is not None:
            survey = survey._knowing(cutoff=survey._find_cutoff(config.keep_fraction))
        if config.dedupe_captions:
            survey = survey._knowing(captions=survey._find_duplicates())
        return survey

    def _knowing(self, **facts: Any) -> Survey:
        return replace(self, facts=replace(self.facts, **facts))

    @property
    def ranked_by(self) -> ScoreName | None:
        """The score in whose order an image's kept texts stand; None: as they came."""
        if self.config.ranks:
            return self.config.score
        return None if self.config.judges_scores else self.origin.ranked_by

    @property
    def kept_from(self) -> float | None:
        """The score from which `keep_fraction` keeps texts; of equal ones some may go."""
        cutoff = self.facts.cutoff
        found = math.nan if cutoff is None else score_of(cutoff.score)
        return found if math.isfinite(found) else None

    def rows(self, shard_id: str) -> Rows:
        """A shard's texts with all verdicts."""
        rows = apply_mix(self._above_cutoff(shard_id), self.config)
        beyond = self.facts.captions.get(shard_id)
        if beyond is not None:
            mask = np.zeros(len(rows.image), dtype=bool)
            mask[beyond] = True
            rows = rows.drop(mask, Reason.DUPLICATE_TEXT)
        return rows

    def begin(self, shard_id: str) -> Rows:
        """A shard's texts after the rules that look at one text alone.

        Raises:
            InputError: A text does not have a score that the rules need.
        """
        config = self.config
        rows = self.origin.rows(shard_id)
        if config.judges_scores:
            rows = rows.anew(of_kept=self.origin.judged_images)
        try:
            check_scores(rows, config)
        except ValueError as error:
            raise InputError(f"{self.origin.ledger_url(shard_id)}: {error}") from None
        rows = apply_thresholds(rows, config)
        if config.drop_repetitive:
            rows = rows.drop(
                repeats(self.origin.texts(shard_id)) & ~rows.is_human, Reason.REPETITIVE_TEXT
            )
        return rows

    def _of_images(self, shard_id: str) -> Rows:
        rows = self.begin(shard_id)
        codes = self.facts.images.get(shard_id)
        if codes is not None:
            for code in np.unique(codes[codes > 0]).tolist():
                reason = REASONS[code]
                assert reason is not None
                rows = rows.drop((codes == CODES[reason])[rows.image], reason)
        return rows

    def _above_cutoff(self, shard_id: str) -> Rows:
        rows = self._of_images(shard_id)
        cutoff = self.facts.cutoff
        if cutoff is None:
            return rows
        return apply_cutoff(rows, self.config.score, cutoff.score, cutoff.of_equal[shard_id])

    def _find_cutoff(self, fraction: float) -> Cutoff:
        """Exactly the best `fraction` of all texts that are left; of equal ones the earlier."""

        def values(shard_id: str) -> npt.NDArray[np.uint32]:
            rows = self._of_images(shard_id)
            column: Any = rows.match_prob if self.config.score == "match_prob" else rows.similarity
            return sortable(column[rows.open & ~rows.is_human])

        def upper(shard_id: str) -> Any:
            return np.bincount(values(shard_id) >> _HALF_BITS, minlength=2**_HALF_BITS)

        counts = sum(self.each(upper), start=np.zeros(2**_HALF_BITS, dtype=np.int64))
        wanted = int(counts.sum() * Fraction(str(fraction)))
        half, left = _find_place(counts, wanted)

        def lower(shard_id: str) -> Any:
            found = values(shard_id)
            found = found[found >> _HALF_BITS == half] & np.uint32(2**_HALF_BITS - 1)
            return np.bincount(found, minlength=2**_HALF_BITS)

        counts = sum(self.each(lower), start=np.zeros(2**_HALF_BITS, dtype=np.int64))
        low, left = _find_place(counts, left)
        score = half << _HALF_BITS | low
        of_equal = {}
        equals = self.each(lambda shard_id: int((values(shard_id) == score).sum()))
        for shard_id, equal in zip(self.origin.commits, equals, strict=True):
            of_equal[shard_id] = min(equal, left)
            left -= of_equal[shard_id]
        return Cutoff(score, of_equal)

    def _find_duplicates(self) -> dict[str, npt.NDArray[np.int64]]:
        """By shard, the rows whose text an earlier row keeps, whatever its case and white space."""

        def hashes(shard_id: str) -> tuple[Any, Any]:
            rows = apply_mix(self._above_cutoff(shard_id), self.config)
            [places] = np.nonzero(rows.open & ~rows.is_human)
            texts = self.origin.texts(shard_id).take(places).to_pylist()
            # Python's own hash: 64 bits, another for each process, which equality does not mind.
            found = (hash(" ".join(text.lower().split())) for text in texts)
            return places, np.fromiter(found, dtype=np.int64, count=len(texts))

        found = dict(zip(self.origin.commits, self.each(hashes), strict=True))
        later = is_later(np.concatenate([of_texts for _, of_texts in found.values()]))
        beyond, at = {}, 0
        for shard_id, (places, _) in found.items():
            beyond[shard_id] = places[later[at : at + len(places)]]
            at += len(places)
        return beyond

    def each(self, function: Callable[[str], Result]) -> Iterable[Result]:
        """Apply a function to every shard, in order, a few at a time."""
        return each(self.origin.commits, function)


def each(names: Iterable[str], function: Callable[[str], Result]) -> Iterable[Result]:
    """Apply a function on as many threads as there are cores; results in order."""
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads, thread_name_prefix="shard") as pool:
        yield from in_order(pool, function, names, most=2 * threads)


def is_later(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which values an earlier place has too, shape [N]."""
    order = np.argsort(values, kind="stable")
    later = np.zeros(len(values), dtype=bool)
    ordered = values[order]
    later[order[1:]] = ordered[1:] == ordered[:-1]
    return later


def _find_place(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The bin in which the `wanted` highest end, and how many of that bin are among them."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, max(wanted, 1)))
    place = min(place, len(counts) - 1)
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, wanted - before
