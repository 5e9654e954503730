"""The local file system where fsspec's own way would wait for ever or take too long."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO


def open_regular(path: str) -> BinaryIO:
    """Open a local file; a pipe or a device, at which a reader would wait for ever, is refused."""
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("is no regular file")
    return file


def files_below(folder: str, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies below a folder and is none, by its name from there; there may be 100,000."""
    try:
        listing = os.scandir(folder)
    except FileNotFoundError:  # it is not there, or no more
        return
    with listing:
        for each in listing:
            if each.is_dir(follow_symlinks=False):
                yield from files_below(each.path, f"{below}{each.name}/")
            else:
                yield below + each.name, each


def stat_of(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of a link's target: that is what will be read. None where nothing is there any more."""
    try:
        return entry.stat()
    except OSError as error:
        if _is_nothing(error):
            return None
        raise


def size_of(path: str) -> int | None:
    """Of a regular file or a link to one; None where there is none, whatever else is there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path takes as long again
    except ValueError:  # no file can have this name
        return None
    except OSError as error:
        if _is_nothing(error):
            return None
        raise
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _is_nothing(error: OSError) -> bool:
    """Removed or renamed meanwhile, below a file, a link to nothing or itself, no possible name."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
