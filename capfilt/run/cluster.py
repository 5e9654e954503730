"""The Ray engine: one actor per GPU or CPU slot, shards in by path, commits out.

Nothing of the data passes through Ray's object store. Each actor has two shards in flight, so
reading and publishing overlap with its models. A call carries its worker's death: when an actor
dies with two shards in flight it is unknown which one killed it, so both become suspects and run
alone, and only a death of a worker that held a single shard counts as a try of that shard.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray
import ray.util.metrics
from ray.exceptions import RayActorError, RayError, RayTaskError

from capfilt.cluster import Resources
from capfilt.errors import CapfiltError, ConfigError, StalledError
from capfilt.io import files, outputs
from capfilt.io.commits import Commit
from capfilt.run.engine import Done, GaveUp, Inbox, Outcome, Work, settle
from capfilt.run.metrics import DriverExport, WorkerExport
from capfilt.run.task import Task
from capfilt.shard import InputShard
from capfilt.tally import Tally

if TYPE_CHECKING:
    from capfilt.run.worker import Worker

IN_FLIGHT = 2  # shards per worker: one in the models, one being read or published
PATIENCE_S = 60.0  # before a person is told that no worker has started
# Workers in a row that die before their models are loaded; more where some have loaded them, since
# then it is not the models that do not fit but the machines that are taken away.
MAX_FAILED_STARTS, MAX_TAKEN_AWAY = 3, 30

LoadWorker = Callable[[Task, int], "Worker"]  # by task and CPU cores

log = logging.getLogger("capfilt")


class WorkerDiedError(CapfiltError):
    """A worker's process ended while it held one shard alone."""

    def __init__(self, shard_id: str) -> None:
        super().__init__(
            f"shard {shard_id}: the worker's process died while it held this shard alone"
        )


class Actor:
    """A `Worker` as Ray sees it. Loading is a call, so that its error arrives whole."""

    def load(self, task: Task, load_worker: LoadWorker, cpus: int) -> None:
        self._worker = worker = load_worker(task, cpus)
        tags = {"run": task.output_url, "worker": worker.name, "device": worker.device}
        self._export = WorkerExport(worker.meter, ray.util.metrics, tags)

    def process(self, shard: InputShard, redo: bool) -> Commit:
        return self._worker.process(shard, redo=redo)

    def in_flight(self) -> Tally:
        self._export.refresh()
        return self._worker.in_flight()


def _load_worker(task: Task, cpus: int) -> Worker:
    from capfilt.run.worker import Worker  # here: it brings torch, which a driver does without

    manifest = files.join(task.output_url, outputs.MANIFEST)
    if not files.exists(manifest):  # the driver has just written it
        raise ConfigError(
            f"{task.output_url}: a worker on {socket.gethostname()} does not see it: on several "
            "machines OUTPUT must be on a shared file system or an object store"
        )
    return Worker.load(task, cpus=cpus)


@dataclass
class _Slot:
    """An actor and the shards it holds, by the reference of their call."""

    actor: Any
    loading: Any  # reference of its `load` call; None once the models are there
    running: dict[Any, Work] = field(default_factory=dict)
    in_flight: Tally = field(default_factory=Tally)
    poll: Any = None  # reference of an `in_flight` call under way

    @property
    def calls(self) -> list[Any]:
        return [self.loading] if self.loading is not None else list(self.running)

    @property
    def takes_more(self) -> bool:
        free = self.loading is None and len(self.running) < IN_FLIGHT
        return free and not any(work.suspect for work in self.running.values())


