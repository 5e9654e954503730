"""The file system seam: every file that capfilt opens, lists or publishes goes through here.

A place is an fsspec URL (`s3://bucket/x`, `memory://x`, `https://host/x`) or a plain local path.
Listings are never cached, so a resume never sees an old one. A file is built in a temporary place
and published whole: a reader meets the complete file or none, whenever a writer is killed.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import os
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from capfilt.errors import CapfiltError, CommitError, InputError

# Object stores answer a request in tens of milliseconds: fewer, larger ones keep a stream flowing.
_READ_BLOCK_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**20
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra of our package
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")  # have no folders
# Errors of the network libraries that are no OSError: (module, class).
_FOREIGN_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("requests", "RequestException"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of a listing."""

    url: str
    name: str  # relative to what was listed
    is_folder: bool
    size_bytes: int
    version: str  # etag where the store has one, else the modification time


@dataclass(frozen=True, slots=True)
class Published:
    """A file that is now in its place, as its writer made it."""

    url: str
    size_bytes: int
    sha256: str


def local_path(url: str) -> Path | None:
    """The local path that a URL means; None when it lies elsewhere."""
    fs, path = _resolve(url)
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
    fs, path = _resolve(url)
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            return Path(path).open("rb")
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
    fs, path = _resolve(url)
    with storage_errors(url):
        return bytes(fs.cat_file(path))


def digest(url: str) -> tuple[int, str]:
    """Size in bytes and sha256 of a file, read from its start to its end.

    Raises:
        InputError: The file is missing or cannot be reached.
    """
    size_bytes, sha256 = 0, hashlib.sha256()
    with open_read(url) as file, storage_errors(url):
        while chunk := file.read(2**20):
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
    fs, path = _resolve(url)
    name = url.rstrip("/").rpartition("/")[2]
    with storage_errors(url):
        try:
            if isinstance(fs, LocalFileSystem):
                return _local_entry(Path(path), url, name)
            return _entry(fs.info(path), url, name)
        except (FileNotFoundError, NotADirectoryError):
            return None


def list_folder(url: str) -> list[Entry]:
    """The files and folders directly in a folder, from one listing, sorted by name.

    Raises:
        InputError: The folder is missing or cannot be listed.
    """
    fs, path = _resolve(url)
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            found = _local_entries(Path(path).iterdir(), Path(path), url)
        else:
            found = []
            for detail in fs.ls(path, detail=True):
                name = str(detail["name"]).rstrip("/").rpartition("/")[2]
                if name and str(detail["name"]).rstrip("/") != path.rstrip("/"):
                    found.append(_entry(detail, join(url, name), name))
    return sorted(found, key=lambda entry: entry.name)


def find(url: str) -> list[Entry]:
    """Every file below a folder, sorted by name; nothing for a folder that is not there.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    fs, path = _resolve(url)
    with storage_errors(url):
        if isinstance(fs, LocalFileSystem):
            files = _local_entries(Path(path).rglob("*"), Path(path), url)
            found = [entry for entry in files if not entry.is_folder]
        else:
            details = fs.find(path, detail=True)
            names = {file: file.removeprefix(path).lstrip("/") for file in details}
            found = [_entry(details[f], join(url, name), name) for f, name in names.items() if name]
    return sorted(found, key=lambda entry: entry.name)


def glob(pattern: str) -> list[str]:
    """The URLs of the files and folders that a pattern matches, sorted.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    fs, path = _resolve(pattern)
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
    fs, path = _resolve(url)
    with storage_errors(url, CommitError):
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            return


