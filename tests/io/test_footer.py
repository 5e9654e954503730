from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io.footer import read_footer
from capfilt.io.parquet import read_parquet
from capfilt.shard import Form, InputShard
from tests.fuzz.readers import parquet, wide_parquet


def many_columns() -> bytes:
    """A footer that is longer than what is read at first, of several row groups."""
    buffer = io.BytesIO()
    table = pa.table({f"column {i}": [i, i + 1, i + 2] for i in range(300)})
    pq.write_table(table, buffer, row_group_size=1)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [parquet, wide_parquet, many_columns])
def test_footer_says_what_arrow_says(make: Any) -> None:
    data = make()
    theirs = pq.ParquetFile(io.BytesIO(data)).metadata
    found = read_footer(io.BytesIO(data))
    assert found.rows == theirs.num_rows
    columns = [
        theirs.row_group(group).column(place)
        for group in range(theirs.num_row_groups)
        for place in range(theirs.num_columns)
    ]
    assert [(c.path, c.values, c.size_bytes, c.stored_bytes) for c in found.chunks] == [
        (c.path_in_schema, c.num_values, c.total_uncompressed_size, c.total_compressed_size)
        for c in columns
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no Parquet magic bytes"),
        (b"PAR1" + b"\0" * 20, "no Parquet magic bytes"),
        (b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "a footer of 2147483647 bytes"),
        (b"PAR1" + b"\x49\x1c" + b"\2\0\0\0" + b"PAR1", "a damaged footer"),  # it just ends
        (b"PAR1" + b"\x45\2\0" + b"\3\0\0\0" + b"PAR1", "a damaged footer"),  # a number of groups
        (b"PAR1" + b"\x1d\0\0" + b"\3\0\0\0" + b"PAR1", "a value of kind 13"),
        (b"PAR1" + b"\x16" + b"\xff" * 12 + b"\0" + b"\x0e\0\0\0" + b"PAR1", "more than 64 bits"),
        (b"PAR1" + b"\x1c" * 5000 + b"\x88\x13\0\0" + b"PAR1", "a damaged footer"),  # nested
    ],
)
def test_damaged_footer_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_footer(io.BytesIO(data))
    (tmp_path / "0").write_bytes(data)
    shard = InputShard("0", Form.PARQUET, str(tmp_path / "0"), 0, "")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        list(read_parquet(shard, ImageConfig()))
