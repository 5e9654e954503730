"""One shard of a cut: its ledger with new verdicts, and the samples that keep a text.

Images are copied as they are, those of a tar without reading more (`capfilt.select.splice`), and a
tar that loses nothing as a whole.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capfilt.config import OutputConfig
from capfilt.cut import REASONS, Mask, Rows
from capfilt.errors import InputError
from capfilt.io import files, outputs, publish
from capfilt.io.commits import Commit, InputRecord, OutputRecord, retire, write_commit
from capfilt.io.lease import Fence
from capfilt.io.ledger import rewrite_ledger
from capfilt.io.writer import open_writer
from capfilt.record import Verdict
from capfilt.select.rows import tally_of
from capfilt.select.splice import NotPlainError, splice
from capfilt.select.survey import Survey
from capfilt.select.texts import ShardTexts
from capfilt.shard import Form, InputShard


@dataclass(frozen=True)
class Cutter:
    """Takes shards of an origin to their commits in another OUTPUT."""

    survey: Survey
    output_url: str
    output: OutputConfig
    fingerprint: str
    fence: Fence

    def process(self, shard: InputShard, *, redo: bool = False) -> Commit:
        """Cut one shard.

        Args:
            shard: A data shard of the origin.
            redo: An older commit of this shard is stale and goes before its files are replaced.

        Raises:
            InputError: The shard or its images cannot be read. Nothing of it is committed.
            CommitError: It cannot be published, or another has taken the output over.
        """
        started = time.monotonic()
        root, origin = self.output_url, self.survey.origin
        data_path = outputs.data_path(shard.id, self.output)
        ledger_path = outputs.ledger_path(shard.id)
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
            self.fence.check()
            if redo:
                retire(root, shard.id, {data_path, ledger_path})
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
        self.fence.check()  # publishing may have taken long, and the process been frozen
        write_commit(root, commit)
        return commit

    def _write_data(self, shard: InputShard, rows: Rows, data: publish.Publication) -> None:
        origin = self.survey.origin
        before, kept = origin.rows(shard.id), rows.with_kept()
        present = before.with_kept()
        changed = _changed(before, rows, rerank=self.survey.ranked_by != origin.ranked_by)
        is_same = self.output == origin.output and bool((kept == present).all())
        if shard.form is Form.TAR and is_same and not changed[kept].any():
            data.sha256 = _copy(shard, origin.data_record(shard.id), data.path)
            return
        texts = ShardTexts.read(origin, shard.id, rows, self.survey.ranked_by)
        if shard.form is Form.TAR and not (kept & ~present).any():
            keys = origin.keys(shard.id)
            [numbers] = np.nonzero(present)
            try:
                data.sha256 = splice(
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


def _copy(shard: InputShard, record: OutputRecord, path: Path) -> str:
    """Copy a data shard as a whole.

    Returns:
        Its sha256 by the commit that it has: to compute it anew would take as long again, and pass
        off damage that `verify` finds like this.

    Raises:
        InputError: It cannot be read, or is cut.
    """
    copied = 0
    with path.open("wb") as out:
        for chunk in files.read_chunks(shard.url):
            copied += out.write(chunk)
    if copied != record.size_bytes:
        raise InputError(
            f"{shard.url}: {copied} bytes, but {record.size_bytes} when it was committed; "
            "run `verify`"
        )
    return record.sha256


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
