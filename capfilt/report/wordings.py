"""How many images have each text, in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

MOST_TEXTS = 2**24  # different ones that are counted: 256 MB
_MOST_ALIKE = 1000  # texts of one count that are looked up, to show the first few
_SHARED_BY = 10  # a caption of more images than this says little of any


@dataclass
class Wordings:
    """Counts by a text's hash. `share` is 1 while all texts are counted.

    Of too many different texts, those stay whose hash ends in zeros: a fair draw of texts, each
    with its full count, so shares are still what they would be, but for chance.
    """

    hashes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    zeros: int = 0  # bits that end a hash that counts
    _waiting: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of all texts, the expected share that is counted."""
        return 0.5**self.zeros

    def add(self, texts: Any, images: npt.NDArray[np.int64]) -> None:
        """Count the images that have each text of an Arrow column.

        Args:
            texts: N of them, none null.
            images: The image of each text, rising, shape [N].
        """
        encoded = pc.dictionary_encode(texts)
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        if (images[1:] == images[:-1]).any():  # an image may have a text twice
            codes = np.unique(images * len(names) + codes) % len(names)
        hashes = np.fromiter(map(hash, names), dtype=np.int64, count=len(names))
        self._take(hashes, np.bincount(codes, minlength=len(names)))

    def merge(self, other: Wordings) -> None:
        """Add another's counts."""
        while self.zeros < other.zeros:
            self._halve()
        other.settle()
        self._take(other.hashes, other.counts)

    def settle(self) -> None:
        """Bring the counts of what was added last together with the others."""
        if not self._waiting:
            return
        hashes = np.concatenate([self.hashes, *(part for part, _ in self._waiting)])
        counts = np.concatenate([self.counts, *(part for _, part in self._waiting)])
        self._waiting = []
        order = np.argsort(hashes, kind="stable")
        hashes, counts = hashes[order], counts[order]
        if len(hashes):
            [starts] = np.nonzero(np.r_[True, hashes[1:] != hashes[:-1]])
            self.hashes, self.counts = hashes[starts], np.add.reduceat(counts, starts)
        while len(self.hashes) > MOST_TEXTS:
            self._halve()

    def shared(self, by: int = _SHARED_BY) -> float:
        """The share of texts that more than `by` images have, in [0, 1]."""
        self.settle()
        total = int(self.counts.sum())
        return int(self.counts[self.counts > by].sum()) / total if total else 0.0

    def different(self) -> float:
        """Different texts over all texts, in [0, 1]."""
        self.settle()
        total = int(self.counts.sum())
        return len(self.hashes) / total if total else 0.0

    def most_frequent(self, count: int) -> dict[int, int]:
        """The hashes that come most often, more than once, with their counts.

        There may be more than `count`: all that come as often as the last, since hashes are others
        in each process and which of the texts come first must not be; or, where those are too
        many, fewer: none of them.
        """
        self.settle()
        least = 2
        if len(self.counts) > count:
            least = max(least, int(np.partition(self.counts, -count)[-count]))
        wanted = self.counts >= least
        if np.count_nonzero(wanted) > _MOST_ALIKE:
            wanted = self.counts > least
        found = zip(self.hashes[wanted].tolist(), self.counts[wanted].tolist(), strict=True)
        return dict(found)

    def _take(self, hashes: Any, counts: Any) -> None:
        wanted = hashes & ((1 << self.zeros) - 1) == 0
        self._waiting.append((hashes[wanted], counts[wanted]))
        if sum(len(part) for part, _ in self._waiting) > MOST_TEXTS // 4:
            self.settle()

    def _halve(self) -> None:
        self.zeros += 1
        wanted = self.hashes & ((1 << self.zeros) - 1) == 0
        self.hashes, self.counts = self.hashes[wanted], self.counts[wanted]
        waiting, self._waiting = self._waiting, []
        for hashes, counts in waiting:
            self._take(hashes, counts)


def find_texts(texts: Iterable[str | None], wanted: Collection[int]) -> dict[int, str]:
    """The texts that have some hashes, by hash."""
    hashes = set(wanted)
    return {hash(text): text for text in texts if hash(text) in hashes and text is not None}
