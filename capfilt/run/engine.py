"""What an engine gives back for each shard, and how often a shard is tried."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from capfilt.errors import CapfiltError, ConfigError, ModelError
from capfilt.io.commits import Commit
from capfilt.logs import about
from capfilt.shard import InputShard
from capfilt.tally import Tally

log = logging.getLogger("capfilt")


@dataclass(frozen=True, slots=True)
class Work:
    """A shard on its way through an engine."""

    shard: InputShard
    redo: bool = False  # a stale commit goes first
    attempts: int = 0  # tries that ended in an error
    suspect: bool = False  # was on a worker that died; runs alone, so that the blame is certain


@dataclass(frozen=True, slots=True)
class Done:
    """A shard has its commit."""

    commit: Commit


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A shard failed `max_attempts` times; `error` is one line."""

    shard: InputShard
    attempts: int
    error: str


Outcome = Done | GaveUp


class Inbox:
    """Shards for an engine as they arrive: a None among them means that the next come later."""

    def __init__(self, works: Iterable[Work | None]) -> None:
        self._works = iter(works)
        self.is_open = True  # until it is known that no more will come

    def take(self) -> Iterator[Work]:
        """Those that are there by now; does not wait for others."""
        for work in self._works:
            if work is None:
                return
            yield work
        self.is_open = False


class Engine(Protocol):
    """Runs a task over shards. `execute` yields each outcome, and None about once a second.

    It takes what `works` gives up to a None and asks again within about a second, until it ends.
    """

    workers: int

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]: ...

    def in_flight(self) -> Tally:
        """Counts of the shards that workers are at."""
        ...


def settle(work: Work, error: BaseException, *, max_attempts: int) -> Work | GaveUp:
    """What follows from a failed try: another try, or the end.

    Raises:
        ConfigError, ModelError: These would fail every shard alike, so the run ends.
    """
    if isinstance(error, ConfigError | ModelError) or not isinstance(error, Exception):
        raise error
    attempts = work.attempts + 1
    if attempts < max_attempts:
        log.warning(
            "shard %s is tried again (%d of %d failed): %s",
            work.shard.id,
            attempts,
            max_attempts,
            one_line(error),
            extra=about(shard=work.shard.id, attempts=attempts),
        )
        return replace(work, attempts=attempts)
    return GaveUp(work.shard, attempts, one_line(error))


def one_line(error: BaseException) -> str:
    """An error as a person reads it: our own by their message, others with their class."""
    message = " ".join(str(error).split())
    return message if isinstance(error, CapfiltError) else f"{type(error).__name__}: {message}"
