"""A shard's texts with their verdicts, to be put beside its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from capfilt.cut import REASONS, SOURCES, Rows, ScoreName
from capfilt.io.ledger import read_ledger_columns
from capfilt.record import Annotated, Sample, Score, Text, Verdict
from capfilt.select.origin import Origin


@dataclass(frozen=True)
class ShardTexts:
    """A shard's texts, ready to be put beside its samples."""

    rows: Rows
    columns: Mapping[str, list[Any]]  # key, index and text
    starts: npt.NDArray[np.int64]  # an image's rows are [starts[i], starts[i + 1])
    rank: npt.NDArray[np.float64] | None  # the score in whose order kept texts stand

    @classmethod
    def read(
        cls, origin: Origin, shard_id: str, rows: Rows, ranked_by: ScoreName | None
    ) -> ShardTexts:
        """Read a shard's texts; `rows` are its verdicts, perhaps new ones.

        Raises:
            InputError: The ledger cannot be read.
        """
        table = read_ledger_columns(origin.ledger_url(shard_id), ["key", "index", "text"])
        starts = np.r_[np.searchsorted(rows.image, np.arange(rows.images)), len(rows.image)]
        columns = {name: table[name].to_pylist() for name in table.column_names}
        return cls(rows, columns, starts, None if ranked_by is None else rows.score(ranked_by))

    def annotate(self, number: int, sample: Sample) -> Annotated:
        """A sample, by its number in the ledger, with its texts and their new verdicts."""
        start, stop = int(self.starts[number]), int(self.starts[number + 1])
        texts = tuple(self._text(row) for row in range(start, stop))
        kept = [i for i, text in enumerate(texts) if text.verdict is Verdict.KEPT]
        if self.rank is not None:
            rank = self.rank[start:stop].tolist()
            kept.sort(key=lambda i: -rank[i])
        sample = replace(sample, key=self.columns["key"][start], texts=texts)
        return Annotated(sample, texts, tuple(texts[i] for i in kept), Verdict.KEPT)

    def _text(self, row: int) -> Text:
        rows = self.rows
        reason = REASONS[int(rows.reason[row])]
        return Text(
            SOURCES[int(rows.source[row])],
            self.columns["index"][row],
            self.columns["text"][row],
            Score(_score(rows.match_prob[row]), _score(rows.similarity[row])),
            Verdict.KEPT if reason is None else Verdict.DROPPED,
            reason,
        )


def _score(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


def kept_samples(origin: Origin, shard_id: str) -> Iterator[Annotated]:
    """The samples of a shard that keep a text, with their texts, in order.

    Raises:
        InputError: The shard or its ledger cannot be read.
    """
    rows = origin.rows(shard_id)
    texts = ShardTexts.read(origin, shard_id, rows, origin.ranked_by)
    for number, sample in origin.samples(shard_id, rows.with_kept()):
        yield texts.annotate(number, sample)
