"""What a Parquet file says of its rows and columns, read before Arrow is given the file.

Arrow's Python module ends the whole process, and raises nothing, where a footer of strangers
contradicts itself and is asked for a column's sizes, or is written anew (seen with pyarrow 26). So
the few numbers that tell a bomb are read here.

Source: the Parquet format, `parquet.thrift`; Thrift's compact protocol.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

_MAX_BYTES = 2**24  # 100 row groups of 30 columns are half a megabyte
_TAIL_BYTES = 2**16  # read at once, as Arrow does
_MAGIC = b"PAR1"
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)
_ROWS, _GROUPS, _COLUMNS, _METADATA = 3, 4, 1, 3  # of FileMetaData (two), RowGroup, ColumnChunk
_PATH, _VALUES, _SIZE, _STORED = 3, 5, 6, 7  # of ColumnMetaData


@dataclass(frozen=True)
class Chunk:
    """One column of one row group."""

    path: str
    values: int
    size_bytes: int  # once it is decompressed
    stored_bytes: int


@dataclass(frozen=True)
class Footer:
    rows: int
    chunks: tuple[Chunk, ...]


def read_footer(file: BinaryIO) -> Footer:
    """Read the footer of an open Parquet file; leaves the file at its beginning.

    Raises:
        ValueError: There is none, it is damaged, or too large for a shard's.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    if len(tail) < 12 or tail[-4:] != _MAGIC:
        raise ValueError("no Parquet magic bytes at its end")
    length = int.from_bytes(tail[-8:-4], "little")
    if length > min(_MAX_BYTES, size - 12):
        raise ValueError(f"a footer of {length} bytes")
    if length + 8 > len(tail):
        file.seek(size - 8 - length)
        tail = file.read(length + 8)
    file.seek(0)
    try:
        return _footer(_Compact(tail[-8 - length : -8]).struct())
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"a damaged footer ({error})") from None


def _footer(fields: dict[int, Any]) -> Footer:
    chunks = []
    for group in fields.get(_GROUPS, ()):
        for column in group.get(_COLUMNS, ()):
            facts = column.get(_METADATA, {})
            path = b".".join(facts.get(_PATH, ())).decode("utf-8", "replace")
            sizes = (int(facts.get(field, 0)) for field in (_VALUES, _SIZE, _STORED))
            chunks.append(Chunk(path, *sizes))
    return Footer(int(fields.get(_ROWS, 0)), tuple(chunks))


class _Compact:
    """Thrift's compact protocol, from which a struct becomes a dict of values by field number."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            fields[field] = self._value(head & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (_TRUE, _FALSE):  # the kind is the value
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._element(head & 15) for _ in range(count)]
        if kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            return [(self._element(kinds >> 4), self._element(kinds & 15)) for _ in range(count)]
        if kind == _STRUCT:
            return self.struct()
        if kind in _INTEGERS:
            return self._integer()
        raise ValueError(f"a damaged footer (a value of kind {kind})")

    def _element(self, kind: int) -> Any:
        return self._byte() == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)

    def _integer(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)  # the sign is in the last bit

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a damaged footer (a number of more than 64 bits)")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):  # a slice would not mind, and a list of them never end
            raise IndexError("it ends too soon")
        return self._data[self._at - count : self._at]
