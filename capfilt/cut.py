"""A cut: a ledger's texts judged anew, whole columns at a time. Pure; no text, no file, no model.

`capfilt.selection` judges the texts of one image while a run goes on; here a shard's million texts
take a fraction of a second. On the rules that both know they agree, which a test holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from capfilt.record import ON_IMAGES, Reason, Source
from capfilt.schema import check

Mix = Literal["both", "web-first", "synthetic-first", "best"]
ScoreName = Literal["match_prob", "similarity"]

# Rows hold sources and reasons as numbers; reason 0 is none.
SOURCES = tuple(Source)
REASONS: tuple[Reason | None, ...] = (None, *Reason)
CODES = {reason: code for code, reason in enumerate(REASONS)}

# What a rule on scores and texts decided, and another may decide otherwise. What a rule on images
# decided holds in every cut of a cut, and all other reasons are facts.
ON_TEXTS = frozenset(
    {
        Reason.BELOW_MIN_MATCH_PROB,
        Reason.NOT_IN_TOP_K,
        Reason.BELOW_MIN_SIMILARITY,
        Reason.BELOW_KEPT_FRACTION,
        Reason.NOT_IN_MIX,
        Reason.REPETITIVE_TEXT,
        Reason.DUPLICATE_TEXT,
    }
)
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CutConfig:
    """The rules of a cut. They hold together, in this order; human captions pass those on texts.

    Source: `mix`: "web-first" takes a synthetic caption only where the web text fails, Nguyen et
    al., arXiv:2307.10350. `keep_fraction`: DataComp's subsets by score.
    """

    min_match_prob: float | None = None
    min_similarity: float | None = None
    drop_repetitive: bool = False
    where: str | None = None  # of an image's metadata (`capfilt.select.where`)
    exclude: tuple[str, ...] = ()  # evaluation sets: folders of images, or lists of hashes
    dedupe_images: Literal["exact", "perceptual"] | None = None  # the first one stays
    keep_fraction: float | None = None  # of the texts that are left so far, by score
    mix: Mix = "both"
    top_k: int | None = None  # best texts of an image
    dedupe_captions: bool = False  # the first image keeps a caption
    by: ScoreName | None = None  # what keep_fraction, top_k and the best go by

    def __post_init__(self) -> None:
        if self.min_match_prob is not None:
            check(
                0 <= self.min_match_prob <= 1,
                f"min_match_prob is a probability in [0, 1], is {self.min_match_prob}",
            )
        if self.min_similarity is not None:
            check(
                -1 <= self.min_similarity <= 1,
                f"min_similarity is a cosine in [-1, 1], is {self.min_similarity}",
            )
        if self.keep_fraction is not None:
            check(
                0 < self.keep_fraction <= 1, f"keep_fraction is in (0, 1], is {self.keep_fraction}"
            )
        if self.top_k is not None:
            check(self.top_k >= 1, f"top_k must be at least 1, is {self.top_k}")
        check(all(self.exclude), "exclude names a folder or a list of hashes, is empty")

    @property
    def judges_images(self) -> bool:
        """Whether a rule on images is given."""
        return self.where is not None or bool(self.exclude) or self.dedupe_images is not None

    @property
    def judges_scores(self) -> bool:
        """Whether a rule on scores is given; with none, the verdicts of the ledger hold."""
        given = (self.min_match_prob, self.min_similarity, self.keep_fraction, self.top_k)
        return any(value is not None for value in given)

    @property
    def ranks(self) -> bool:
        """Whether an image's kept texts stand in the order of their scores."""
        return self.top_k is not None or self.mix == "best"

    @property
    def score(self) -> ScoreName:
        """`by`, once it is settled which scores there are."""
        return self.by or "match_prob"

    def scores(self) -> tuple[ScoreName, ...]:
        """The scores that the rules need of every text."""
        needed: dict[ScoreName, None] = {}
        if self.min_match_prob is not None:
            needed["match_prob"] = None
        if self.min_similarity is not None:
            needed["similarity"] = None
        if self.keep_fraction is not None or self.ranks:
            needed[self.score] = None
        return tuple(needed)


