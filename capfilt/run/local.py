"""The engine without Ray: one worker in this process, two shards in flight."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from capfilt.io.commits import Commit
from capfilt.run.engine import Done, Inbox, Outcome, Work, settle
from capfilt.run.task import Task
from capfilt.run.worker import Worker
from capfilt.tally import Tally

IN_FLIGHT = 2  # shards: one in the models, one being read or published


class LocalEngine:
    """Runs a worker's `process` on two threads."""

    workers = 1

    def __init__(self, worker: Worker, task: Task) -> None:
        self._worker = worker
        self._task = task

    @classmethod
    def load(cls, task: Task) -> LocalEngine:
        return cls(Worker.load(task, cpus=len(os.sched_getaffinity(0))), task)

    def in_flight(self) -> Tally:
        return self._worker.in_flight()

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]:
        """Process every shard; one that raises is tried again until `max_attempts`."""
        inbox, queue = Inbox(works), deque[Work]()
        running: dict[Future[Commit], Work] = {}
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="shard") as pool:
            try:
                queue.extend(inbox.take())
                while queue or running or inbox.is_open:
                    while queue and len(running) < IN_FLIGHT:
                        work = queue.popleft()
                        future = pool.submit(self._worker.process, work.shard, redo=work.redo)
                        running[future] = work
                    done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                    if not done:
                        time.sleep(0.0 if running else 1.0)  # it waits for none of none
                        yield None
                    for future in done:
                        work = running.pop(future)
                        error = future.exception()
                        if error is None:
                            yield Done(future.result())
                            continue
                        outcome = settle(
                            work, error, max_attempts=self._task.config.compute.max_attempts
                        )
                        if isinstance(outcome, Work):
                            queue.append(outcome)
                        else:
                            yield outcome
                    queue.extend(inbox.take())
            finally:
                for future in running:
                    future.cancel()
                self._worker.close()
