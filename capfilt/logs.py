"""Logs on stderr: lines for people, or JSON lines for a log store.

A line of JSON has the time, the level, the message, host and process, and, where they are known,
the `shard` and the `worker` that it is about. Ray keeps the stderr of every worker among its logs;
JSON there has each record, debug included, since a store can filter.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from capfilt.errors import ConfigError
from capfilt.text import printable

FORMATS = ("text", "json")
ENVIRONMENT = "CAPFILT_LOG_FORMAT"  # by it, workers on other machines are told

log = logging.getLogger("capfilt")


def set_up(wanted: str, *, debug: bool = False, worker: str | None = None) -> None:
    """Send this process's logs to stderr.

    Args:
        wanted: One of `FORMATS`; processes started from here inherit it.
        debug: Show debug records to people, too.
        worker: Name of the worker whose process this is.

    Raises:
        ConfigError: There is no such format.
    """
    if wanted not in FORMATS:
        raise ConfigError(f"--log-format: {wanted!r} is none of {', '.join(FORMATS)}")
    os.environ[ENVIRONMENT] = wanted
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(worker) if is_json() else _ForPeople())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=worker is not None)
    log.setLevel(logging.DEBUG if debug or is_json() else logging.INFO)


def form() -> str:
    """The format that this process was told to log in."""
    return os.environ.get(ENVIRONMENT, FORMATS[0])


def is_json() -> bool:
    """Whether that is JSON."""
    return form() == "json"


def about(**fields: Any) -> Mapping[str, Any]:
    """For `extra=` of a log call: fields of its JSON line, such as `shard` and `worker`."""
    return {"about": fields}


class _ForPeople(logging.Formatter):
    """Names and messages come from strangers, too."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _JsonLines(logging.Formatter):
    def __init__(self, worker: str | None) -> None:
        super().__init__()
        self._always = {"host": socket.gethostname(), "pid": os.getpid()}
        if worker is not None:
            self._always["worker"] = worker

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return printable(json.dumps(fields, ensure_ascii=False, default=str))
