"""Samples of a WebDataset tar by their number, in few reads of byte ranges.

`capfilt.io.tar` streams a whole tar with every check. Here a reader comes back for the next some of
its samples, again and again, so where each sample begins is remembered as it is found: from the
start of the tar, once, by its headers alone where the samples are not wanted.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.members import IMAGE_EXTS, Members, readable, split_name
from capfilt.io.store import local_path
from capfilt.record import Sample
from capfilt.shard import InputShard

_BLOCK = tarfile.BLOCKSIZE
_READ_BYTES = 2**16  # at once at least
# When headers alone are wanted: a disk is asked for little, a store not too often.
_HEADERS_BYTES_LOCAL, _HEADERS_BYTES_REMOTE = 2**14, 2**23
_WANTED = frozenset({*IMAGE_EXTS, "json", "txt"})
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class _Header(NamedTuple):
    name: str
    is_file: bool
    data: int  # where the content begins
    size: int

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.data + -(-self.size // _BLOCK) * _BLOCK


@dataclass
class TarRange:
    """Reads samples that have an image, numbered from 0. Not to be shared by threads.

    With `metadata` a sample has what its `.json` says; without, its image and its text only.
    """

    shard: InputShard
    limits: ImageConfig
    metadata: bool = True

    def __post_init__(self) -> None:
        # Where every sample found so far begins, and where to look for the next one.
        self._starts = array("q", [0])
        self._bytes_each = _READ_BYTES
        self._window = _Window(self.shard.url)
        self._behind: tuple[int, _Header | None] = (-1, None)  # the header read last, and where
        is_local = local_path(self.shard.url) is not None
        self._headers_bytes = _HEADERS_BYTES_LOCAL if is_local else _HEADERS_BYTES_REMOTE

    def count(self) -> int:
        """How many samples the tar holds; reads its headers.

        Raises:
            InputError: The tar is missing, truncated or damaged.
        """
        self._window.ahead = self._headers_bytes
        while self._sample(len(self._starts) - 1, wanted=False):
            pass
        self._window.forget()
        return len(self._starts) - 1

    def read(self, numbers: Sequence[int]) -> list[Sample]:
        """Samples by rising numbers.

        Raises:
            InputError: The tar is missing or damaged, or does not have that many samples.
        """
        first, last = numbers[0], numbers[-1]
        self._skip_to(first)
        samples = {}
        for number in range(first, last + 1):
            self._window.ahead = (last + 1 - number) * self._bytes_each + _READ_BYTES
            sample = self._sample(number, wanted=number in numbers)
            if sample is None:
                raise self._too_short()
            samples[number] = sample
        self._bytes_each = (self._starts[last + 1] - self._starts[first]) // len(samples)
        self._window.forget()
        return [samples[number] for number in numbers]

    def _skip_to(self, number: int) -> None:
        self._window.ahead = self._headers_bytes
        while len(self._starts) <= number:
            if self._sample(len(self._starts) - 1, wanted=False) is None:
                raise self._too_short()

    def _too_short(self) -> InputError:
        return InputError(
            f"{self.shard.url}: has {len(self._starts) - 1} images, fewer than were counted: "
            "truncated, or another file than before"
        )

    def _sample(self, number: int, *, wanted: bool) -> Sample | None:
        """A sample; None at the end. One that is not wanted has no content."""
        at = self._starts[number]
        members: Members | None = None
        json: _Header | None = None
        has_image = has_text = False
        while (header := self._header(at)) is not None:
            parts = split_name(header.name) if header.is_file else None
            if parts is not None:
                key, ext = readable(parts[0])[0], readable(parts[1])[0]
                if members is None or key != members.key:
                    if members is not None and has_image:
                        break
                    members, json = Members(key, self.limits, self.shard.source), None
                    has_image = has_text = False
                has_image = has_image or ext in IMAGE_EXTS
                has_text = has_text or ext == "txt"
                if ext == "json" and not self.metadata:
                    json = json or header  # it takes longer to parse than all the rest to read
                elif wanted and ext in _WANTED:
                    self._add(members, ext, header)
            at = header.end
        if members is None or not has_image:
            return None
        if wanted and json is not None and not has_text:
            self._add(members, "json", json)
        if number + 1 == len(self._starts):
            self._starts.append(at)
        return members.sample()

    def _add(self, members: Members, ext: str, header: _Header) -> None:
        if members.wants(ext, header.size):
            members.add(ext, self._window.read(header.data, header.size))

    def _header(self, at: int) -> _Header | None:
        if self._behind[0] != at:  # the one behind a sample is the first of the next
            self._behind = at, self._read_header(at)
        return self._behind[1]

    def _read_header(self, at: int) -> _Header | None:
        """The member at an offset, with its long name where it has one; None at the end."""
        long_name = None
        while True:
            block = self._window.read(at, _BLOCK)
            if block[0] == 0 and not block.strip(b"\0"):
                return None
            try:
                size = tarfile.nti(block[124:136])  # type: ignore[attr-defined]
                is_valid = tarfile.nti(block[148:156]) == sum(block, 256) - sum(block[148:156])  # type: ignore[attr-defined]
            except tarfile.TarError:
                is_valid = False
            if not is_valid:
                raise InputError(f"{self.shard.url}: a damaged tar: no valid header at byte {at}")
            kind = block[156:157]
            found = _Header(long_name or _name(block), kind in _FILES, at + _BLOCK, size)
            if kind not in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                return found
            content = self._window.read(found.data, size)
            if kind == tarfile.GNUTYPE_LONGNAME:
                long_name = _text(content)
            elif kind == tarfile.XHDTYPE:
                long_name = _pax_path(content) or long_name
            at = found.end


class _Window:
    """The part of a file that was read last; reads on in steps of `ahead` bytes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.ahead = _READ_BYTES
        self.forget()

    def forget(self) -> None:
        """Free the memory."""
        self._start, self._data = 0, b""

    def read(self, at: int, size: int) -> bytes:
        """Bytes by their place in the file.

        Raises:
            InputError: The file ends before.
        """
        first = at - self._start
        if first < 0 or first + size > len(self._data):
            self._start, first = at, 0
            self._data = files.read_range(self._url, at, at + max(size, self.ahead))
            if len(self._data) < size:
                raise InputError(f"{self._url}: a truncated tar: it ends in a sample; get it again")
        return self._data[first : first + size]


def _name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax_path(records: bytes) -> str | None:
    """The name in an extended header, whose records are `<length> <key>=<value>` lines."""
    while records:
        length, _, _ = records.partition(b" ")
        key, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        records = records[int(length) :]
    return None
