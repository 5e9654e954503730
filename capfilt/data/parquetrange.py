"""Samples of a Parquet shard by their row numbers, whole row groups at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.parquet import CAPTION_COLUMNS, image_column, samples_of
from capfilt.io.store import storage_errors
from capfilt.record import Sample
from capfilt.shard import InputShard


class ParquetRange:
    """Reads samples by row number. The footer is read once, no file stays open."""

    def __init__(self, shard: InputShard, limits: ImageConfig) -> None:
        self._shard = shard
        self._limits = limits

    @property
    def rows_per_group(self) -> int:
        """Of the first row group."""
        return int(self._footer.row_group(0).num_rows) if self._footer.num_row_groups else 1

    def usable(self) -> list[bool]:
        """For each row whether img2dataset has its image; rows of other makers are taken as such.

        Raises:
            InputError: The file is missing, damaged or has no image column.
        """
        if "status" not in self._footer.schema.names:
            return [True] * int(self._footer.num_rows)
        column = self._table(range(self._footer.num_row_groups), ["status"]).column("status")
        return [status == "success" for status in column.to_pylist()]

    def read(self, numbers: Sequence[int]) -> list[Sample]:
        """Samples by rising row numbers.

        Raises:
            InputError: The file is missing or damaged.
        """
        first, last = np.searchsorted(self._ends, [numbers[0], numbers[-1]], side="right")
        if last >= len(self._ends):
            raise InputError(
                f"{self._shard.url}: has fewer rows than were counted: another file than before"
            )
        table = self._table(range(first, last + 1), self._columns)
        before = int(self._ends[first - 1]) if first else 0
        rows = table.take([number - before for number in numbers])
        images = image_column(rows.schema, self._shard.url)
        batches = rows.combine_chunks().to_batches()
        if "key" not in rows.schema.names:  # then a row's number is its key
            batches = [batch.slice(i, 1) for batch in batches for i in range(batch.num_rows)]
        found: list[Sample] = []
        for batch in batches:
            found += samples_of(batch, images, numbers[len(found)], self._shard, self._limits)
        return found

    @cached_property
    def _ends(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        groups = range(self._footer.num_row_groups)
        return np.cumsum([self._footer.row_group(i).num_rows for i in groups], dtype=np.int64)

    @cached_property
    def _columns(self) -> list[str]:
        schema = self._footer.schema.to_arrow_schema()
        names = [
            "key",
            "status",
            "captions",
            *CAPTION_COLUMNS,
            image_column(schema, self._shard.url),
        ]
        return [name for name in schema.names if name in names]

    @cached_property
    def _footer(self) -> Any:
        with self._open() as file, storage_errors(self._shard.url):
            try:
                return pq.read_metadata(file)
            except (pa.ArrowException, ValueError) as error:
                raise self._unreadable(error) from error

    def _table(self, groups: range, columns: list[str]) -> Any:
        with self._open() as file, storage_errors(self._shard.url):
            try:
                parquet = pq.ParquetFile(file, metadata=self._footer, pre_buffer=True)
                return parquet.read_row_groups(list(groups), columns=columns, use_threads=False)
            except (pa.ArrowException, ValueError) as error:
                raise self._unreadable(error) from error

    def _open(self) -> Any:
        return files.open_read(self._shard.url, seekable=True)

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"{self._shard.url}: not a readable Parquet file ({error})")
