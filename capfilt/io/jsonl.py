"""A log of one JSON object per line, which grows while others read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capfilt.errors import CommitError
from capfilt.io.publish import write_bytes
from capfilt.io.store import storage_errors
from capfilt.jsontree import parse_json

_TAIL_BYTES = 16384


class JsonLines:
    """A local `.jsonl` file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """Every whole line; a line that a killed writer has left half is left out."""
        if not self.path.exists():
            return []
        found = []
        with storage_errors(str(self.path)):
            lines = self.path.read_bytes().splitlines()
        for line in lines:
            try:
                found.append(parse_json(line))
            except ValueError:
                continue
        return found

    def last(self) -> dict[str, Any] | None:
        """The last whole line, found from the end of the file."""
        if not self.path.exists():
            return None
        with storage_errors(str(self.path)), self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - _TAIL_BYTES))
            for line in reversed(file.read().splitlines(keepends=True)):
                if line.endswith(b"\n") and line.startswith(b"{"):
                    return json.loads(line)  # type: ignore[no-any-return]
        return None

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Leave only the rows that are wanted."""
        if self.path.exists():
            lines = [f"{json.dumps(row)}\n" for row in self.rows() if wanted(row)]
            write_bytes(str(self.path), "".join(lines).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Add a row.

        Raises:
            CommitError: It cannot be written.
        """
        with storage_errors(str(self.path), CommitError), self.path.open("ab") as file:
            file.write(f"{json.dumps(row)}\n".encode())
