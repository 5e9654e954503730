"""The ledger: every text of a shard with its scores and verdict, one Parquet row each.

It is what a later selection reads instead of using the GPU again, so nothing is left out: dropped
texts, texts that were never scored, and every text of a sample that failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.store import storage_errors
from capfilt.record import Annotated, Text, Verdict

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int16(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("match_prob", pa.float32()),
        pa.field("similarity", pa.float32()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)
_ROWS_PER_GROUP = 8192  # about 1 MB of captions


class LedgerWriter:
    """Writes a shard's ledger, sample by sample. Same samples, same bytes."""

    def __init__(self, file: Path | str | BinaryIO, *, metadata: Mapping[str, str]) -> None:
        """Begin a ledger.

        Args:
            file: A local path or an open file.
            metadata: What the run was (seed, models, fingerprint), kept in the file's metadata.
        """
        self._rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._schema = SCHEMA.with_metadata({str(k): str(v) for k, v in metadata.items()})
        self._writer = _parquet_writer(str(file) if isinstance(file, Path) else file, self._schema)

    def write(self, annotated: Annotated) -> None:
        """Add every text of a sample. A failed sample's texts fail for the sample's problem."""
        for text in annotated.texts:
            self._add(annotated, text)
        if len(self._rows["key"]) >= _ROWS_PER_GROUP:
            self._flush()

    def _add(self, annotated: Annotated, text: Text) -> None:
        verdict, reason = text.verdict, text.reason
        if annotated.verdict is Verdict.FAILED:
            verdict, reason = Verdict.FAILED, annotated.sample.problem
        if verdict is None:
            raise ValueError(f"{annotated.sample.key}: a text has no verdict")
        row = (
            annotated.sample.key,
            str(text.source),
            text.index,
            text.content,
            text.score.match_prob,
            text.score.similarity,
            str(verdict),
            None if reason is None else str(reason),
        )
        for column, value in zip(self._rows.values(), row, strict=True):
            column.append(value)

    def _flush(self) -> None:
        rows = len(self._rows["key"])
        full = rows - rows % _ROWS_PER_GROUP or rows
        arrays = [pa.array(self._rows[f.name][:full], type=f.type) for f in self._schema]
        self._writer.write_table(
            pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=_ROWS_PER_GROUP
        )
        self._rows = {name: column[full:] for name, column in self._rows.items()}

    def close(self) -> None:
        """Write what is left and the file's footer."""
        while self._rows["key"]:
            self._flush()
        self._writer.close()

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_ledger(url: str, *, batch_size: int = _ROWS_PER_GROUP) -> Iterator[Any]:
    """The rows of a ledger in their order, as Arrow record batches of `SCHEMA`.

    Raises:
        InputError: The file is missing or no ledger.
    """
    with files.open_read(url, seekable=True) as file, storage_errors(url):
        try:
            parquet = pq.ParquetFile(file)
            missing = set(SCHEMA.names) - set(parquet.schema_arrow.names)
            if missing:
                raise InputError(f"{url}: not a ledger: no column {', '.join(sorted(missing))}")
            yield from parquet.iter_batches(batch_size=batch_size, columns=SCHEMA.names)
        except pa.ArrowException as error:
            raise InputError(f"{url}: not a readable ledger: {error}") from error


def read_ledger_columns(url: str, columns: Sequence[str]) -> Any:
    """Some columns of a whole ledger as an Arrow table; source, verdict and reason as dictionaries.

    Raises:
        InputError: The file is missing or no ledger.
    """
    with files.open_read(url, seekable=True) as file, storage_errors(url):
        try:
            named = ["source", "verdict", "reason"]
            table = pq.ParquetFile(file, read_dictionary=named).read(columns=list(columns))
        except pa.ArrowException as error:
            raise InputError(f"{url}: not a readable ledger: {error}") from error
    missing = set(columns) - set(table.column_names)
    if missing:
        raise InputError(f"{url}: not a ledger: no column {', '.join(sorted(missing))}")
    return table.unify_dictionaries().combine_chunks()


def rewrite_ledger(
    url: str,
    file: Path,
    *,
    verdict: Sequence[str],
    reason: Sequence[str | None],
    changes: Mapping[str, str],
) -> None:
    """Write a ledger again with other verdicts. The same verdicts give the same row groups.

    Args:
        url: The ledger.
        file: Where the new one goes.
        verdict: Of every row.
        reason: Of every row.
        changes: Metadata that differ.

    Raises:
        InputError: The ledger cannot be read.
    """
    schema = SCHEMA.with_metadata({**read_ledger_metadata(url), **changes})
    at = 0
    with _parquet_writer(str(file), schema) as writer:
        for batch in read_ledger(url):
            rows = slice(at, at + batch.num_rows)
            columns = {name: batch.column(name) for name in SCHEMA.names}
            columns["verdict"] = pa.array(verdict[rows], pa.string())
            columns["reason"] = pa.array(reason[rows], pa.string())
            table = pa.Table.from_arrays(list(columns.values()), schema=schema)
            writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
            at += batch.num_rows


def _parquet_writer(file: Any, schema: Any) -> Any:
    return pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=["source", "verdict", "reason"]
    )


def read_ledger_metadata(url: str) -> dict[str, str]:
    """What the writer of a ledger said of its run.

    Raises:
        InputError: The file is missing or no Parquet file.
    """
    with files.open_read(url, seekable=True) as file, storage_errors(url):
        try:
            metadata = pq.read_schema(file).metadata or {}
        except pa.ArrowException as error:
            raise InputError(f"{url}: not a readable ledger: {error}") from error
    return {key.decode(): value.decode() for key, value in metadata.items()}
