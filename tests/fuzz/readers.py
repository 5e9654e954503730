"""What holds of a shard of any bytes: it is read, or refused by one line for people.

What was read can be written: keys are UTF-8 and fields are JSON. `python -m tests.fuzz.readers
tar FILE...` looks at files.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.config import ImageConfig
from capfilt.errors import CapfiltError
from capfilt.io.fields import to_json
from capfilt.io.reader import read_samples
from capfilt.shard import Form, InputShard

LIMITS = ImageConfig(max_bytes=10_000)


def check_read(file: Path, form: Form) -> bool:
    """Read a shard; False where it is refused.

    Raises:
        Exception: Any but an error for people is a bug.
    """
    shard = InputShard("0", form, str(file), 0, "")
    try:
        for sample in read_samples(shard, LIMITS):
            assert sample.texts
            assert sample.image is None or len(sample.image) <= LIMITS.max_bytes
            sample.key.encode()
            json.loads(to_json(sample.metadata).encode())
    except CapfiltError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return False
    return True


def tar() -> bytes:
    """A small shard of two samples, one of them with a long name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as out:
        for name, data in (("1.jpg", b"x" * 600), ("1.json", b'{"caption": "a"}'), ("é.jpg", b"y")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return buffer.getvalue()[:8192]  # tars end in blocks of 10,240 bytes, most of them zeros


def gnu_tar() -> bytes:
    """Of GNU's form, with a link, a folder and a name that needs a header of its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as out:
        for name, kind in (("a/" * 60 + "1.jpg", b"0"), ("2.jpg", b"2"), ("d", b"5")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.jpg"
            member.size = 4 if kind == b"0" else 0
            out.addfile(member, io.BytesIO(b"abcd"))
    return buffer.getvalue()[:8192]


def parquet() -> bytes:
    """A small shard as img2dataset writes it."""
    table = {
        "key": ["1", "2"],
        "jpg": [b"x" * 50, None],
        "caption": ["a dog", None],
        "n": [[1], []],
    }
    return _parquet(pa.table(table))


def wide_parquet() -> bytes:
    """With columns of many types, the image in a struct."""
    table = {
        "image": [{"bytes": b"\x89PNG", "path": "a.png"}, None],
        "text": pa.array(["a", "b"]).dictionary_encode(),
        "when": pa.array([datetime(2020, 1, 1), None], pa.timestamp("ns")),
        "price": [Decimal("1.50"), None],
        "ratio": [1.5, float("nan")],
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
        "status": ["success", "failed_to_download"],
    }
    return _parquet(pa.table(table), compression="zstd", version="1.0")


def _parquet(table: pa.Table, compression: str = "snappy", version: str = "2.6") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression, version=version)
    return buffer.getvalue()


SEEDS = {Form.TAR: (tar(), gnu_tar()), Form.PARQUET: (parquet(), wide_parquet())}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        check_read(Path(name), Form(sys.argv[1]))
        print(Path(name).name, flush=True)  # noqa: T201
