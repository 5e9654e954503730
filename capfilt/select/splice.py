"""A data shard cut by bytes: what does not change goes from tar to tar as it is.

Only for tars as capfilt writes them (plain headers, members of a key adjacent, `json` before
`txt`). The bytes that come out are those of a run's reader and writer, which take far longer.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from capfilt.cut import Mask
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.fields import output_json
from capfilt.io.tar import tar_key
from capfilt.record import Annotated, Sample
from capfilt.select.origin import original
from capfilt.shard import InputShard

_BLOCK = tarfile.BLOCKSIZE
_NAME, _SIZE, _CHECKSUM = slice(100), slice(124, 136), slice(148, 156)  # of a header
_KIND, _PREFIX = 156, 345
_PLAIN = tarfile.REGTYPE[0]
_TEXTS = ("json", "txt")
_BUFFER_BYTES = 2**17  # that are written at once


class _Member(NamedTuple):
    number: int  # of its sample
    ext: str
    header: bytes
    content: bytes  # with its padding


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
        shard: A tar of capfilt's.
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
    is_changed = changed.tolist()
    texts: dict[tuple[int, str], bytes] = {}  # of the sample at hand
    with path.open("wb", buffering=_BUFFER_BYTES) as out:
        for member in _members(shard, keys, kept, images=images):
            number, ext = member.number, member.ext
            if ext not in _TEXTS or not is_changed[number]:
                out.write(member.header)
                out.write(member.content)
                continue
            if ext == "json":
                texts = _texts(keys[number], member, annotate)
            if (number, ext) not in texts:
                raise NotPlainError
            out.write(_renewed(member.header, texts[number, ext]))
        end = 2 * _BLOCK
        out.write(bytes(end + -(out.tell() + end) % tarfile.RECORDSIZE))


def _members(shard: InputShard, keys: list[str], kept: Mask, *, images: bool) -> Iterator[_Member]:
    """The members that are wanted, in the tar's order; the others are passed over."""
    url, wanted = shard.url, kept.tolist()
    number, begin = -1, b"/"  # of a sample's names; no name begins with a slash
    with files.open_read(url, seekable=True) as file, files.storage_errors(url):
        while (header := file.read(_BLOCK)) and header[0]:
            name, size = _parse(header, url)
            if not name.startswith(begin) or b"/" in name[len(begin) :]:
                number += 1
                begin = f"{tar_key(keys[number])}.".encode() if number < len(keys) else b"/"
                if not name.startswith(begin):
                    raise InputError(f"{url}: {name.decode()!r} is not of its ledger's sample")
            ext, padded = name[len(begin) :].decode(), size + -size % _BLOCK
            if not wanted[number] or not (images or ext in _TEXTS):
                file.seek(padded, os.SEEK_CUR)
                continue
            content = file.read(padded)
            if len(content) < padded:
                raise _truncated(url)
            yield _Member(number, ext, header, content)
        if not header:
            raise _truncated(url)
    if number + 1 != len(keys):
        raise InputError(f"{url}: {number + 1} samples, {len(keys)} in its ledger")


def _parse(header: bytes, url: str) -> tuple[bytes, int]:
    """A member's name and size."""
    if len(header) < _BLOCK:
        raise _truncated(url)
    name = header[_NAME].rstrip(b"\0")
    if header[_KIND] != _PLAIN or header[_PREFIX] or not name.isascii():
        raise NotPlainError
    try:
        return name, int(header[_SIZE].rstrip(b"\0"), 8)
    except ValueError:
        raise NotPlainError from None


def _truncated(url: str) -> InputError:
    return InputError(f"{url}: a truncated tar: it has no end")


def _texts(
    key: str, member: _Member, annotate: Callable[[int, Sample], Annotated]
) -> dict[tuple[int, str], bytes]:
    """The new contents of a sample's texts, by number and extension, from its json."""
    fields = json.loads(member.content.rstrip(b"\0"))
    number = member.number
    annotated = annotate(number, Sample(key, None, "", (), original(fields)))
    text = annotated.kept[0].content
    assert text is not None
    return {
        (number, "json"): output_json(annotated).encode(),
        (number, "txt"): text.encode(),
    }


def _renewed(old: bytes, content: bytes) -> bytes:
    """A member with another content under its own header."""
    header = bytearray(old)
    header[_SIZE] = b"%011o\0" % len(content)
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % _BLOCK)