class Publication:
    """A file on its way: write `path`, leave the `with` block cleanly, and it is at `url`, whole.

    An exception in the block publishes nothing and leaves nothing behind.
    """

    def __init__(self, url: str, attempt: str) -> None:
        self.url = url
        self._attempt = attempt
        self._published: Published | None = None
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """The local temporary file, inside the `with` block."""
        if self._path is None:
            raise RuntimeError(f"{self.url}: a publication has a path inside its `with` block only")
        return self._path

    @property
    def published(self) -> Published:
        """Size and checksum of what is now at `url`, after the `with` block."""
        if self._published is None:
            raise RuntimeError(f"{self.url}: nothing is published before the `with` block ends")
        return self._published

    def __enter__(self) -> Publication:
        target = local_path(self.url)
        with storage_errors(self.url, CommitError):
            if target is None:
                descriptor, name = tempfile.mkstemp(prefix="capfilt-", suffix=".tmp")
                os.close(descriptor)
                self._path = Path(name)
            else:
                # Beside its target, because a rename across file systems would be a copy.
                target.parent.mkdir(parents=True, exist_ok=True)
                self._path = target.with_name(f".{target.name}.{self._attempt}.tmp")
                self._path.write_bytes(b"")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        path = self.path
        try:
            with storage_errors(self.url, CommitError):
                if error is None:
                    self._published = _publish(path, self.url)
                elif isinstance(error, OSError):  # of writing: reading raises InputError
                    raise error
        finally:
            self._path = None
            path.unlink(missing_ok=True)


def publishing(url: str, attempt: str | None = None) -> Publication:
    """Build a file in a temporary place and publish it whole.

        with publishing("s3://bucket/out/data/00000.tar", attempt) as publication:
            publication.path.write_bytes(...)
        publication.published.sha256

    Args:
        url: Where the file shall be.
        attempt: Tells apart two writers of the same file; None takes a random one.

    Raises:
        CommitError: The file cannot be written or published.
    """
    return Publication(url, attempt or uuid.uuid4().hex)


def write_bytes(url: str, data: bytes) -> Published:
    """Publish a small file.

    Raises:
        CommitError: The file cannot be written.
    """
    with publishing(url) as publication:
        publication.path.write_bytes(data)
    return publication.published


def clean_temporary(root: str, *, of: str = "") -> list[str]:
    """Remove what killed attempts have left below an output folder.

    A writer that is alive after all finds its file gone when it publishes, and fails its attempt.

    Args:
        root: The output. Only local outputs can have left-overs; others are not touched.
        of: How the attempts' names start; "" for any.

    Returns:
        The removed paths, sorted.
    """
    folder = local_path(root)
    if folder is None:
        return []
    removed = []
    with storage_errors(root, CommitError):
        for path in sorted(folder.rglob(f".*.{of}*.tmp")):
            with suppress(FileNotFoundError):  # its writer has just published it
                path.unlink()
                removed.append(str(path))
    return removed


def _publish(path: Path, url: str) -> Published:
    with path.open("rb+") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    published = Published(url, path.stat().st_size, sha256)
    fs, target = _resolve(url)
    if isinstance(fs, LocalFileSystem):
        path.replace(target)
        _sync_folder(Path(target).parent)
        return published
    try:
        fs.put_file(str(path), target)
    except FileNotFoundError:
        if url.partition("://")[0] in _BUCKETS:  # making folders would make a misspelt bucket
            raise
        fs.makedirs(fs._parent(target), exist_ok=True)
        fs.put_file(str(path), target)
    return published


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _resolve(url: str) -> tuple[Any, str]:
    """The file system and the path on it. No listing cache: it would show a resume old files."""
    try:
        fs, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(url.partition("://")[0])
        hint = f"pip install 'capfilt[{extra}]'" if extra else " ".join(str(error).split())
        raise InputError(f"{url}: this kind of URL needs another package: {hint}") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error
    return fs, str(path)


def _local_entries(paths: Iterable[Path], folder: Path, url: str) -> list[Entry]:
    found = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            found.append(_local_entry(path, join(url, name), name))
        except FileNotFoundError:  # removed or renamed meanwhile, or a link to nothing
            continue
    return found


def _local_entry(path: Path, url: str, name: str) -> Entry:
    found = path.stat()  # of a link's target: that is what will be read
    is_folder = stat.S_ISDIR(found.st_mode)
    return Entry(url, name, is_folder, found.st_size, f"mtime:{found.st_mtime_ns}")


def _entry(detail: dict[str, Any], url: str, name: str) -> Entry:
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
    return Entry(url, name, is_folder, int(detail.get("size") or 0), version)


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
