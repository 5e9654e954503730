"""Shards cut on all cores: a process each, since copying and parsing hold Python's lock."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from capfilt.io.commits import Commit
from capfilt.run.engine import Done, Outcome, Work, settle
from capfilt.select.cutter import Cutter
from capfilt.shard import InputShard
from capfilt.tally import Tally

MAX_ATTEMPTS = 3  # per shard, as of a run
_cutter: Cutter  # of this process, set by `_hold`


class CutEngine:
    """Runs a cutter over shards; `capfilt.run.engine.Engine`."""

    def __init__(self, cutter: Cutter, *, shards: int) -> None:
        self._cutter = cutter
        self.workers = min(len(os.sched_getaffinity(0)), shards)

    def in_flight(self) -> Tally:
        """A cut takes seconds a shard: nothing is counted before its commit."""
        return Tally()

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]:
        """Process every shard; one that raises is tried again until `MAX_ATTEMPTS`."""
        queue = deque(filter(None, works))  # a cut's are all there
        running: dict[Future[Commit], Work] = {}
        # Not forked: Arrow's threads would not come along.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, _hold, (self._cutter,)) as pool:
            while queue or running:
                while queue and len(running) < 2 * self.workers:
                    work = queue.popleft()
                    running[pool.submit(_process, work.shard, work.redo)] = work
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                if not done:
                    yield None
                for future in done:
                    work = running.pop(future)
                    error = future.exception()
                    if error is None:
                        yield Done(future.result())
                        continue
                    outcome = settle(work, error, max_attempts=MAX_ATTEMPTS)
                    if isinstance(outcome, Work):
                        queue.append(outcome)
                    else:
                        yield outcome


def _hold(cutter: Cutter) -> None:
    global _cutter
    _cutter = cutter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who hands out shards


def _process(shard: InputShard, redo: bool) -> Commit:
    return _cutter.process(shard, redo=redo)
