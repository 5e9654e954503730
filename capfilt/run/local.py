"""The engine without Ray: one worker in this process, two shards in flight."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from capfilt.run.engine import Outcome, Work
from capfilt.run.pool import work_through
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
        return Tally.sum(self._worker.in_flight().values())

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]:
        """Process every shard; one that raises is tried again until `max_attempts`."""
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="shard") as pool:
            try:
                yield from work_through(
                    works,
                    lambda work: pool.submit(self._worker.process, work.shard, redo=work.redo),
                    in_flight=IN_FLIGHT,
                    max_attempts=self._task.config.compute.max_attempts,
                )
            finally:
                self._worker.close()
