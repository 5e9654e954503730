"""How well a filter tells matching texts from others, over labelled pairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from capfilt.errors import ModelError
from capfilt.evaluate.labels import AtThreshold, Curve
from capfilt.evaluate.pairs import Labelled
from capfilt.evaluate.pictures import Pictures, shown
from capfilt.models.filter import Filter
from capfilt.record import ModelIdentity, Score

TEXTS_PER_IMAGE = 32  # scored together; an image with more comes again


@dataclass(frozen=True)
class Quality:
    """Of one kind of score."""

    roc_auc: float
    average_precision: float
    at_threshold: AtThreshold | None  # None: the filter has no threshold on this score
    best: AtThreshold  # the threshold that maximises F1

    @classmethod
    def of(
        cls, scores: Sequence[float], labels: Sequence[bool], threshold: float | None
    ) -> Quality:
        """From the scores of labelled pairs; see `Curve.of`."""
        curve = Curve.of(scores, labels)
        at_threshold = None if threshold is None else curve.at(threshold)
        return cls(curve.roc_auc, curve.average_precision, at_threshold, curve.best())


@dataclass(frozen=True)
class FilterQuality:
    """Of every score that a filter gives; None where it does not give one."""

    filter: ModelIdentity
    images: int
    pairs: int
    matching: int
    match_prob: Quality | None
    similarity: Quality | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"task": "filter", **asdict(self)}


def evaluate_filter(
    filter_: Filter, pairs: Sequence[Labelled], pictures: Pictures, *, threshold: float | None
) -> FilterQuality:
    """Score every pair and hold the scores against the labels.

    Args:
        filter_: Its config says which scores it gives.
        pairs: With labels of both kinds.
        pictures: Where the images are.
        threshold: Inclusive, on the match probability; None: there is none.

    Raises:
        InputError: An image is missing or cannot be decoded.
        ModelError: A score is not a finite number.
    """
    started = time.monotonic()
    scores = score_pairs(filter_, [(pair.image, pair.caption) for pair in pairs], pictures)
    labels = [pair.matches for pair in pairs]

    def quality(values: list[float | None], at: float | None) -> Quality | None:
        given = [value for value in values if value is not None]
        return Quality.of(given, labels, at) if given else None

    try:
        match_prob = quality([score.match_prob for score in scores], threshold)
        similarity = quality([score.similarity for score in scores], None)
    except ValueError as error:
        raise ModelError(f"{filter_.identity.source}: {error}") from error
    return FilterQuality(
        filter=filter_.identity,
        images=len({pair.image for pair in pairs}),
        pairs=len(pairs),
        matching=sum(labels),
        match_prob=match_prob,
        similarity=similarity,
        seconds=round(time.monotonic() - started, 3),
    )


def score_pairs(
    filter_: Filter, pairs: Sequence[tuple[str, str]], pictures: Pictures
) -> list[Score]:
    """Scores of (image path, text) pairs in their order; an image's texts are scored together.

    Raises:
        InputError: An image is missing or cannot be decoded.
    """
    pictures.check(image for image, _ in pairs)
    by_image: dict[str, list[int]] = {}
    for number, (image, _) in enumerate(pairs):
        by_image.setdefault(image, []).append(number)
    visits = [
        (image, numbers[start : start + TEXTS_PER_IMAGE])
        for image, numbers in by_image.items()
        for start in range(0, len(numbers), TEXTS_PER_IMAGE)
    ]
    size = pictures.batch_size
    batches = pictures.batches([image for image, _ in visits], filter_.pixels)
    scores = [Score()] * len(pairs)
    for i, pixels in enumerate(shown(batches, "pairs", -(-len(visits) // size))):
        asked = [numbers for _, numbers in visits[i * size : (i + 1) * size]]
        found = filter_.score(pixels, [[pairs[n][1] for n in numbers] for numbers in asked])
        for numbers, of_image in zip(asked, found, strict=True):
            for number, score in zip(numbers, of_image, strict=True):
                scores[number] = score
    return scores
