"""One shard of a cut: its ledger with new verdicts, and the samples that keep a text.

Images are copied as they are, a local tar's as ranges of bytes (`capfilt.select.splice`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from capfilt.config import OutputConfig
from capfilt.cut import REASONS, SOURCES, Mask, Rows
from capfilt.io import files, outputs, publish
from capfilt.io.commits import Commit, InputRecord, OutputRecord, retire, write_commit
from capfilt.io.ledger import read_ledger_columns, rewrite_ledger
from capfilt.io.writer import open_writer
from capfilt.record import Annotated, Sample, Score, Text, Verdict
from capfilt.select.rows import tally_of
from capfilt.select.splice import NotPlainError, splice
from capfilt.select.survey import Survey
from capfilt.shard import Form, InputShard


@dataclass(frozen=True)
class Cutter:
    """Takes shards of an origin to their commits in another OUTPUT."""

    survey: Survey
    output_url: str
    output: OutputConfig
    fingerprint: str

    def process(self, shard: InputShard, *, redo: bool = False) -> Commit:
        """Cut one shard.

        Args:
            shard: A data shard of the origin.
            redo: An older commit of this shard is stale and goes before its files are replaced.

        Raises:
            InputError: The shard or its images cannot be read. Nothing of it is committed.
        """
        started = time.monotonic()
        root, origin = self.output_url, self.survey.origin
        data_path = outputs.data_path(shard.id, self.output)
        ledger_path = outputs.ledger_path(shard.id)
        if redo:
            retire(root, shard.id, {data_path, ledger_path})
        rows = self.survey.rows(shard.id)
        # Contexts end inside out: the data is published first, then the ledger.
        with (
            publish.publishing(files.join(root, ledger_path)) as ledger_file,
            publish.publishing(files.join(root, data_path)) as data_file,
        ):
            rewrite_ledger(
                origin.ledger_url(shard.id),
                ledger_file.path,
                verdict=_verdicts(rows),
                reason=[REASONS[code] for code in rows.reason.tolist()],
                changes={"fingerprint": self.fingerprint},
            )
            self._write_data(shard, rows, data_file)
        commit = Commit(
            shard=shard.id,
            input=InputRecord.of(shard),
            fingerprint=self.fingerprint,
            models=origin.commits[shard.id].models,
            counts=tally_of(rows).to_dict(),
            outputs={
                path: OutputRecord(file.published.size_bytes, file.published.sha256)
                for path, file in ((data_path, data_file), (ledger_path, ledger_file))
            },
            telemetry={"seconds": round(time.monotonic() - started, 3)},
        )
        write_commit(root, commit)
        return commit

    def _write_data(self, shard: InputShard, rows: Rows, data: publish.Publication) -> None:
        origin = self.survey.origin
        texts = _Texts.read(self.survey, shard.id, rows)
        before, kept = origin.rows(shard.id), rows.with_kept()
        present = before.with_kept()
        is_local_tar = shard.form is Form.TAR and files.local_path(shard.url) is not None
        if is_local_tar and not (kept & ~present).any():
            keys = origin.keys(shard.id)
            [numbers] = np.nonzero(present)
            changed = _changed(before, rows, rerank=self.survey.ranked_by != origin.ranked_by)
            try:
                splice(
                    shard,
                    [keys[number] for number in numbers],
                    kept[numbers],
                    changed[numbers],
                    lambda place, sample: texts.annotate(int(numbers[place]), sample),
                    data.path,
                    images=self.output.images,
                )
                return
            except NotPlainError:
                pass
        with open_writer(data.path, self.output) as writer:
            for number, sample in origin.samples(shard.id, kept):
                writer.write(texts.annotate(number, sample))


@dataclass(frozen=True)
class _Texts:
    """A shard's texts, ready to be put beside its samples."""

    rows: Rows
    columns: Mapping[str, list[Any]]  # key, index and text
    starts: npt.NDArray[np.int64]  # an image's rows are [starts[i], starts[i + 1])
    rank: npt.NDArray[np.float64] | None  # the score in whose order kept texts stand

    @classmethod
    def read(cls, survey: Survey, shard_id: str, rows: Rows) -> _Texts:
        url = survey.origin.ledger_url(shard_id)
        table = read_ledger_columns(url, ["key", "index", "text"])
        starts = np.r_[np.searchsorted(rows.image, np.arange(rows.images)), len(rows.image)]
        by = survey.ranked_by
        columns = {name: table[name].to_pylist() for name in table.column_names}
        return cls(rows, columns, starts, None if by is None else rows.score(by))

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


def _changed(before: Rows, now: Rows, *, rerank: bool) -> Mask:
    """Per image: whether it keeps other texts than before, or in another order."""
    changed = np.zeros(now.images, dtype=bool)
    changed[now.image[before.open != now.open]] = True
    if rerank:
        changed |= np.bincount(now.image[now.open], minlength=now.images) > 1
    return changed


def _verdicts(rows: Rows) -> list[str]:
    codes = np.where(rows.open, 0, np.where(rows.failed, 2, 1))
    names = [str(verdict) for verdict in (Verdict.KEPT, Verdict.DROPPED, Verdict.FAILED)]
    return [names[code] for code in codes.tolist()]


def _score(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)
