"""An input shard: what it is called, where it lies, and which version of it was seen. No I/O."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from capfilt.record import Source

_ID = "\0"  # in a place; no URL has it


class Form(StrEnum):
    """How an input shard stores its samples."""

    TAR = "tar"  # WebDataset, img2dataset's `webdataset`
    PARQUET = "parquet"  # img2dataset's `parquet`: image bytes in a column
    FILES = "files"  # img2dataset's `files`: a folder per shard
    PAIRS = "pairs"  # a slice of a COCO-style captions JSON


@dataclass(frozen=True, slots=True)
class InputShard:
    """One shard of the input. `id` names its outputs: `data/<id>.tar`, `commits/<id>.json`.

    The id is the shard's path below the input's root without its ending, so it depends on nothing
    but the name: not on a rank, an order or the other shards. There may be 100,000 of them, so what
    their URLs have in common is one string (`place_of`).
    """

    id: str
    form: Form
    place: str  # the URL, in which a sign may stand for the id
    size_bytes: int
    version: str  # etag, else modification time; of a folder, a digest of its files' versions
    source: Source = Source.WEB
    start: int = 0  # PAIRS only: the slice [start, stop) of the JSON's images
    stop: int = 0
    images: str = ""  # PAIRS only: the folder that the JSON's image paths start from
    expected: int | None = None  # images that img2dataset's _stats.json promises

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.place.replace(_ID, self.id)


def place_of(url: str, shard_id: str) -> str:
    """The place of a shard, one string for all whose URLs differ in their ids alone.

    >>> place_of("s3://bucket/laion/00000.tar", "00000")
    's3://bucket/laion/\\x00.tar'
    """
    head, found, tail = url.rpartition(shard_id)
    return sys.intern(f"{head}{_ID}{tail}") if found else url


def root_of(pattern: str) -> str:
    """The folder above the first path part with a wildcard or brace; the URL itself for a folder.

    >>> root_of("s3://bucket/laion/{00000..00009}.tar")
    's3://bucket/laion'
    """
    magic = min((i for i in (pattern.find(c) for c in "*?[{") if i >= 0), default=-1)
    if magic < 0:
        return pattern.rstrip("/")
    return pattern[: pattern.rfind("/", 0, magic)] if "/" in pattern[:magic] else "."


def shard_id(url: str, root: str) -> str:
    """The path of `url` below `root` without its ending: the id of the shard that lies there.

    >>> shard_id("s3://bucket/laion/part-1/00000.tar", "s3://bucket/laion")
    'part-1/00000'
    """
    below = url.removeprefix(root).lstrip("/") if root != "." else url
    return str(PurePosixPath(below).with_suffix(""))
