"""How well a score tells matching texts from others: curves over labelled pairs. Pure numpy.

A score at or above a threshold says "match". Equal scores fall on the same side of any threshold,
so every figure is taken over distinct scores: the order of the pairs never matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AtThreshold:
    """What a threshold gives; `precision` is None where nothing reaches it."""

    threshold: float
    precision: float | None
    recall: float
    f1: float


@dataclass(frozen=True)
class Curve:
    """What each distinct score gives as a threshold, from the highest score down."""

    thresholds: npt.NDArray[np.float64]
    true: Counts  # matching pairs at or above
    false: Counts  # other pairs at or above

    @classmethod
    def of(cls, scores: Sequence[float], labels: Sequence[bool]) -> Curve:
        """Count pairs above every distinct score.

        Args:
            scores: Shape [N].
            labels: Whether a pair matches, shape [N].

        Raises:
            ValueError: The labels are all the same, or a score is not a finite number.
        """
        values = np.asarray(scores, dtype=np.float64)
        matching = np.asarray(labels, dtype=bool)
        if values.shape != matching.shape:
            raise ValueError(f"{len(values)} scores for {len(matching)} labels")
        if not np.isfinite(values).all():
            raise ValueError("a score is not a finite number")
        if matching.all() or not matching.any():
            raise ValueError("the labels are all the same")
        thresholds, group = np.unique(-values, return_inverse=True)
        true = np.bincount(group, weights=matching).cumsum().astype(np.int64)
        return cls(-thresholds, true, np.bincount(group).cumsum() - true)

    @property
    def roc_auc(self) -> float:
        """P(a matching pair scores above another) + P(they score the same) / 2, in [0, 1]."""
        true, false = (np.concatenate([[0], counts]) for counts in (self.true, self.false))
        twice_area = (np.diff(false) * (true[1:] + true[:-1])).sum()
        return float(twice_area) / (2 * int(self.true[-1]) * int(self.false[-1]))

    @property
    def average_precision(self) -> float:
        """Precision at each distinct score, weighted by the recall that it adds, in (0, 1]."""
        added = np.diff(self.true, prepend=0)
        return float((added * self.true / (self.true + self.false)).sum() / self.true[-1])

    def at(self, threshold: float) -> AtThreshold:
        """What a threshold gives; it need not be one of the scores."""
        reached = int((self.thresholds >= threshold).sum())
        true, false = (int(c[reached - 1]) if reached else 0 for c in (self.true, self.false))
        positives = int(self.true[-1])
        return AtThreshold(
            threshold=threshold,
            precision=true / (true + false) if reached else None,
            recall=true / positives,
            f1=2 * true / (true + false + positives),
        )

    def best(self) -> AtThreshold:
        """The score that maximises F1 as a threshold; of several the highest."""
        f1 = 2 * self.true / (self.true + self.false + self.true[-1])
        return self.at(float(self.thresholds[f1.argmax()]))
