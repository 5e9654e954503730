"""The facts that flow through a run: samples, texts, scores and verdicts. No I/O.

Sample --captioner, filter--> Annotated(sample, texts) --selection--> texts with verdicts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Source(StrEnum):
    """Where a text comes from: T_w, T_s or T_h of the paper (BLIP, section 3.3)."""

    WEB = "web"
    SYNTHETIC = "synthetic"
    HUMAN = "human"


class Verdict(StrEnum):
    """What became of a text, or of a whole sample."""

    KEPT = "kept"
    DROPPED = "dropped"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a text was dropped or a sample failed. Every drop has exactly one."""

    # A text is dropped; its image may still keep another text.
    NO_TEXT = "no_text"  # the sample has no text member, or a null caption
    EMPTY_TEXT = "empty_text"  # nothing is left of it after normalisation
    TEXT_NOT_UTF8 = "text_not_utf8"
    TEXT_TOO_LONG = "text_too_long"
    BELOW_MIN_MATCH_PROB = "below_min_match_prob"
    NOT_IN_TOP_K = "not_in_top_k"
    # A cut of a ledger drops a text (`capfilt.cut`).
    BELOW_MIN_SIMILARITY = "below_min_similarity"
    BELOW_KEPT_FRACTION = "below_kept_fraction"
    NOT_IN_MIX = "not_in_mix"  # another source's text was taken for the image
    REPETITIVE_TEXT = "repetitive_text"
    DUPLICATE_TEXT = "duplicate_text"  # an earlier image keeps the same caption
    # An image is dropped, and with it each of its texts.
    METADATA_FILTERED = "metadata_filtered"
    DUPLICATE_IMAGE = "duplicate_image"  # the same bytes as an earlier image
    NEAR_DUPLICATE_IMAGE = "near_duplicate_image"  # looks like an earlier image
    EVALUATION_IMAGE = "evaluation_image"  # or looks like one of an evaluation set
    # A sample fails; none of its texts is scored.
    NO_IMAGE = "no_image"
    IMAGE_EMPTY = "image_empty"  # zero bytes
    IMAGE_NOT_AN_IMAGE = "image_not_an_image"  # no known image format, e.g. an HTML error page
    IMAGE_CORRUPT = "image_corrupt"  # a known format that cannot be decoded in full
    IMAGE_TOO_LARGE = "image_too_large"  # bytes or pixels above the limit
    IMAGE_TOO_SMALL = "image_too_small"  # shorter side below the limit, e.g. tracking pixels
    METADATA_INVALID = "metadata_invalid"  # the json member is not a JSON object
    DUPLICATE_KEY = "duplicate_key"  # an earlier sample of the shard has the same key
    INVALID_KEY = "invalid_key"  # a key that cannot name a file, e.g. one that leaves its folder


# Reasons that drop an image with all its texts, whatever they say.
ON_IMAGES = frozenset(
    {
        Reason.METADATA_FILTERED,
        Reason.DUPLICATE_IMAGE,
        Reason.NEAR_DUPLICATE_IMAGE,
        Reason.EVALUATION_IMAGE,
    }
)


@dataclass(frozen=True, slots=True)
class Score:
    """What a filter says of one text and one image; a score that was not asked for is None."""

    match_prob: float | None = None  # P(text matches image), softmax of the ITM head, in [0, 1]
    similarity: float | None = None  # cosine of image and text embedding, in [-1, 1]


@dataclass(frozen=True, slots=True)
class Text:
    """One text of one image. `content` is raw, as it came; None where there is nothing to keep."""

    source: Source
    index: int  # position among the sample's texts of the same source
    content: str | None
    score: Score = Score()
    verdict: Verdict | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its texts and metadata, exactly as the input has them."""

    key: str
    image: bytes | None  # original bytes, never re-encoded
    image_ext: str  # of the input's member, without the dot: "jpg", "png", ...
    texts: tuple[Text, ...]  # one web text, or the human captions; never empty
    metadata: Mapping[str, Any] = field(default_factory=dict)  # json member or Parquet columns
    extras: Mapping[str, bytes] = field(default_factory=dict)  # a tar's other members, by extension
    problem: Reason | None = None  # set by a reader: the sample has failed
    unwanted: Reason | None = None  # a good image that is dropped with all its texts


@dataclass(frozen=True, slots=True)
class Annotated:
    """A sample with every text judged, and the verdict on the sample as a whole."""

    sample: Sample
    texts: tuple[Text, ...]  # web or human first, then synthetic; each with a verdict
    kept: tuple[Text, ...]  # the kept ones, best first where a ranking chose them
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which weights a module has, wherever they lie."""

    architecture: str  # class name from the checkpoint's config.json
    sha256: str  # of everything that decides its results: weights, config, tokenizer, preprocessor
    source: str  # the folder or hub id as the user gave it; not part of a fingerprint
