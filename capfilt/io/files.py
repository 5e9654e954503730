"""The file system seam: every file that capfilt opens or lists goes through here.

A place is an fsspec URL or a plain local path (`capfilt.io.store`). Listings are never cached, so a
resume never sees an old one. Writing is `capfilt.io.publish`.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from capfilt.errors import CommitError
from capfilt.io.entry import Entry
from capfilt.io.local import files_below, open_regular, stat_of
from capfilt.io.store import local_path, resolve, storage_errors

# Object stores answer a request in tens of milliseconds: fewer, larger ones keep a stream flowing.
_READ_BLOCK_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**20


def absolute(url: str) -> str:
    """The same place, whatever the current folder of a process: local paths made absolute."""
    if "://" in url and not url.startswith(("file://", "local://")):
        return url.rstrip("/") if not url.endswith("://") else url
    return str(Path(url.removeprefix("file://").removeprefix("local://")).expanduser().absolute())


def join(url: str, *parts: str) -> str:
    """A place below `url`.

    >>> join("s3://bucket/out/", "data", "a/00000.tar")
    's3://bucket/out/data/a/00000.tar'
    """
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return base + "/".join(part.strip("/") for part in parts)


def parent(url: str) -> str:
    """The folder that holds `url`."""
    head, slash, _ = url.rstrip("/").rpartition("/")
    if head.endswith((":/", ":")):  # `memory://name` lies at the root of its file system
        return head.rstrip("/") + "//"
    return head or slash or "."


def open_read(url: str, *, seekable: bool = False) -> BinaryIO:
    """Open a file for reading.

    Args:
        url: The file.
        seekable: Read parts of it in any order, as Parquet needs; else from start to end, which
            is all that some web servers can do.

    Raises:
        InputError: The file is missing or cannot be reached.
    """
    fs, path = resolve(url)
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            return open_regular(path)
        as_stream = url.startswith(("http://", "https://")) and not seekable
        block_size = 0 if as_stream else _READ_BLOCK_BYTES
        file = fs.open(path, "rb", block_size=block_size)
        # The buffer is for many small reads, and for a stream that gives what has just arrived.
        return cast(BinaryIO, file if seekable else io.BufferedReader(file, _BUFFER_BYTES))


def read_bytes(url: str) -> bytes:
    """The whole content of a file.

    Raises:
        InputError: The file is missing or cannot be reached.
    """
    fs, path = resolve(url)
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            with open_regular(path) as file:
                return file.read()
        return bytes(fs.cat_file(path))


def read_range(url: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file, fewer where it ends before; one request.

    Raises:
        InputError: The file is missing or cannot be reached.
    """
    fs, path = resolve(url)
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            with open_regular(path) as file:
                file.seek(start)
                return file.read(stop - start)
        return bytes(fs.cat_file(path, start=start, end=stop))


def read_chunks(url: str) -> Iterator[bytes]:
    """A file from its start to its end, a mebibyte at a time.

    Raises:
        InputError: The file is missing or cannot be reached.
    """
    with open_read(url) as file, storage_errors(url):
        while chunk := file.read(2**20):
            yield chunk


def digest(url: str) -> tuple[int, str]:
    """Size in bytes and sha256 of a file, read from its start to its end.

    Raises:
        InputError: The file is missing or cannot be reached.
    """
    size_bytes, sha256 = 0, hashlib.sha256()
    for chunk in read_chunks(url):
        size_bytes += len(chunk)
        sha256.update(chunk)
    return size_bytes, sha256.hexdigest()


def exists(url: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    return info(url) is not None


def info(url: str) -> Entry | None:
    """What a file or folder is; None where there is nothing.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    fs, path = resolve(url)
    root, slash, name = url.rstrip("/").rpartition("/")
    with storage_errors(url):
        try:
            if isinstance(fs, LocalFileSystem):
                return Entry.of_local(Path(path).stat(), root + slash, name)
            return Entry.of_store(fs.info(path), root + slash, name)
        except (FileNotFoundError, NotADirectoryError):
            return None


def list_folder(url: str) -> list[Entry]:
    """The files and folders directly in a folder, from one listing, sorted by name.

    Raises:
        InputError: The folder is missing or cannot be listed.
    """
    fs, path = resolve(url)
    root = join(url, "")
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            with os.scandir(path) as listing:
                seen = ((each.name, stat_of(each)) for each in listing)
                found = [Entry.of_local(stats, root, name) for name, stats in seen if stats]
        else:
            found = []
            for detail in fs.ls(path, detail=True):
                name = str(detail["name"]).rstrip("/").rpartition("/")[2]
                if name and str(detail["name"]).rstrip("/") != path.rstrip("/"):
                    found.append(Entry.of_store(detail, root, name))
    return sorted(found, key=lambda entry: entry.name)


def find(url: str) -> list[Entry]:
    """Every file below a folder, sorted by name; nothing for a folder that is not there.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    fs, path = resolve(url)
    root = join(url, "")
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            seen = ((name, stat_of(each)) for name, each in files_below(path))
            entries = [Entry.of_local(stats, root, name) for name, stats in seen if stats]
            found = [entry for entry in entries if not entry.is_folder]
        else:
            details = fs.find(path, detail=True)
            names = {file: file.removeprefix(path).lstrip("/") for file in details}
            found = [
                Entry.of_store(details[file], root, name) for file, name in names.items() if name
            ]
    return sorted(found, key=lambda entry: entry.name)


def find_names(url: str) -> list[str]:
    """The names that `find` gives; local files are not asked for more, of which there may be many.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    local = local_path(url)
    if local is None:
        return [entry.name for entry in find(url)]
    with storage_errors(url):
        return sorted(
            name
            for name, each in files_below(str(local))
            if each.is_file(follow_symlinks=False) or Path(each).is_file()
        )


def glob(pattern: str) -> list[str]:
    """The URLs of the files and folders that a pattern matches, sorted.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    fs, path = resolve(pattern)
    with storage_errors(pattern):
        matches = [str(match) for match in fs.glob(path)]
    if isinstance(fs, LocalFileSystem) or any("://" in match for match in matches):
        return sorted(matches)
    protocol = pattern.partition("://")[0]
    return sorted(f"{protocol}://{match.lstrip('/')}" for match in matches)


def remove(url: str) -> None:
    """Remove a file; no error when it is not there.

    Raises:
        CommitError: It cannot be removed.
    """
    fs, path = resolve(url)
    with storage_errors(url, CommitError):
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            return


def remove_folder(url: str) -> None:
    """Remove an empty local folder; stores have none. No error when it is not there or not empty.

    Raises:
        CommitError: It cannot be removed.
    """
    path = local_path(url)
    with storage_errors(url, CommitError):
        if path is not None and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
