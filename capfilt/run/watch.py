"""`capfilt watch`: the shards of an INPUT as img2dataset finishes them, for an engine's inbox.

A thread looks at INPUT every few seconds, by one listing of each folder, and opens only what it has
not seen. A shard counts once its `_stats.json` is there, which img2dataset writes last: a tar is
there long before it is whole.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from capfilt.errors import InputError
from capfilt.io.commits import read_commit
from capfilt.io.inputs import Inputs, find_shards
from capfilt.run.engine import Work, one_line
from capfilt.run.plan import make_plan
from capfilt.run.progress import Progress
from capfilt.run.task import Task
from capfilt.shard import InputShard

if TYPE_CHECKING:
    from capfilt.run.where import Where

EVERY_S = 5.0  # between two looks
REST = 10  # times a look's own length, where that is more: 100,000 shards take seconds to list

log = logging.getLogger("capfilt")


def first_look(url: str) -> Inputs:
    """The shards that are finished; none where INPUT itself is yet to come."""
    try:
        return find_shards(url, with_stats=True)
    except InputError as error:
        log.warning("waiting for shards: %s", error)
        return Inputs(())


class Arrivals:
    """Shards that are finished while a run is at work, each once; None where there is none yet.

    Ends when there was nothing to do for `until_idle_s`, or with `limit` shards.

    Raises:
        InputError: It ends, and INPUT never had a shard.
    """

    def __init__(self, task: Task, where: Where, progress: Progress, first: Inputs) -> None:
        self._task = task
        self._where = where
        self._progress = progress  # knows what is in flight, and hears of what has come
        self._known = {shard.id for shard in first.shards}
        self._unfinished = first.unfinished
        self._found: queue.SimpleQueue[Sequence[InputShard]] = queue.SimpleQueue()
        self._over = threading.Event()
        self._problem: InputError | None = None

    def inputs(self) -> Inputs:
        """What is unfinished by the last look."""
        return Inputs((), self._unfinished)

    def __iter__(self) -> Iterator[Work | None]:
        threading.Thread(target=self._keep_looking, name="look", daemon=True).start()
        busy_at = time.monotonic()
        try:
            while not self._is_idle(busy_at) and self._left() > 0:
                for work in self._arrived():
                    self._progress.shards += 1
                    yield work
                if self._progress.shards > self._progress.ended:
                    busy_at = time.monotonic()
                yield None
        finally:
            self._over.set()
        if not self._known:
            raise self._problem or InputError(f"{self._where.input}: no shard was finished")

    def _is_idle(self, busy_at: float) -> bool:
        most_s = self._where.until_idle_s
        return most_s is not None and time.monotonic() - busy_at >= most_s and self._found.empty()

    def _left(self) -> float:
        limit = self._where.limit
        return float("inf") if limit is None else limit - self._progress.shards

    def _arrived(self) -> list[Work]:
        works: list[Work] = []
        while not self._found.empty() and len(works) < self._left():
            works += self._works(self._found.get())
        return works[: int(min(len(works), self._left()))]

    def _works(self, shards: Sequence[InputShard]) -> list[Work]:
        """Those without a commit that holds: an earlier run may have had the same shard."""
        output = self._where.output
        commits = [c for c in (read_commit(output, shard.id) for shard in shards) if c is not None]
        sizes = {path: file.size_bytes for c in commits for path, file in c.outputs.items()}
        plan = make_plan(shards, commits, self._task.fingerprint, sizes.get)
        if self._where.overwrite:
            return [Work(s) for s in plan.todo] + [Work(s, redo=True) for s in plan.stale]
        for shard in plan.stale:
            log.warning("shard %s has another commit and is left; --overwrite redoes it", shard.id)
        return [Work(shard) for shard in plan.todo]

    def _keep_looking(self) -> None:
        rest_s = EVERY_S
        while not self._over.wait(rest_s):
            started = time.monotonic()
            self._look()
            rest_s = max(EVERY_S, REST * (time.monotonic() - started))

    def _look(self) -> None:
        try:
            now = find_shards(self._where.input, with_stats=True, known=self._known)
        except InputError as error:
            if self._known:
                log.warning("INPUT could not be looked at: %s", error)
            self._problem = error
            return
        except Exception as error:  # noqa: BLE001 - the thread looks again, whatever a store raises
            log.warning("INPUT could not be looked at: %s", one_line(error))
            return
        self._unfinished = now.unfinished
        if now.shards:
            self._known.update(shard.id for shard in now.shards)
            self._found.put(now.shards)
