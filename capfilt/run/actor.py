"""A worker as Ray drives it: shards in by path, commits out.

Nothing of the data passes through Ray's object store.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
import ray.util.metrics

from capfilt import logs
from capfilt.errors import ConfigError
from capfilt.io import files, outputs, publish
from capfilt.io.commits import Commit
from capfilt.run.attempt import Attempt, Claim, OvertakenError
from capfilt.run.metrics import WorkerExport
from capfilt.run.task import Task
from capfilt.shard import InputShard
from capfilt.tally import Tally

if TYPE_CHECKING:
    from capfilt.run.worker import Worker

LoadWorker = Callable[[Task, int], "Worker"]  # by task and CPU cores
Race = tuple[Any, int]  # the handle of a `Referee`, and the number of a race


class Actor:
    """A `Worker` as Ray sees it. Loading is a call, so that its error arrives whole."""

    def load(self, task: Task, load_worker: LoadWorker, cpus: int) -> str:
        """Returns what its temporary files are called after."""
        self._worker = worker = load_worker(task, cpus)
        logs.set_up(logs.form(), worker=worker.name)
        self._attempts: dict[str, Attempt] = {}  # by shard
        tags = {"run": task.output_url, "worker": worker.name, "device": worker.device}
        self._export = WorkerExport(worker.meter, ray.util.metrics, tags)
        return publish.writer()

    def process(self, shard: InputShard, redo: bool, race: Race | None) -> Commit | None:
        """Returns None where another worker was first."""
        attempt = Attempt(self._claim(race) if race else None)
        self._attempts[shard.id] = attempt
        try:
            return self._worker.process(shard, redo=redo, attempt=attempt)
        except OvertakenError:
            return None
        finally:
            del self._attempts[shard.id]

    def contest(self, shard_id: str, race: Race) -> bool:
        """Let another worker try a shard as well; False when it is too late for that."""
        attempt = self._attempts.get(shard_id)
        return attempt is not None and attempt.contest(self._claim(race))

    def give_up(self, shard_id: str) -> None:
        """Another worker was first."""
        attempt = self._attempts.get(shard_id)
        if attempt is not None:
            attempt.give_up()

    def in_flight(self) -> dict[str, Tally]:
        self._export.refresh()
        return self._worker.in_flight()

    def _claim(self, race: Race) -> Claim:
        referee, number = race
        return lambda: bool(ray.get(referee.claim.remote(number, self._worker.name)))


def load_worker(task: Task, cpus: int) -> Worker:
    """The run's own worker, for this node.

    Raises:
        ConfigError, ModelError: OUTPUT cannot be seen from here, or its models are not there.
    """
    from capfilt.run.worker import Worker  # here: it brings torch, which a driver does without

    manifest = files.join(task.output_url, outputs.MANIFEST)
    if not files.exists(manifest):  # the driver has just written it
        raise ConfigError(
            f"{task.output_url}: a worker on {socket.gethostname()} does not see it: on several "
            "machines OUTPUT must be on a shared file system or an object store"
        )
    return Worker.load(task, cpus=cpus)
