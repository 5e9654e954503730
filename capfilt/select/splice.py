"""A data shard cut by bytes: what does not change goes from tar to tar as it is.

Only for tars as capfilt writes them (plain headers, members of a key adjacent, `json` before
`txt`). The bytes that come out are those of a run's reader and writer, which take far longer.
"""

from __future__ import annotations

import hashlib
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
from capfilt.io.store import storage_errors
from capfilt.io.tar import tar_key
from capfilt.record import Annotated, Sample
from capfilt.select.origin import original
from capfilt.shard import InputShard

_RECORD = tarfile.BLOCKSIZE
_NAME, _SIZE, _CHECKSUM = slice(100), slice(124, 136), slice(148, 156)  # of a header
_KIND, _PREFIX = 156, 345
_PLAIN = tarfile.REGTYPE[0]
_TEXTS = ("json", "txt")
_BLOCK_BYTES = 2**20  # that are read at once
_BUFFER_BYTES = 2**17  # that are written at once


class _Text(NamedTuple):
    """A member whose content changes."""

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
) -> str:
    """Write some samples of a data shard as another.

    Args:
        shard: A tar of capfilt's.
        keys: Of its samples, in order.
        kept: Which of them to write, shape [len(keys)].
        changed: Which of those have other texts now, shape [len(keys)].
        annotate: Gives a sample (by number, with its metadata) its texts.
        path: Where the new tar goes.
        images: Whether to write more than texts.

    Returns:
        The sha256 of the new tar, in hex.

    Raises:
        InputError: The shard is damaged, or its samples are others.
        NotPlainError: It cannot be cut like this.
    """
    texts: dict[tuple[int, str], bytes] = {}  # of the sample at hand
    sha256 = hashlib.sha256()
    with path.open("wb", buffering=_BUFFER_BYTES) as out:

        def write(piece: bytes | memoryview) -> None:
            out.write(piece)
            sha256.update(piece)  # while the processor has it at hand

        for piece in _pieces(shard, keys, kept, changed, images=images):
            if isinstance(piece, memoryview):
                write(piece)
                continue
            if piece.ext == "json":
                texts = _texts(keys[piece.number], piece, annotate)
            if (piece.number, piece.ext) not in texts:
                raise NotPlainError
            write(_renewed(piece.header, texts[piece.number, piece.ext]))
        end = 2 * _RECORD
        write(bytes(end + -(out.tell() + end) % tarfile.RECORDSIZE))
    return sha256.hexdigest()


def _pieces(
    shard: InputShard, keys: list[str], kept: Mask, changed: Mask, *, images: bool
) -> Iterator[memoryview | _Text]:
    """What is wanted, in the tar's order: texts that change, and what lies between as it is."""
    url, wanted, is_changed = shard.url, kept.tolist(), changed.tolist()
    number, begin = -1, b"/"  # of a sample's names; no name begins with a slash
    block, piece, at = b"", 0, 0  # `piece`: where in the block that which is not given yet begins
    with files.open_read(url, seekable=True) as file, storage_errors(url):
        while True:
            if at == len(block):
                yield memoryview(block)[piece:]
                block, piece, at = file.read(_BLOCK_BYTES), 0, 0
            header = block[at : at + _RECORD]
            if not header:
                raise _truncated(url)
            if not header[0]:
                break
            name, size = _parse(header, url)
            if not name.startswith(begin) or b"/" in name[len(begin) :]:
                number += 1
                begin = f"{tar_key(keys[number])}.".encode() if number < len(keys) else b"/"
                if not name.startswith(begin):
                    raise InputError(f"{url}: {name.decode()!r} is not of its ledger's sample")
            ext, stop = name[len(begin) :].decode(), at + _RECORD + size + -size % _RECORD
            is_text = ext in _TEXTS
            if not wanted[number] or not (images or is_text):
                yield memoryview(block)[piece:at]
                if stop > len(block):
                    file.seek(stop - len(block), os.SEEK_CUR)
                    block, stop = b"", 0
                piece = at = stop
                continue
            if stop > len(block):
                yield memoryview(block)[piece:at]
                block = block[at:] + file.read(stop - len(block))
                piece, at, stop = 0, 0, stop - at
                if stop > len(block):
                    raise _truncated(url)
            if is_text and is_changed[number]:
                yield memoryview(block)[piece:at]
                yield _Text(number, ext, header, block[at + _RECORD : stop])
                piece = stop
            at = stop
        yield memoryview(block)[piece:at]
    if number + 1 != len(keys):
        raise InputError(f"{url}: {number + 1} samples, {len(keys)} in its ledger")


def _parse(header: bytes, url: str) -> tuple[bytes, int]:
    """A member's name and size."""
    if len(header) < _RECORD:
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
    key: str, member: _Text, annotate: Callable[[int, Sample], Annotated]
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
    checksum = int(old[_CHECKSUM].rstrip(b"\0 "), 8) + sum(header[_SIZE]) - sum(old[_SIZE])
    header[_CHECKSUM] = b"%06o\0 " % checksum
    return bytes(header) + content + bytes(-len(content) % _RECORD)
