"""A data shard cut by bytes: what does not change is copied from tar to tar as ranges.

Only for local tars as capfilt writes them (plain headers, members of a key adjacent). Reading and
writing every member as a run does would be ten times slower than copying the file; the bytes that
come out are the same.
"""

from __future__ import annotations

import json
import mmap
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from capfilt.cut import Mask
from capfilt.errors import InputError
from capfilt.io.fields import output_json
from capfilt.io.files import local_path
from capfilt.io.members import split_name
from capfilt.io.tar import tar_key
from capfilt.record import Annotated, Sample
from capfilt.select.origin import original
from capfilt.shard import InputShard

_BLOCK = tarfile.BLOCKSIZE
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)  # of a header
_TEXTS = ("json", "txt")


class _Member(NamedTuple):
    key: str
    ext: str
    start: int  # of its header
    size: int
    stop: int  # of its padding


class NotPlainError(Exception):
    """A tar with long names, links or the like, which is for the readers and writers of a run."""


def splice(
    shard: InputShard,
    keys: list[str],
    kept: Mask,
    changed: Mask,
    annotate: Callable[[int, Sample], Annotated],
    path: Path,
    *,
    images: bool,
) -> None:
    """Write some samples of a data shard as another.

    Args:
        shard: A local tar of capfilt's.
        keys: Of its samples, in order.
        kept: Which of them to write, shape [len(keys)].
        changed: Which of those have other texts now, shape [len(keys)].
        annotate: Gives a sample (by number, with its metadata) its texts.
        path: Where the new tar goes.
        images: Whether to write more than texts.

    Raises:
        InputError: The shard is damaged, or its samples are others.
        NotPlainError: It cannot be cut like this.
    """
    source = local_path(shard.url)
    assert source is not None
    with source.open("rb") as file, path.open("wb") as out:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            writer = _Ranges(data, out.write)
            number = -1
            for number, members in enumerate(_samples(data, shard.url)):
                if number >= len(keys) or members[0].key != tar_key(keys[number]):
                    raise InputError(f"{shard.url}: {members[0].key!r} is not its ledger's sample")
                if not kept[number]:
                    continue
                wanted = [m for m in members if images or m.ext in _TEXTS]
                if not changed[number]:
                    for member in wanted:
                        writer.copy(member.start, member.stop)
                    continue
                new = _texts(data, members, annotate, number)
                for member in wanted:
                    if member.ext in _TEXTS:
                        writer.add(_renewed(data, member, new[member.ext]))
                    else:
                        writer.copy(member.start, member.stop)
            if number + 1 != len(keys):
                raise InputError(f"{shard.url}: {number + 1} samples, {len(keys)} in its ledger")
            writer.flush()
        end = 2 * _BLOCK
        out.write(bytes(end + -(out.tell() + end) % tarfile.RECORDSIZE))


class _Ranges:
    """Copies ranges of bytes, those that touch as one."""

    def __init__(self, data: mmap.mmap, write: Callable[[memoryview | bytes], int]) -> None:
        self._data = data
        self._write = write
        self._start = self._stop = 0

    def copy(self, start: int, stop: int) -> None:
        if start != self._stop:
            self.flush()
            self._start = start
        self._stop = stop

    def add(self, content: bytes) -> None:
        self.flush()
        self._write(content)

    def flush(self) -> None:
        if self._stop > self._start:
            with memoryview(self._data) as whole, whole[self._start : self._stop] as part:
                self._write(part)
        self._start = self._stop = -1


def _samples(data: mmap.mmap, url: str) -> Iterator[list[_Member]]:
    members: list[_Member] = []
    for member in _members(data, url):
        if members and member.key != members[0].key:
            yield members
            members = []
        members.append(member)
    if members:
        yield members


def _members(data: mmap.mmap, url: str) -> Iterator[_Member]:
    at = 0
    while True:
        header = data[at : at + _BLOCK]
        if len(header) < _BLOCK:
            raise InputError(f"{url}: a truncated tar: it stops at byte {len(data)}")
        if header[0] == 0:
            return
        try:
            name = header[: header.index(0)].decode("ascii")
            size = int(header[124:135], 8)
            parts = split_name(name)
        except ValueError:
            parts = None
        if parts is None or header[156:157] != tarfile.REGTYPE or header[345]:
            raise NotPlainError
        stop = at + _BLOCK + -(-size // _BLOCK) * _BLOCK
        yield _Member(*parts, at, size, stop)
        at = stop


def _texts(
    data: mmap.mmap,
    members: list[_Member],
    annotate: Callable[[int, Sample], Annotated],
    number: int,
) -> dict[str, bytes]:
    """The new content of a sample's members of text."""
    [found] = [m for m in members if m.ext == "json"]
    fields = json.loads(data[found.start + _BLOCK : found.start + _BLOCK + found.size])
    annotated = annotate(number, Sample(found.key, None, "", (), original(fields)))
    text = annotated.kept[0].content
    assert text is not None
    return {"json": output_json(annotated).encode(), "txt": text.encode()}


def _renewed(data: mmap.mmap, member: _Member, content: bytes) -> bytes:
    """A member with another content under its own header."""
    header = bytearray(data[member.start : member.start + _BLOCK])
    header[_SIZE] = b"%011o\0" % len(content)
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % _BLOCK)
