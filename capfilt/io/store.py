"""Which store a place is in, how patiently it is asked, and what its errors mean to a person.

A place is an fsspec URL (`s3://bucket/x`, `memory://x`, `https://host/x`) or a plain local path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from capfilt.errors import CapfiltError, InputError

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


def local_path(url: str) -> Path | None:
    """The local path that a URL means; None when it lies elsewhere."""
    fs, path = resolve(url)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


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
