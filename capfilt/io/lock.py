"""A lock on a folder, for as long as its process lives.

It is the operating system's: a killed process leaves none behind, and what it has forked does not
keep it. Of a file system that knows no locks nothing is asked.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capfilt.errors import CommitError
from capfilt.io.store import storage_errors

_LOOK_EVERY_S = 0.1


@contextmanager
def locked(path: Path, *, wait_s: float) -> Iterator[bool]:
    """Hold a lock inside the `with` block.

    Args:
        path: Of the lock's file, which is made and stays.
        wait_s: How long to wait for another process, which may be about to end.

    Yields:
        Whether there was no other process that holds it.

    Raises:
        CommitError: The file cannot be written.
    """
    with storage_errors(str(path), CommitError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        until = time.monotonic() + wait_s
        while not (mine := _lock(file.fileno())) and time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
        yield mine


def _lock(descriptor: int) -> bool:
    try:
        # Of the process, not of the open file as `flock`: that one would stay with its children.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # the file system has no locks
        return True
    return True
