"""Folders of images: img2dataset's `files` form, one folder per shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from capfilt.config import ImageConfig
from capfilt.io import files
from capfilt.io.entry import Entry
from capfilt.io.members import TEXT_EXTS, Members, readable, split_name
from capfilt.record import Sample
from capfilt.shard import InputShard

# Three small files per sample: read one after the other from an object store, 10,000 samples would
# take a quarter of an hour.
_SAMPLES_AT_ONCE = 16


def read_folder(shard: InputShard, limits: ImageConfig, images: bool = True) -> Iterator[Sample]:
    """The samples of a folder, sorted by key; a few samples in memory at a time.

    Without `images` only texts and metadata are read.

    Raises:
        InputError: The folder or a file of it cannot be read.
    """
    by_key: dict[str, list[tuple[str, Entry]]] = defaultdict(list)
    for entry in files.list_folder(shard.url):
        parts = split_name(entry.name)
        if parts is not None and not entry.is_folder:
            by_key[parts[0]].append((readable(parts[1])[0], entry))
    keys = list(by_key)

    def read(key: str) -> Sample:
        members = Members(readable(key)[0], limits, shard.source)
        for ext, entry in by_key[key]:
            if members.wants(ext, entry.size_bytes) and (images or ext in TEXT_EXTS):
                members.add(ext, files.read_bytes(entry.url))
        return members.sample()

    with ThreadPoolExecutor(_SAMPLES_AT_ONCE) as pool:
        for start in range(0, len(keys), _SAMPLES_AT_ONCE):
            yield from pool.map(read, keys[start : start + _SAMPLES_AT_ONCE])