class ClusterEngine:
    """Drives actors with `ray.wait`; replaces those that die."""

    def __init__(self, task: Task, needs: Resources, load_worker: LoadWorker | None = None) -> None:
        self._task = task
        self._load_worker = load_worker or _load_worker
        self._needs = needs
        self._slots: list[_Slot] = []
        self._inbox = Inbox(())
        self._queue: deque[Work] = deque()
        self._suspects: deque[Work] = deque()  # go to a worker that holds nothing else
        self._failed_starts = 0
        self._most_failed_starts = MAX_FAILED_STARTS
        self._polled_at = 0.0
        self._waiting_since: float | None = None
        self.workers = needs.workers

    def in_flight(self) -> Tally:
        total = Tally()
        for slot in self._slots:
            total.merge(slot.in_flight)
        return total

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]:
        """Process every shard on the actors; see the module's docstring for retries."""
        self._inbox = Inbox(works)
        self._export = DriverExport(ray.util.metrics, self._task.output_url)
        try:
            self._slots.extend(self._start() for _ in range(self.workers))
            self._waiting_since = time.monotonic()
            while self._assign():
                slots = {call: slot for slot in self._slots for call in slot.calls}
                if not slots:  # every worker waits for the next shard to arrive
                    time.sleep(1.0)
                ready, _ = ray.wait(list(slots), num_returns=1, timeout=1.0)
                for call in ready:
                    outcome = self._finish(slots[call], call)
                    if outcome is not None:
                        self._export.count("done" if isinstance(outcome, Done) else "failed")
                        yield outcome
                if time.monotonic() - self._polled_at > 1.0:
                    self._polled_at = time.monotonic()
                    self._poll()
                    self._export.refresh(
                        waiting=len(self._queue) + len(self._suspects),
                        in_flight=sum(len(slot.running) for slot in self._slots),
                        workers=sum(slot.loading is None for slot in self._slots),
                    )
                    self._say_if_waiting()
                    yield None
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)
            self._slots.clear()

    def _start(self) -> _Slot:
        # Ray leaves it unset for an actor without GPUs, which would mean every GPU.
        env = {} if self._needs.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        actor = (
            ray.remote(Actor)
            .options(
                num_gpus=self._needs.gpus,
                num_cpus=self._needs.cpus,
                max_restarts=0,
                max_concurrency=IN_FLIGHT + 1,  # one more for `in_flight`
                runtime_env={"env_vars": env},
            )
            .remote()
        )
        return _Slot(actor, actor.load.remote(self._task, self._load_worker, self._needs.cpus))

    def _assign(self) -> bool:
        """Give every worker what it can take; False when nothing is left to do or to wait for."""
        self._queue.extend(self._inbox.take())
        for slot in self._slots:
            if self._suspects and slot.loading is None and not slot.running:
                self._submit(slot, self._suspects.popleft())
            while self._queue and slot.takes_more:
                self._submit(slot, self._queue.popleft())
        waiting = self._inbox.is_open or self._queue or self._suspects
        return bool(waiting or any(slot.running for slot in self._slots))

    def _submit(self, slot: _Slot, work: Work) -> None:
        slot.running[slot.actor.process.remote(work.shard, work.redo)] = work

    def _finish(self, slot: _Slot, call: Any) -> Outcome | None:
        """Take the end of one call: of a worker's loading, or of a shard."""
        try:
            result = ray.get(call)
        except RayTaskError as raised:
            error = raised.cause if isinstance(raised.cause, Exception) else raised
            if call is slot.loading:
                raise error from None
            work = slot.running.pop(call)
            if isinstance(error, StalledError):
                self._give_up(slot)
            return self._settle(work, error)
        except RayActorError as died:
            return self._replace(slot, died)
        if call is slot.loading:
            slot.loading, self._failed_starts = None, 0
            self._most_failed_starts = MAX_TAKEN_AWAY
            return None
        del slot.running[call]
        slot.in_flight = Tally()  # counted by its commit now; the next poll has the rest
        return Done(result)

    def _settle(self, work: Work, error: Exception) -> GaveUp | None:
        outcome = settle(work, error, max_attempts=self._task.config.compute.max_attempts)
        if isinstance(outcome, GaveUp):
            return outcome
        self._export.count("retried")
        (self._suspects if outcome.suspect else self._queue).append(outcome)
        return None

    def _replace(self, slot: _Slot, died: RayActorError) -> GaveUp | None:
        """Start another worker in place of a dead one and see to the shards that it held."""
        log.warning("a worker died and is replaced: %s", " ".join(str(died).split())[:200])
        ray.kill(slot.actor)  # it may only be unreachable
        if slot.loading is not None:
            self._failed_starts += 1
            if self._failed_starts == self._most_failed_starts:
                raise CapfiltError(
                    f"{self._failed_starts} workers in a row died while loading their models; "
                    "is there memory enough for them? (the reason is in Ray's logs)"
                )
        self._slots[self._slots.index(slot)] = self._start()
        lost = list(slot.running.values())
        if len(lost) == 1:
            return self._settle(replace(lost[0], suspect=True), WorkerDiedError(lost[0].shard.id))
        self._suspects.extend(replace(work, suspect=True) for work in lost)
        return None

    def _give_up(self, slot: _Slot) -> None:
        """Replace a worker in which a thread hangs; the other shard that it holds has no blame."""
        log.warning("a worker hangs and is replaced")
        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._start()
        self._queue.extendleft(slot.running.values())

    def _say_if_waiting(self) -> None:
        """Name the reason once when no worker gets a place: others may hold the cluster."""
        if any(slot.loading is None for slot in self._slots):
            self._waiting_since = None
        elif self._waiting_since and time.monotonic() - self._waiting_since > PATIENCE_S:
            self._waiting_since = None
            free = ray.available_resources()
            log.warning(
                "still waiting for Ray to start workers of %g GPUs and %d CPUs each; free in the "
                "cluster: %g GPUs, %g CPUs",
                self._needs.gpus,
                self._needs.cpus,
                free.get("GPU", 0),
                free.get("CPU", 0),
            )

    def _poll(self) -> None:
        """Ask workers how far they are, without waiting for the answer."""
        for slot in self._slots:
            if slot.poll is not None and ray.wait([slot.poll], timeout=0)[0]:
                with suppress(RayError):  # its death, if it is that, arrives with its shards
                    slot.in_flight = ray.get(slot.poll)
                slot.poll = None
            if slot.poll is None and slot.loading is None:  # an idle one has figures, too
                slot.poll = slot.actor.in_flight.remote()
