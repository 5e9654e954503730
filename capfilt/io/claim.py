"""A small file that one of several writers gets to write.

On a local file system, a shared one included, that is decided by it: a link is never made over
another file, and a file is replaced under its lock. A store decides by a conditional PUT where it
has that, as S3. Where there are no locks, or no such PUT, two may succeed, the later one's content
staying. So a writer looks again a while afterwards, unless it has made a link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from capfilt.errors import CommitError, InputError
from capfilt.io.files import read_bytes, remove
from capfilt.io.publish import temporary_beside, write_bytes
from capfilt.io.store import local_path, resolve, storage_errors

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # exFAT, some FUSE


def create(url: str, data: bytes) -> bool:
    """Write a file, whole, unless there is one.

    Returns:
        Whether it was written.

    Raises:
        CommitError: The file cannot be written.
    """
    fs, path = resolve(url)
    with storage_errors(url, CommitError):
        if isinstance(fs, LocalFileSystem):
            return _create_local(Path(path), data)
        try:
            fs.pipe_file(path, data, mode="create")
        except (OSError, NotImplementedError):  # of many kinds, also where there is one
            if fs.exists(path):
                return False
            write_bytes(url, data)
    return True


def replace(url: str, old: bytes, new: bytes) -> bool:
    """Write a file anew if it still holds `old`.

    Returns:
        Whether it was written.

    Raises:
        InputError, CommitError: The file cannot be read or written.
    """
    path = local_path(url)
    if path is None:
        if read(url) != old:
            return False
        remove(url)
        return create(url, new)
    with storage_errors(url, CommitError):
        return _replace_local(path, old, new)


def read(url: str) -> bytes | None:
    """What a file holds; None where there is none.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    try:
        return read_bytes(url)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _create_local(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary_beside(path)
    try:
        aside.write_bytes(data)
        path.hardlink_to(aside)
    except FileExistsError:
        return aside.stat().st_nlink == 2  # NFS has lost the answer to a link that was made
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_in_place(path, data)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    except OSError:  # a full disk leaves an empty file
        path.unlink(missing_ok=True)
        raise
    return True


def _replace_local(path: Path, old: bytes, new: bytes) -> bool:
    """The file is there all the while: who finds none thinks it free."""
    try:
        with path.open("rb+") as file:
            with contextlib.suppress(OSError):  # a file system without locks: the later one stays
                fcntl.flock(file, fcntl.LOCK_EX)
            if file.read() != old or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return False
            write_bytes(str(path), new)
    except FileNotFoundError:
        return False
    return True