@dataclass(frozen=True)
class Rows:
    """A shard's texts as columns of length N; an image's texts are adjacent, images numbered."""

    image: npt.NDArray[np.int64]  # rises from 0, so the last one is the count of images less one
    source: Codes  # place in SOURCES
    match_prob: npt.NDArray[np.float32]  # NaN where a text was not scored
    similarity: npt.NDArray[np.float32]
    reason: Codes  # place in REASONS
    failed: Mask  # the image has failed, and its texts with it

    @property
    def images(self) -> int:
        """How many."""
        return int(self.image[-1]) + 1 if len(self.image) else 0

    @property
    def open(self) -> Mask:
        """The texts that no rule has dropped yet."""
        found: Mask = (self.reason == 0) & ~self.failed
        return found

    @property
    def is_human(self) -> Mask:
        found: Mask = self.source == SOURCES.index(Source.HUMAN)
        return found

    @property
    def by_image_rule(self) -> Mask:
        """The texts that were dropped with their image."""
        return _is_one_of(self.reason, ON_IMAGES) & ~self.failed

    def score(self, name: ScoreName) -> npt.NDArray[np.float64]:
        """Scores as a run compares them: float32, widened."""
        column: npt.NDArray[np.float32] = getattr(self, name)
        return column.astype(np.float64)

    def drop(self, rows: Mask, reason: Reason) -> Rows:
        """The same rows, those of a mask dropped where they are still open."""
        code = np.uint8(CODES[reason])
        return replace(self, reason=np.where(rows & self.open, code, self.reason))

    def anew(self, *, of_kept: bool) -> Rows:
        """Without what was decided on texts, but for images that a rule on images has dropped.

        Args:
            of_kept: Only of images that keep a text: of the others nobody knows whether the rules
                on images would let them pass.
        """
        out = np.zeros(self.images, dtype=bool)
        out[self.image[self.by_image_rule]] = True
        if of_kept:
            out |= ~self.with_kept()
        again = _is_one_of(self.reason, ON_TEXTS) & ~self.failed & ~out[self.image]
        return replace(self, reason=np.where(again, np.uint8(0), self.reason))

    def with_kept(self) -> Mask:
        """Per image: whether it keeps a text."""
        kept = np.zeros(self.images, dtype=bool)
        kept[self.image[self.open]] = True
        return kept


def _is_one_of(reason: Codes, reasons: frozenset[Reason]) -> Mask:
    found: Mask = np.isin(reason, [CODES[one] for one in reasons])
    return found


def check_scores(rows: Rows, config: CutConfig) -> None:
    """See that every text has the scores that the rules need.

    Raises:
        ValueError: Names the score that is missing.
    """
    judged = rows.open & ~rows.is_human
    for name in config.scores():
        if np.isnan(rows.score(name)[judged]).any():
            raise ValueError(f"not every text has a {name}, which the rule needs")


def apply_thresholds(rows: Rows, config: CutConfig) -> Rows:
    """Drop texts below `min_match_prob` and `min_similarity`; both are inclusive."""
    for name, least, reason in (
        ("match_prob", config.min_match_prob, Reason.BELOW_MIN_MATCH_PROB),
        ("similarity", config.min_similarity, Reason.BELOW_MIN_SIMILARITY),
    ):
        if least is not None:
            score = rows.match_prob if name == "match_prob" else rows.similarity
            below = score.astype(np.float64) < least
            rows = rows.drop(below & ~rows.is_human, reason)
    return rows


def apply_mix(rows: Rows, config: CutConfig) -> Rows:
    """Take an image's texts of one source, or its best one; then its `top_k` best."""
    if config.mix in ("web-first", "synthetic-first"):
        first, other = Source.WEB, Source.SYNTHETIC
        if config.mix == "synthetic-first":
            first, other = other, first
        has = np.zeros(rows.images, dtype=bool)
        has[rows.image[rows.open & (rows.source == SOURCES.index(first))]] = True
        unwanted = has[rows.image] & (rows.source == SOURCES.index(other))
        rows = rows.drop(unwanted, Reason.NOT_IN_MIX)
    elif config.mix == "best":
        rows = rows.drop(_beyond(rows, 1, config.score), Reason.NOT_IN_MIX)
    if config.top_k is not None:
        rows = rows.drop(_beyond(rows, config.top_k, config.score), Reason.NOT_IN_TOP_K)
    return rows


def _beyond(rows: Rows, k: int, by: ScoreName) -> Mask:
    """The open texts that are not among the k best of their image; of equal ones the later."""
    [able] = np.nonzero(rows.open & ~rows.is_human)
    order = able[np.lexsort((-rows.score(by)[able], rows.image[able]))]  # stable: ties as they came
    images = rows.image[order]
    starts = np.r_[True, images[1:] != images[:-1]] if len(images) else np.zeros(0, dtype=bool)
    places = np.arange(len(order))
    rank = places - np.maximum.accumulate(np.where(starts, places, 0))
    beyond = np.zeros(len(rows.image), dtype=bool)
    beyond[order[rank >= k]] = True
    return beyond


def sortable(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Numbers that sort as the float32 scores do; -0.0 is 0.0."""
    bits: npt.NDArray[np.uint32] = (scores + np.float32(0)).view(np.uint32)
    negative = bits >> np.uint32(31) == 1
    return np.where(negative, ~bits, bits | np.uint32(1 << 31))


def score_of(number: int) -> float:
    """The score of which `sortable` makes a number."""
    bits = number & ~(1 << 31) if number >> 31 else ~number & 0xFFFFFFFF
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


def apply_cutoff(rows: Rows, by: ScoreName, cutoff: int, of_equal: int) -> Rows:
    """Drop the texts whose `sortable` score is below a cutoff; of those at it, keep the first some.

    Args:
        rows: A shard's.
        by: The score.
        cutoff: What `sortable` gives of the least score that is kept.
        of_equal: How many of this shard's texts at the cutoff stay.
    """
    column: npt.NDArray[Any] = rows.match_prob if by == "match_prob" else rows.similarity
    values = sortable(column)
    able = rows.open & ~rows.is_human
    equal = able & (values == cutoff)
    beyond = equal & (np.cumsum(equal) > of_equal)
    return rows.drop(able & (values < cutoff) | beyond, Reason.BELOW_KEPT_FRACTION)
