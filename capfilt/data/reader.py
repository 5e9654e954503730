"""Reading samples of any shard by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from threading import Lock

from capfilt.config import ImageConfig
from capfilt.data.parquetrange import ParquetRange
from capfilt.data.tarrange import TarRange
from capfilt.io.pairs import read_pairs
from capfilt.record import Sample
from capfilt.shard import Form, InputShard

LIMITS = ImageConfig()
# Shards whose footer or offsets are kept, 100 KB each: more than all lanes of a rank.
_REMEMBERED = 512


class RangeReader:
    """Reads parts of one shard; several threads may ask, one at a time is served."""

    def __init__(self, shard: InputShard, *, metadata: bool) -> None:
        self._shard = shard
        self._lock = Lock()
        self._range: TarRange | ParquetRange | None = None
        if shard.form is Form.TAR:
            self._range = TarRange(shard, LIMITS, metadata)
        elif shard.form is Form.PARQUET:
            self._range = ParquetRange(shard, LIMITS)

    def read(self, numbers: Sequence[int]) -> list[Sample]:
        """Samples by rising numbers.

        Raises:
            InputError: The shard cannot be read or does not have that many samples.
        """
        if self._range is None:
            return self._read_pairs(numbers)
        with self._lock:
            return self._range.read(numbers)

    def _read_pairs(self, numbers: Sequence[int]) -> list[Sample]:
        found: list[Sample] = []
        # Numbers that follow one another are one slice of the captions file.
        for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
            run = [number for _, number in group]
            start = self._shard.start + run[0]
            part = replace(self._shard, start=start, stop=start + len(run))
            found += read_pairs(part, LIMITS)
        return found


@lru_cache(maxsize=_REMEMBERED)
def _reader(shard: InputShard, metadata: bool) -> RangeReader:
    return RangeReader(shard, metadata=metadata)


def read_numbers(shard: InputShard, numbers: Sequence[int], *, metadata: bool) -> list[Sample]:
    """Samples of a shard by rising numbers; raises as `RangeReader.read`.

    What was found out about a shard is remembered by the process. Without `metadata`, a tar's
    `.json` is read only where there is no `.txt`.
    """
    return _reader(shard, metadata).read(numbers)
