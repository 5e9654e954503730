"""Publishing: a file is built in a temporary place and appears at its own whole, or not at all.

A temporary file is called `.<name>.<host>-<pid>-<random>.tmp`, after the process that writes it, so
that what a killed process has left can be told from what a living one is writing; of a long name
it has the beginning. For a store it lies in this machine's temporary folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fsspec.implementations.local import LocalFileSystem

from capfilt.errors import CommitError
from capfilt.io import outputs
from capfilt.io.store import local_path, resolve, storage_errors

_TEMPORARY = re.compile(r"\..+\.(?P<host>[\w-]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
# Processes of another machine cannot be asked; a file that none of them has changed for this long
# is taken as left behind. Writers change theirs with every batch.
_LEFT_AFTER_S = 3600.0
_NAMED = 32  # characters of a name, so that those around it have room in the 255 bytes of a name
_FOR_A_STORE = ".capfilt-"
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")  # have no folders


@dataclass(frozen=True, slots=True)
class Published:
    """A file that is now in its place, as its writer made it."""

    url: str
    size_bytes: int
    sha256: str


class Publication:
    """A file on its way: write `path`, leave the `with` block cleanly, and it is at `url`, whole.

    An exception in the block publishes nothing and leaves nothing behind.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.sha256: str | None = None  # of the file, from a writer that has computed it
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
                ending = f".{writer()}-{uuid.uuid4().hex[:8]}.tmp"
                descriptor, name = tempfile.mkstemp(prefix=_FOR_A_STORE, suffix=ending)
                os.close(descriptor)
                self._path = Path(name)
            else:
                # Beside its target, because a rename across file systems would be a copy.
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                except FileNotFoundError as error:  # e.g. below /proc
                    raise CommitError(f"{target.parent}: no folder can be made here") from error
                self._path = temporary_beside(target)
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
                    self._published = _publish(path, self.url, self.sha256)
                elif isinstance(error, OSError):  # of writing: reading raises InputError
                    raise error
        finally:
            self._path = None
            path.unlink(missing_ok=True)


def publishing(url: str) -> Publication:
    """Build a file in a temporary place and publish it whole.

        with publishing("s3://bucket/out/data/00000.tar") as publication:
            publication.path.write_bytes(...)
        publication.published.sha256

    Raises:
        CommitError: The file cannot be written or published.
    """
    return Publication(url)


def write_bytes(url: str, data: bytes) -> Published:
    """Publish a small file.

    Raises:
        CommitError: The file cannot be written.
    """
    with publishing(url) as publication:
        publication.path.write_bytes(data)
    return publication.published


def writer() -> str:
    """This process, as its temporary files are called after it."""
    return f"{_host()}-{os.getpid()}"


def temporary_beside(path: Path) -> Path:
    """A temporary file of this process's, never used before, in the folder of `path`."""
    name = path.name[:_NAMED]
    return path.with_name(f".{name}.{writer()}-{uuid.uuid4().hex[:8]}.tmp")


def clean_temporary(output: str, killed: Collection[str] = ()) -> list[str]:
    """Remove what killed writers have left in an output; what living ones write stays.

    Args:
        output: The output. Only local ones can have left-overs; for others: `clean_for_stores`.
        killed: Writers on any machine that are known to be dead (`writer`).

    Returns:
        The removed paths, sorted.
    """
    root = local_path(output)
    if root is None:
        return []
    removed = []
    with storage_errors(output, CommitError):
        places = [root.glob(".*.tmp"), *((root / name).rglob(".*.tmp") for name in outputs.FOLDERS)]
        for path in sorted(path for place in places for path in place):
            with suppress(FileNotFoundError):  # its writer has just published it
                if _is_left(path, killed):
                    path.unlink()
                    removed.append(str(path))
    return removed


def clean_for_stores() -> None:
    """Remove what killed writers have left on this machine of files that were for a store."""
    for path in Path(tempfile.gettempdir()).glob(f"{_FOR_A_STORE}*.tmp"):
        with suppress(OSError):  # just published, or another user's
            if _is_left(path, ()):
                path.unlink()


def _is_left(path: Path, killed: Collection[str]) -> bool:
    named = _TEMPORARY.fullmatch(path.name)
    if named is None:
        return False  # somebody else's
    if f"{named['host']}-{named['pid']}" in killed:
        return True
    if named["host"] == _host():
        return not is_alive(int(named["pid"]))
    return time.time() - path.stat().st_mtime > _LEFT_AFTER_S


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number that has not ended.

    One that has ended stays until its parent asks for it, and in a container perhaps nobody does.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, so it lives
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # it has just ended, or this system has no such file
        return not Path("/proc/self/stat").exists()
    return state not in ("Z", "X")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())


def _publish(path: Path, url: str, sha256: str | None) -> Published:
    with path.open("rb+") as file:
        sha256 = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    published = Published(url, path.stat().st_size, sha256)
    fs, target = resolve(url)
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
