"""The Ray engine: one actor per GPU or CPU slot, shards in by path, commits out.

Nothing of the data passes through Ray's object store. Who gets which shard is decided by
`capfilt.run.schedule`; here are the actors, their calls and their deaths. Where two workers try the
same shard, each asks a referee before it publishes, and the first that asks does.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import ray
import ray.util.metrics
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capfilt import logs
from capfilt.cluster import Resources, room
from capfilt.errors import CapfiltError, ConfigError, ModelError, StalledError
from capfilt.io import files, outputs, publish
from capfilt.io.commits import Commit
from capfilt.io.partial import Partial
from capfilt.run.attempt import Attempt, Claim, OvertakenError
from capfilt.run.engine import Done, GaveUp, Outcome, Work, one_line
from capfilt.run.metrics import DriverExport, WorkerExport
from capfilt.run.schedule import IN_FLIGHT, Assignment, Schedule
from capfilt.run.task import Task
from capfilt.shard import InputShard
from capfilt.tally import Tally

if TYPE_CHECKING:
    from capfilt.run.worker import Worker

PATIENCE_S = 60.0  # before a person is told that no worker has started
# Workers in a row that end before their models are loaded; more where some have loaded them, since
# then it is not the models that do not fit but the machines that are taken away.
MAX_FAILED_STARTS, MAX_TAKEN_AWAY = 3, 30
LOOK_FOR_NODES_S = 5.0
# Looks, about a second apart, for an answer that does not come: a worker's process is stopped, and
# Ray does not miss it. Not seconds, which pass as well while this process is stopped itself.
SILENT_LOOKS = 300
# At the end, for a worker whose try is lost to notice that; then for its killed process to be gone.
GRACE_S, DEATH_S = 2.0, 10.0

LoadWorker = Callable[[Task, int], "Worker"]  # by task and CPU cores

log = logging.getLogger("capfilt")


class Referee:
    """Lets the first that asks publish, in each race of two tries of a shard."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}

    def claim(self, race: int, who: str) -> bool:
        return self._first.setdefault(race, who) == who


Race = tuple[Any, int]  # the referee's handle, and the number of a race


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


def _load_worker(task: Task, cpus: int) -> Worker:
    from capfilt.run.worker import Worker  # here: it brings torch, which a driver does without

    manifest = files.join(task.output_url, outputs.MANIFEST)
    if not files.exists(manifest):  # the driver has just written it
        raise ConfigError(
            f"{task.output_url}: a worker on {socket.gethostname()} does not see it: on several "
            "machines OUTPUT must be on a shared file system or an object store"
        )
    return Worker.load(task, cpus=cpus)


@dataclass(eq=False)
class _Slot:
    """An actor and what it was asked, by the reference of the call."""

    number: int
    actor: Any
    loading: Any  # reference of its `load` call; None once the models are there
    writer: str = ""  # what its temporary files are called after
    running: dict[Any, str] = field(default_factory=dict)  # shards
    contests: dict[Any, tuple[Assignment, Race]] = field(default_factory=dict)
    in_flight: Tally = field(default_factory=Tally)
    poll: Any = None  # reference of an `in_flight` call under way
    silent_looks: int = 0  # for its answer

    @property
    def calls(self) -> list[Any]:
        if self.loading is not None:
            return [self.loading]
        return [*self.running, *self.contests]


