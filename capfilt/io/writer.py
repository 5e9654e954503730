"""Data shards out: what a run writes for training, in either form."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.config import OutputConfig
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.members import split_name
from capfilt.io.parquet import ParquetWriter
from capfilt.io.store import storage_errors
from capfilt.io.tar import TarWriter
from capfilt.record import Annotated


class DataWriter(Protocol):
    """Takes the samples of one shard that keep a text, in order. Same samples, same bytes."""

    def write(self, annotated: Annotated) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def open_writer(file: Path, output: OutputConfig, _shard: object = None) -> DataWriter:
    """Begin a data shard.

    Args:
        file: A local path, usually of a publication.
        output: Which form, and whether with images.
        _shard: Its input, which has no say in the form any more.
    """
    if output.format == "parquet":
        return ParquetWriter(file, images=output.images)
    return TarWriter(file, images=output.images)


def count_samples(url: str) -> int:
    """How many samples a data shard that capfilt wrote holds.

    Raises:
        InputError: The file is missing or damaged.
    """
    is_parquet = url.endswith(".parquet")
    with files.open_read(url, seekable=is_parquet) as file, storage_errors(url):
        try:
            if is_parquet:
                return int(pq.read_metadata(file).num_rows)
            with tarfile.open(fileobj=file, mode="r|") as tar:
                names = (split_name(member.name) for member in tar)
                return sum(name is not None and name[1] == "json" for name in names)
        except (tarfile.TarError, pa.ArrowException) as error:
            raise InputError(f"{url}: a damaged data shard ({error})") from error
