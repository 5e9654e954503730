"""The figures of a report, from the ledgers alone: one pass, shard by shard, on threads.

What is kept in memory does not grow with the dataset, but for 16 bytes a different text; of more
than `MOST_TEXTS` different ones a fair share is counted (see `Wordings`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capfilt.cut import SOURCES, Mask, Rows, ScoreName
from capfilt.io.ledger import read_ledger_columns
from capfilt.record import Source
from capfilt.report.scores import RANGES, Scores
from capfilt.report.wordings import Wordings, find_texts
from capfilt.select.origin import Origin
from capfilt.select.rows import COLUMNS, rows_of, tally_of
from capfilt.select.survey import each
from capfilt.select.wording import count_words, repeats
from capfilt.tally import Tally

SAMPLED_CAPTIONS = 100_000  # for phrases
MOST_WORDS = 40  # longer texts count as this long

Counts = npt.NDArray[np.int64]


@dataclass
class Figures:
    """Counts that add up over shards. The first axis is the source, as in `SOURCES`."""

    by: ScoreName  # the score of the curve
    tally: Tally = field(default_factory=Tally)
    scores: dict[ScoreName, Scores] = field(default_factory=dict)  # those that texts have
    words: Counts = field(default_factory=lambda: _zeros(len(SOURCES), MOST_WORDS + 1))
    repeating: Counts = field(default_factory=lambda: _zeros(len(SOURCES)))
    wordings: dict[Source, Wordings] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)  # a bounded sample of synthetic ones

    def add(self, rows: Rows, texts: Any, *, every: int) -> None:
        """Count a shard; take each so manieth synthetic caption into the sample."""
        self.tally.merge(tally_of(rows))
        for name in RANGES:
            self._add_scores(name, Scores.of(rows, name))
        seen = ~rows.failed & np.asarray(texts.is_valid())
        [captions] = np.nonzero(seen & (rows.source == SOURCES.index(Source.SYNTHETIC)))
        self.captions += texts.take(pa.array(captions[::every])).to_pylist()
        words, again = np.minimum(count_words(texts), MOST_WORDS), repeats(texts)
        for code, source in enumerate(SOURCES):
            mine = seen & (rows.source == code)
            self.words[code] += np.bincount(words[mine], minlength=MOST_WORDS + 1)
            self.repeating[code] += int(again[mine].sum())
            if mine.any():
                wordings = self.wordings.setdefault(source, Wordings())
                wordings.add(texts.filter(_arrow(mine)), rows.image[mine])

    def merge(self, other: Figures) -> None:
        """Add the counts of other shards."""
        self.tally.merge(other.tally)
        for name, scores in other.scores.items():
            self._add_scores(name, scores)
        self.words += other.words
        self.repeating += other.repeating
        self.captions += other.captions
        for source, wordings in other.wordings.items():
            self.wordings.setdefault(source, Wordings()).merge(wordings)

    def _add_scores(self, name: ScoreName, scores: Scores | None) -> None:
        if scores is not None:
            before = self.scores.get(name)
            self.scores[name] = scores if before is None else before + scores


def figures_of(origin: Origin, by: ScoreName) -> Figures:
    """Count every ledger of an OUTPUT.

    Raises:
        InputError: A ledger cannot be read.
    """
    counts = (commit.counts["texts"].get("synthetic", {}) for commit in origin.commits.values())
    every = max(1, -(-sum(sum(of.values()) for of in counts) // SAMPLED_CAPTIONS))

    def of_shard(shard_id: str) -> Figures:
        url = origin.ledger_url(shard_id)
        table = read_ledger_columns(url, [*COLUMNS, "text"])
        figures = Figures(by)
        if table.num_rows:
            figures.add(rows_of(table, url), table["text"].chunk(0), every=every)
        return figures

    total = Figures(by)
    for figures in each(origin.commits, of_shard):
        total.merge(figures)
    return total


def frequent_phrases(captions: Sequence[str], n: int) -> Counter[str]:
    """How many of some captions have each run of `n` words."""
    found: Counter[str] = Counter()
    for caption in captions:
        words = caption.lower().split()
        found.update({" ".join(words[i : i + n]) for i in range(len(words) - n + 1)})
    return found


def texts_of(origin: Origin, wanted: Collection[int]) -> dict[int, str]:
    """The texts of some hashes (`Wordings.most_frequent`); looks no further than it must."""

    def of_shard(shard_id: str) -> dict[int, str]:
        return find_texts(origin.texts(shard_id).to_pylist(), wanted)

    found: dict[int, str] = {}
    if wanted:
        for texts in each(origin.commits, of_shard):
            found.update(texts)
            if len(found) == len(set(wanted)):
                break
    return found


def _zeros(*shape: int) -> Counts:
    return np.zeros(shape, dtype=np.int64)


def _arrow(mask: Mask) -> Any:
    return pa.array(mask)