class ClusterEngine:
    """Drives actors with `ray.wait`; replaces those that die."""

    def __init__(
        self,
        task: Task,
        needs: Resources,
        load_worker: LoadWorker | None = None,
        *,
        grows: bool = False,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            task: The run's work order.
            needs: How many workers to begin with, and what each asks of the cluster.
            load_worker: Runs on the worker's node.
            grows: Start more workers as nodes join.
        """
        self._task = task
        self._load_worker = load_worker or _load_worker
        self._needs = needs
        self._grows = grows
        self._slots: dict[int, _Slot] = {}
        self._numbers, self._races = count(), count()
        self._referee: Any = None
        self._killed: set[str] = set()  # writers
        self._failed_starts = 0
        self._most_failed_starts = MAX_FAILED_STARTS
        self._polled_at = self._looked_at = 0.0
        self._waiting_since: float | None = None
        self.workers = needs.workers

    def in_flight(self) -> Tally:
        return Tally.sum(slot.in_flight for slot in self._slots.values())

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]:
        """Process every shard on the actors."""
        self._schedule = Schedule(
            works, max_attempts=self._task.config.compute.max_attempts, clock=time.monotonic
        )
        self._export = DriverExport(ray.util.metrics, self._task.output_url)
        try:
            for _ in range(self.workers):
                self._start()
            self._waiting_since = self._looked_at = time.monotonic()
            while self._assign():
                slots = {call: slot for slot in self._slots.values() for call in slot.calls}
                if not slots:  # every worker waits for the next shard to arrive
                    time.sleep(1.0)
                ready, _ = ray.wait(list(slots), num_returns=1, timeout=1.0)
                for call in ready:
                    slot = slots[call]
                    if slot.number not in self._slots:
                        continue  # replaced because of another call's end
                    outcome = self._finish(slot, call)
                    if outcome is not None:
                        self._export.count("done" if isinstance(outcome, Done) else "failed")
                        yield outcome
                if time.monotonic() - self._polled_at > 1.0:
                    self._polled_at = time.monotonic()
                    self._poll()
                    self._export.refresh(
                        waiting=self._schedule.waiting,
                        in_flight=sum(len(slot.running) for slot in self._slots.values()),
                        workers=sum(slot.loading is None for slot in self._slots.values()),
                    )
                    self._grow()
                    self._say_if_waiting()
                    yield None
            self._let_end()
        finally:
            for slot in self._slots.values():
                ray.kill(slot.actor)
            self._clean()
            self._slots.clear()

    def _let_end(self) -> None:
        """Every shard is done; those that are at one all the same have lost it."""
        lost = [call for slot in self._slots.values() for call in slot.running]
        if lost:
            ended, _ = ray.wait(lost, num_returns=len(lost), timeout=GRACE_S)
            for slot in self._slots.values():
                slot.running = {c: name for c, name in slot.running.items() if c not in ended}

    def _clean(self) -> None:
        """Remove what killed workers have left, on whichever machine they were."""
        busy = [slot for slot in self._slots.values() if slot.running]
        calls = [call for slot in busy for call in slot.running]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=DEATH_S)
        self._killed.update(slot.writer for slot in busy)
        if self._killed:
            publish.clean_temporary(self._task.output_url, self._killed)
        for slot in busy:
            for shard_id in slot.running.values():
                if self._schedule.is_done(slot.number, shard_id):
                    Partial(self._task.output_url, shard_id, {}, every=0).remove()

    def _grow(self) -> None:
        """Start workers on nodes that have joined, as long as there are shards for them."""
        if not self._grows or time.monotonic() - self._looked_at < LOOK_FOR_NODES_S:
            return
        self._looked_at = time.monotonic()
        more = min(room(self._needs) - len(self._slots), self._schedule.waiting)
        for _ in range(more):
            log.info("a node has joined: another worker is started")
            self._start()

    def _start(self) -> None:
        # Ray leaves it unset for an actor without GPUs, which would mean every GPU.
        env = {} if self._needs.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        env[logs.ENVIRONMENT] = logs.form()
        actor = (
            ray.remote(Actor)
            .options(
                num_gpus=self._needs.gpus,
                num_cpus=self._needs.cpus,
                max_restarts=0,
                max_concurrency=IN_FLIGHT + 2,  # more for `in_flight` and for what is short
                runtime_env={"env_vars": env},
            )
            .remote()
        )
        number = next(self._numbers)
        loading = actor.load.remote(self._task, self._load_worker, self._needs.cpus)
        self._slots[number] = _Slot(number, actor, loading)

    def _assign(self) -> bool:
        """Give every worker what it can take; False when nothing is left to do or to wait for."""
        for each in self._schedule.assign():
            if each.rival is None:
                self._submit(each, None)
                continue
            rival, race = self._slots[each.rival], (self._get_referee(), next(self._races))
            call = rival.actor.contest.remote(each.work.shard.id, race)
            rival.contests[call] = (each, race)
        return not self._schedule.is_finished

    def _submit(self, each: Assignment, race: Race | None) -> None:
        slot, work = self._slots[each.worker], each.work
        slot.running[slot.actor.process.remote(work.shard, work.redo, race)] = work.shard.id

    def _get_referee(self) -> Any:
        if self._referee is None:
            # On the driver's own node: of those that go, it alone takes the run with it.
            here = NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            options = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": here}
            self._referee = ray.remote(Referee).options(**options).remote()
        return self._referee

    def _finish(self, slot: _Slot, call: Any) -> Outcome | None:
        """Take the end of one call: of a worker's loading, or of a shard."""
        if call in slot.contests:
            return self._contested(slot, call)
        try:
            result = ray.get(call)
        except RayTaskError as raised:
            error = raised.cause if isinstance(raised.cause, Exception) else raised
            if call is slot.loading:
                self._not_loaded(slot, error)
                return None
            gave_up = self._schedule.failed(slot.number, slot.running.pop(call), error)
            self._count_retry(gave_up)
            if isinstance(error, StalledError):
                self._give_up(slot, "hangs")
            return gave_up
        except RayActorError as died:
            return self._replace(slot, died)
        if call is slot.loading:
            slot.loading, slot.writer, self._failed_starts = None, result, 0
            self._most_failed_starts = MAX_TAKEN_AWAY
            self._schedule.join(slot.number)
            return None
        shard_id = slot.running.pop(call)
        if result is None:
            self._schedule.withdrawn(slot.number, shard_id)
            return None
        slot.in_flight = Tally()  # counted by its commit now; the next poll has the rest
        self._schedule.progress(slot.number, shard_id, result.counts["read"])
        for other in self._schedule.done(slot.number, shard_id):
            self._slots[other].actor.give_up.remote(shard_id)
        return Done(result)

    def _contested(self, slot: _Slot, call: Any) -> Outcome | None:
        """Begin the copy of a shard, now that the worker which has it will ask the referee."""
        each, race = slot.contests.pop(call)
        try:
            agreed = ray.get(call)
        except RayActorError as died:
            self._schedule.too_late(each)
            return self._replace(slot, died)
        if agreed and self._schedule.wants(each):
            self._submit(each, race)
        else:
            self._schedule.too_late(each)
        return None

    def _count_retry(self, gave_up: GaveUp | None) -> None:
        if gave_up is None:
            self._export.count("retried")

    def _replace(self, slot: _Slot, died: RayActorError) -> GaveUp | None:
        """Start another worker in place of a dead one and see to the shards that it held."""
        if slot.loading is not None:
            self._not_loaded(slot, died)
            return None
        log.warning("a worker died and is replaced: %s", " ".join(str(died).split())[:200])
        self._exchange(slot)
        gave_up = self._schedule.died(slot.number)
        self._count_retry(gave_up)
        return gave_up

    def _not_loaded(self, slot: _Slot, error: Exception) -> None:
        """Try again: one GPU may be sick, one node too small or taken away; but not for ever."""
        if isinstance(error, ConfigError | ModelError):
            raise error from None
        log.warning("a worker could not load its models: %s", one_line(error)[:300])
        self._failed_starts += 1
        if self._failed_starts < self._most_failed_starts:
            self._exchange(slot)
            return
        told = f"{self._failed_starts} workers in a row died while loading their models"
        if not any(other.loading is None for other in self._slots.values()):
            raise CapfiltError(
                f"{told}; is there memory enough for them? (the reason is in Ray's logs)"
            )
        log.warning("%s; the others go on without more of them", told)
        self._grows = False
        self._remove(slot)

    def _give_up(self, slot: _Slot, how: str) -> None:
        """Replace a worker that hangs or is stopped; the shards that it holds have no blame."""
        log.warning("a worker %s and is replaced", how)
        self._exchange(slot)
        self._schedule.dismiss(slot.number)

    def _exchange(self, slot: _Slot) -> None:
        self._remove(slot)
        self._start()

    def _remove(self, slot: _Slot) -> None:
        ray.kill(slot.actor)  # it may only be unreachable
        del self._slots[slot.number]
        for each, _ in slot.contests.values():
            self._schedule.too_late(each)
        if slot.writer:
            self._killed.add(slot.writer)

    def _say_if_waiting(self) -> None:
        """Name the reason once when no worker gets a place: others may hold the cluster."""
        if any(slot.loading is None for slot in self._slots.values()):
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
        """Ask workers how far they are, without waiting for the answer; but not for ever."""
        for slot in [slot for slot in self._slots.values() if slot.loading is None]:
            if slot.poll is not None and ray.wait([slot.poll], timeout=0)[0]:
                with suppress(RayError):  # its death, if it is that, arrives with its shards
                    self._note(slot, ray.get(slot.poll))
                slot.poll = None
            if slot.poll is None:  # an idle one has figures, too
                slot.poll, slot.silent_looks = slot.actor.in_flight.remote(), 0
            slot.silent_looks += 1
            if slot.silent_looks > SILENT_LOOKS:
                self._give_up(slot, "does not answer")

    def _note(self, slot: _Slot, in_flight: dict[str, Tally]) -> None:
        slot.in_flight = Tally.sum(in_flight.values())
        for shard_id, tally in in_flight.items():
            self._schedule.progress(slot.number, shard_id, tally.read)
