"""WebDataset tars, in and out, as streams over file objects that we open.

The standard library's `tarfile` and not webdataset itself: webdataset runs a shell for some URLs,
imports torch, drops members, and ends a truncated tar without a word. What is written here is what
its `TarWriter(mtime=0)` writes, and it is read by the same naming rule.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.fields import output_json
from capfilt.io.members import TEXT_EXTS, Members, readable, split_name
from capfilt.io.store import local_path, storage_errors
from capfilt.record import Annotated, Sample
from capfilt.shard import InputShard

_CHUNK_BYTES = 2**20
_HEADER_BYTES = 2**20  # a long name or extended header above it is no name
_END_BYTES = 2 * tarfile.BLOCKSIZE  # two blocks of zeros end an archive
# What tarfile raises beside its own errors: numbers of a broken header, maps of sparse members that
# end too early, headers that extend headers.
_DAMAGE = (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError)


def read_tar(shard: InputShard, limits: ImageConfig, images: bool = True) -> Iterator[Sample]:
    """The samples of a WebDataset tar in its order; one sample in memory at a time.

    Without `images` all members but texts and metadata are passed over, where the file can seek.

    Links, folders, devices, hidden files and names without a dot are no members of a sample.

    Raises:
        InputError: The tar is missing, truncated or damaged. Samples before the damage were given.
    """
    can_seek = not images and local_path(shard.url) is not None
    with files.open_read(shard.url) as file, storage_errors(shard.url):
        stream = _Stream(file, shard.url, can_seek=can_seek)
        try:
            yield from _samples(stream, shard, limits, images)
        except _DAMAGE as error:
            raise InputError(f"{shard.url}: a truncated or damaged tar ({error})") from error


def _samples(
    stream: _Stream, shard: InputShard, limits: ImageConfig, images: bool
) -> Iterator[Sample]:
    # Not `r|`: its buffer is copied again for every member. This needs `read`, `tell` and a
    # `seek` forwards, which a stream can do as well.
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        open_sample: Members | None = None
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would remember every member
            if member.size < 0:
                raise tarfile.HeaderError(f"{member.size} bytes of {member.name!a}")
            if not member.isfile() or member.issparse():
                continue
            parts = split_name(member.name)
            if parts is None:
                continue
            key, ext = (readable(part)[0] for part in parts)
            if open_sample is None or key != open_sample.key:
                if open_sample is not None:
                    yield open_sample.sample()
                open_sample = Members(key, limits, shard.source)
            if open_sample.wants(ext, member.size) and (images or ext in TEXT_EXTS):
                open_sample.add(ext, stream.read_all(member.size))
        stream.check_end(tar.offset)
        if open_sample is not None:
            yield open_sample.sample()


class _Stream(io.RawIOBase):
    """A file on its way to tarfile, which ends silently where a header is cut or damaged.

    So the end is checked here: after the last member there must be two blocks of zeros and nothing
    else. It needs no second request and no seeking back, so any stream will do.
    """

    def __init__(self, file: BinaryIO, url: str, *, can_seek: bool) -> None:
        self._file = file
        self._url = url
        self._can_seek = can_seek
        self._at = 0
        self._last = b""  # what was read last: at the end, the header that tarfile stopped at

    def read(self, size: int = -1) -> bytes:
        """The next bytes, fewer only at the end of the file; tarfile reads its headers by it.

        Raises:
            tarfile.HeaderError: A header says that it is longer than any name.
        """
        if not 0 <= size <= _HEADER_BYTES:
            raise tarfile.HeaderError(f"a header of {size} bytes")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._at += len(data)
        self._last = data
        return data

    def read_all(self, size: int) -> bytes:
        """A member's content.

        Raises:
            InputError: The file ends before.
        """
        data = self._read(size)
        if len(data) < size:
            raise self._truncated()
        return data

    def tell(self) -> int:
        """How many bytes were read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on to a later offset."""
        if whence != io.SEEK_SET or offset < self._at:
            raise io.UnsupportedOperation("a stream goes forwards only")
        if self._can_seek and offset - self._at > _CHUNK_BYTES // 64:
            self._at = self._file.seek(offset)
        while self._at < offset and self.read(min(offset - self._at, _CHUNK_BYTES)):
            pass
        return self._at

    def check_end(self, offset: int) -> None:
        """Check that the archive ends at `offset`, where tarfile found no further member.

        Raises:
            InputError: It does not: members are missing or damaged.
        """
        is_zero = not self._last.strip(b"\0")
        while chunk := self.read(_CHUNK_BYTES):
            is_zero = is_zero and not chunk.strip(b"\0")
        if self._at < offset + _END_BYTES:
            raise self._truncated()
        if not is_zero:
            raise InputError(f"{self._url}: a damaged tar: no valid header at byte {offset}")

    def _truncated(self) -> InputError:
        return InputError(
            f"{self._url}: a truncated tar: it stops at byte {self._at} without an end-of-archive "
            "block; download it again"
        )


class TarWriter:
    """Writes kept samples as a WebDataset tar. Same samples, same bytes.

    A sample is its original image, `.txt` with the first kept text, `.json` with every original
    field, all kept texts and scores, and what else the input had.

    A tar without samples is valid, but `datasets` infers its types from the first tar that it is
    given and fails on an empty one, whatever that holds: give it one with samples first.
    """

    def __init__(self, file: Path | BinaryIO, *, images: bool = True) -> None:
        """Begin a tar.

        Args:
            file: A local path or an open file.
            images: Whether to write images, and what else the input had beside texts.
        """
        self._own = file.open("wb") if isinstance(file, Path) else None
        self._images = images
        fileobj = self._own if isinstance(file, Path) else file
        self._tar = tarfile.open(  # noqa: SIM115  closed by close()
            fileobj=fileobj, mode="w:", format=tarfile.PAX_FORMAT
        )

    def write(self, annotated: Annotated) -> None:
        """Add a sample that keeps at least one text."""
        sample = annotated.sample
        members = dict(sample.extras) if self._images else {}
        if self._images and sample.image is not None:
            members[sample.image_ext] = sample.image
        text = annotated.kept[0].content
        assert text is not None  # a text without content is never kept
        members["txt"] = text.encode()
        members["json"] = output_json(annotated).encode()
        for ext in sorted(members):
            self.add(f"{tar_key(sample.key)}.{ext}", members[ext])

    def add(self, name: str, data: bytes) -> None:
        """Add a member by itself."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        member.mtime = 0  # an int: a float would be written as an extra header
        member.mode = 0o444
        self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def tar_key(key: str) -> str:
    """A key as a tar can hold it: readers end a key at the first dot of its base name.

    Only keys from elsewhere have one (a Parquet `key` column, a captions file). No two keys become
    the same: a `%` that would read as such an escape is escaped itself, and `%2E` and `%25` of a
    base name, replaced from left to right, give the key back.

    >>> tar_key("v1.0/photo.001"), tar_key("photo%2E001"), tar_key("50% off")
    ('v1.0/photo%2E001', 'photo%252E001', '50% off')
    """
    folder, slash, base = key.rpartition("/")
    return folder + slash + re.sub("%(?=2E|25)", "%25", base).replace(".", "%2E")
