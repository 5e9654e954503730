"""How a score is distributed: exact counts in fine steps, from which a page takes coarser ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from capfilt.cut import SOURCES, Rows, ScoreName

RANGES: Mapping[ScoreName, tuple[float, float]] = {"match_prob": (0, 1), "similarity": (-1, 1)}
_PER_UNIT = 1000  # fine steps
_STEPS = (1, 2, 5, 10, 20, 50)  # fine steps that a page's step may have
_RARE = 0.001  # a source's share of texts at either end that no axis is made longer for

Counts = npt.NDArray[np.int64]


@dataclass
class Scores:
    """Counts of texts by source, and of images by their best text.

    Place k counts the scores in [edges[k], edges[k + 1]), the last place those at the last edge.
    """

    edges: npt.NDArray[np.float64]  # [K], the very numbers that a threshold of a command line is
    texts: Counts  # [3, K]
    images: Counts  # [K]

    @classmethod
    def of(cls, rows: Rows, name: ScoreName) -> Self | None:
        """Count a shard's texts; None where none has this score."""
        low, high = RANGES[name]
        edges = np.linspace(low, high, round((high - low) * _PER_UNIT) + 1).round(3)
        score = rows.score(name)
        scored = ~np.isnan(score)
        if not scored.any():
            return None
        places = np.maximum(np.searchsorted(edges, score, side="right") - 1, 0)
        texts = np.zeros((len(SOURCES), len(edges)), np.int64)
        for code in range(len(SOURCES)):
            mine = places[scored & (rows.source == code)]
            texts[code] = np.bincount(mine, minlength=len(edges))
        [starts] = np.nonzero(np.r_[True, rows.image[1:] != rows.image[:-1]])
        best = np.maximum.reduceat(np.where(scored, places, -1), starts)
        return cls(edges, texts, np.bincount(best[best >= 0], minlength=len(edges)))

    def __add__(self, other: Scores) -> Scores:
        """The counts of both."""
        return Scores(self.edges, self.texts + other.texts, self.images + other.images)

    def grid(self, most: int) -> list[int]:
        """At most `most` equal steps over where the texts of each source lie, as places of edges.

        The steps are round numbers, as fine as they can be.
        """
        shares = np.cumsum(self.texts, axis=1) / np.maximum(self.texts.sum(axis=1), 1)[:, None]
        shares = shares[shares[:, -1] > 0]
        last = len(self.edges) - 1
        low = min(int((shares <= _RARE).sum(axis=1).min()), last - 1)
        high = min(int((shares < 1 - _RARE).sum(axis=1).max()) + 1, last)
        step = next(step for step in _STEPS if -(-high // step) - low // step <= most)
        return list(range(low // step * step, -(-high // step) * step + 1, step))

    def between(self, grid: list[int]) -> Counts:
        """Texts of each source in each step; what lies beyond is in the first and in the last."""
        before = np.concatenate([np.zeros((len(SOURCES), 1), np.int64), self.texts], axis=1)
        before = np.cumsum(before, axis=1)[:, grid]
        before[:, 0], before[:, -1] = 0, self.texts.sum(axis=1)
        return np.diff(before, axis=1)

    def texts_from(self) -> Counts:
        """Texts of each source whose score reaches each edge, shape [3, K]."""
        return np.cumsum(self.texts[:, ::-1], axis=1)[:, ::-1]

    def images_from(self) -> Counts:
        """Images with a text whose score reaches each edge, shape [K]."""
        return np.cumsum(self.images[::-1])[::-1]
