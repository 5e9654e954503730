"""Shards cut on all cores: a process each, since copying and parsing hold Python's lock."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from capfilt.io.commits import Commit
from capfilt.run.engine import Outcome, Work
from capfilt.run.pool import work_through
from capfilt.select.cutter import Cutter
from capfilt.shard import InputShard
from capfilt.tally import Tally

MAX_ATTEMPTS = 3  # per shard, as of a run
_OF_ARROW = "pandas"  # which Arrow loads late, where it is there: 0.3 s
_cutter: Cutter  # of this process, set by `_hold`


class CutEngine:
    """Runs a cutter over shards; `capfilt.run.engine.Engine`."""

    def __init__(self, cutter: Cutter, *, shards: int) -> None:
        self._cutter = cutter
        # One more than cores, since one of them waits for the disk or the store.
        self.workers = min(len(os.sched_getaffinity(0)) + 1, shards)

    def in_flight(self) -> Tally:
        """A cut takes seconds a shard: nothing is counted before its commit."""
        return Tally()

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]:
        """Process every shard; one that raises is tried again until `MAX_ATTEMPTS`."""
        # Not forked from this process, whose threads would not come along, but from one that has
        # loaded the modules and nothing else.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([Cutter.__module__, _OF_ARROW])
        with ProcessPoolExecutor(self.workers, context, _hold, (self._cutter,)) as pool:
            yield from work_through(
                works,
                lambda work: pool.submit(_process, work.shard, work.redo),
                in_flight=2 * self.workers,
                max_attempts=MAX_ATTEMPTS,
            )


def _hold(cutter: Cutter) -> None:
    global _cutter
    _cutter = cutter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who hands out shards


def _process(shard: InputShard, redo: bool) -> Commit:
    return _cutter.process(shard, redo=redo)
