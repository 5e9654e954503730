"""What a listing says of one file or folder, whichever store it is in."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Names under which stores give them, the surest first.
_VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of a listing."""

    root: str  # what was listed, with a slash: one string for all of a listing
    name: str  # relative to that
    is_folder: bool
    size_bytes: int
    changed: int | str  # when, in nanoseconds; a store's etag, or whatever it has

    @classmethod
    def of_local(cls, found: os.stat_result, root: str, name: str) -> Entry:
        is_folder = stat.S_ISDIR(found.st_mode)
        return cls(root, name, is_folder, found.st_size, found.st_mtime_ns)

    @classmethod
    def of_store(cls, detail: Mapping[str, Any], root: str, name: str) -> Entry:
        """From what fsspec says, which differs by the store."""
        version = ""
        for field in _VERSIONS:
            if detail.get(field):
                value = detail[field]
                if isinstance(value, datetime.datetime):  # some listings have it as a number
                    value = value.timestamp()
                kind = "etag" if field.lower() == "etag" else "mtime"
                version = f"{kind}:{str(value).strip(chr(34))}"
                break
        is_folder = detail["type"] == "directory"
        return cls(root, name, is_folder, int(detail.get("size") or 0), version)

    @property
    def url(self) -> str:
        return self.root + self.name

    @property
    def version(self) -> str:
        """The etag where the store has one, else the modification time."""
        return f"mtime:{self.changed}" if isinstance(self.changed, int) else self.changed
