"""The file system seam: every file that capfilt opens or lists goes through here.

A place is an fsspec URL (`s3://bucket/x`, `memory://x`, `https://host/x`) or a plain local path.
Listings are never cached, so a resume never sees an old one. Writing is `capfilt.io.publish`.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from capfilt.errors import CapfiltError, CommitError, InputError

# Object stores answer a request in tens of milliseconds: fewer, larger ones keep a stream flowing.
_READ_BLOCK_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**20
# A server that says nothing for so long is given up; a shard as a whole may take any time.
_CONNECT_S, _SILENCE_S = 30, 60
# Of one request, with exponential back-off and jitter, below the five tries of s3fs itself.
_S3_RETRIES = {"mode": "standard", "total_max_attempts": 4}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra of our package
# Errors of the network libraries that are no OSError: (module, class).
_FOREIGN_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("requests", "RequestException"),
    ("safetensors", "SafetensorError"),
)


_LOCAL = LocalFileSystem()


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of a listing."""

    root: str  # what was listed, with a slash: one string for all of a listing
    name: str  # relative to that
    is_folder: bool
    size_bytes: int
    changed: int | str  # when, in nanoseconds; a store's etag, or whatever it has

    @property
    def url(self) -> str:
        return self.root + self.name

    @property
    def version(self) -> str:
        """The etag where the store has one, else the modification time."""
        return f"mtime:{self.changed}" if isinstance(self.changed, int) else self.changed


def local_path(url: str) -> Path | None:
    """The local path that a URL means; None when it lies elsewhere."""
    fs, path = resolve(url)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


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


@contextmanager
def storage_errors(url: str, error: type[CapfiltError] = InputError) -> Iterator[None]:
    """Turn what a file system raises into one line that names the place and what to do.

    Raises:
        InputError: Or `error`; a file is missing, access is denied, the store cannot be reached.
    """
    try:
        yield
    except _storage_exceptions() as cause:
        raise error(_describe(url, cause)) from cause


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
            return _open_local(path)
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
            with _open_local(path) as file:
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
            with _open_local(path) as file:
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
                return _local_entry(Path(path).stat(), root + slash, name)
            return _entry(fs.info(path), root + slash, name)
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
                seen = ((each.name, _stat_of(each)) for each in listing)
                found = [_local_entry(stats, root, name) for name, stats in seen if stats]
        else:
            found = []
            for detail in fs.ls(path, detail=True):
                name = str(detail["name"]).rstrip("/").rpartition("/")[2]
                if name and str(detail["name"]).rstrip("/") != path.rstrip("/"):
                    found.append(_entry(detail, root, name))
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
            seen = ((name, _stat_of(each)) for name, each in _local_files(path))
            entries = [_local_entry(stats, root, name) for name, stats in seen if stats]
            found = [entry for entry in entries if not entry.is_folder]
        else:
            details = fs.find(path, detail=True)
            names = {file: file.removeprefix(path).lstrip("/") for file in details}
            found = [_entry(details[file], root, name) for file, name in names.items() if name]
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
            for name, each in _local_files(str(local))
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


def resolve(url: str) -> tuple[Any, str]:
    """The file system and the path on it. No listing cache: it would show a resume old files."""
    if url.startswith("/") and "::" not in url:  # most are such, and fsspec takes longer
        return _LOCAL, url.rstrip("/") or "/"
    try:
        fs, path = fsspec.url_to_fs(url, use_listings_cache=False, **_patience(url))
    except ImportError as error:
        extra = _EXTRAS.get(url.partition("://")[0])
        hint = f"pip install 'capfilt[{extra}]'" if extra else " ".join(str(error).split())
        raise InputError(f"{url}: this kind of URL needs another package: {hint}") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error
    return fs, str(path)


def _patience(url: str) -> dict[str, Any]:
    """How long a store is waited for and how often asked, as its file system takes it.

    aiohttp's own limit is five minutes for a whole response, which a shard that feeds the models
    may well take; and s3fs alone tries again without jitter, and not after every 500.
    """
    protocol = url.partition("://")[0]
    if protocol in ("http", "https"):
        import aiohttp

        limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        return {"client_kwargs": {"timeout": limit}}
    if protocol in ("s3", "s3a"):
        settings: dict[str, Any] = {"connect_timeout": _CONNECT_S, "read_timeout": _SILENCE_S}
        if not {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys():
            settings["retries"] = _S3_RETRIES
        return {"config_kwargs": settings}
    return {}


def _open_local(path: str) -> BinaryIO:
    """Open a local file; a pipe or a device, at which a reader would wait for ever, is refused."""
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("is no regular file")
    return file


def _local_files(folder: str, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies below a folder and is none, by its name from there; there may be 100,000."""
    try:
        listing = os.scandir(folder)
    except FileNotFoundError:  # it is not there, or no more
        return
    with listing:
        for each in listing:
            if each.is_dir(follow_symlinks=False):
                yield from _local_files(each.path, f"{below}{each.name}/")
            else:
                yield below + each.name, each


def _stat_of(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of a link's target: that is what will be read. None where nothing is there any more."""
    try:
        return entry.stat()
    except OSError as error:
        if _is_nothing(error):
            return None
        raise


def _is_nothing(error: OSError) -> bool:
    """Removed or renamed meanwhile, or a link to nothing or to itself."""
    return error.errno in (errno.ENOENT, errno.ELOOP)


def _local_entry(found: os.stat_result, root: str, name: str) -> Entry:
    is_folder = stat.S_ISDIR(found.st_mode)
    return Entry(root, name, is_folder, found.st_size, found.st_mtime_ns)


def _entry(detail: dict[str, Any], root: str, name: str) -> Entry:
    version = ""
    for field in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"):
        if detail.get(field):
            value = detail[field]
            if isinstance(value, datetime.datetime):  # some listings have it as a number
                value = value.timestamp()
            kind = "etag" if field.lower() == "etag" else "mtime"
            version = f"{kind}:{str(value).strip(chr(34))}"
            break
    is_folder = detail["type"] == "directory"
    return Entry(root, name, is_folder, int(detail.get("size") or 0), version)


def _storage_exceptions() -> tuple[type[BaseException], ...]:
    """Everything a file system may raise; only libraries in use are looked at, none is imported."""
    loaded = ((sys.modules.get(module), name) for module, name in _FOREIGN_ERRORS)
    foreign = (getattr(module, name, None) for module, name in loaded if module)
    return (OSError, *(error for error in foreign if isinstance(error, type)))


def _describe(url: str, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{url}: not found"
    if isinstance(error, PermissionError):
        return f"{url}: access denied; check the permissions or the credentials"
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return f"{url}: {error.strerror or 'is no file'}"
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{url}: {' '.join(str(reason).split()) or type(error).__name__}"
