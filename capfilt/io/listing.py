"""A folder of an input as one listing shows it: which of its entries are shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.entry import Entry
from capfilt.io.members import IMAGE_EXTS, split_name
from capfilt.shard import Form

REQUESTS = 32  # in flight: listing and small reads are waiting for the store
FORMS = {".tar": Form.TAR, ".parquet": Form.PARQUET}
STATS = "_stats.json"
# What img2dataset has not begun, and what `capfilt ingest` has noted.
_NO_SHARDS = ("_tmp", "_capfilt")


@dataclass(frozen=True, slots=True)
class Found:
    """A shard before it has an id."""

    entry: Entry
    form: Form
    stats: Entry | None  # its _stats.json
    finished: bool


@dataclass(frozen=True)
class Folder:
    """A folder as one listing shows it."""

    url: str
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str) -> Self:
        """List a folder.

        Raises:
            InputError: It is missing or cannot be listed.
        """
        return cls(url, {entry.name: entry for entry in files.list_folder(url)})

    @classmethod
    def with_names(cls, url: str, names: Sequence[str]) -> Self:
        """A folder with at least these files; asked for one by one where a server cannot list it.

        Raises:
            InputError: One of them is missing.
        """
        try:
            folder = cls.at(url)
        except InputError:
            folder = cls(url)
        missing = [name for name in names if name not in folder.entries]
        if missing:
            asked = missing + [name[: name.rfind(".")] + STATS for name in missing]
            with ThreadPoolExecutor(REQUESTS) as pool:
                entries = pool.map(files.info, [files.join(url, name) for name in asked])
                folder.entries.update((entry.name, entry) for entry in entries if entry)
        for name in missing:
            if name not in folder.entries:
                raise InputError(f"{files.join(url, name)}: not found")
        return folder

    def shard(self, entry: Entry, form: Form) -> Found:
        """The shard of an entry. Where img2dataset wrote, its stats say that it is finished."""
        stats = self.entries.get(entry.name.removesuffix(f".{form}") + STATS)
        finished = stats is not None or not self._is_img2datasets
        return Found(entry, form, stats, finished)

    @cached_property
    def _is_img2datasets(self) -> bool:
        return any(name.endswith(STATS) for name in self.entries)

    def file_shards(self, names: Iterable[str]) -> list[Found]:
        """The tar and Parquet shards among some names."""
        found = []
        for name in names:
            stem, ending = name[: name.rfind(".")], name[name.rfind(".") :]
            # `00000.parquet` beside `00000.tar` or `00000/` is img2dataset's table of its URLs.
            is_sidecar = ending == ".parquet" and (
                f"{stem}.tar" in self.entries
                or (stem in self.entries and self.entries[stem].is_folder)
            )
            entry = self.entries[name]
            if ending in FORMS and not (entry.is_folder or is_sidecar or name.startswith(".")):
                found.append(self.shard(entry, FORMS[ending]))
        return found

    def folders(self) -> list[Entry]:
        """The folders in it that may hold shards."""
        return [
            entry
            for name, entry in self.entries.items()
            if entry.is_folder and name not in _NO_SHARDS and not name.startswith(".")
        ]

    def has_images(self) -> bool:
        """Whether images lie directly in it, as in img2dataset's `files` form."""
        return any(
            (parts := split_name(name)) and parts[1] in IMAGE_EXTS and not entry.is_folder
            for name, entry in self.entries.items()
        )

    def as_entry(self, name: str) -> Entry:
        """All its files as one: a `files` shard changes when any of them does."""
        digest = hashlib.sha256()
        size_bytes = 0
        for entry in self.entries.values():
            line = f"{entry.name}\n{entry.size_bytes}\n{entry.version}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))  # names of any bytes
            size_bytes += entry.size_bytes
        root = self.url.removesuffix(name)
        return Entry(root, name, True, size_bytes, f"listing:{digest.hexdigest()[:32]}")
