"""The Ray engine: one actor per GPU or CPU slot, shards in by path, commits out.

Who gets which shard is decided by `capfilt.run.schedule`; the actors themselves are those of
`capfilt.run.fleet`; here are their calls and what follows from each one's end. Where two workers
try the same shard, each asks a referee before it publishes, and the first that asks does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import ray
import ray.util.metrics
from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capfilt.cluster import Resources
from capfilt.errors import StalledError
from capfilt.io import publish
from capfilt.io.partial import Partial
from capfilt.run.actor import LoadWorker, Race
from capfilt.run.attempt import Referee
from capfilt.run.engine import Done, GaveUp, Outcome, Work
from capfilt.run.fleet import Fleet, Slot
from capfilt.run.metrics import DriverExport
from capfilt.run.schedule import Assignment, Schedule
from capfilt.run.task import Task
from capfilt.tally import Tally

# At the end, for a worker whose try is lost to notice that; then for its killed process to be gone.
GRACE_S, DEATH_S = 2.0, 10.0

# Of a worker: its process is gone. Ray's memory monitor says so in an error of its own.
_DEATHS = (RayActorError, OutOfMemoryError, WorkerCrashedError)

log = logging.getLogger("capfilt")


class ClusterEngine:
    """Drives actors with `ray.wait`; replaces those that die."""

    def __init__(
        self,
        task: Task,
        needs: Resources,
        load: LoadWorker | None = None,
        *,
        grows: bool = False,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            task: The run's work order.
            needs: How many workers to begin with, and what each asks of the cluster.
            load: Makes a worker, on its node; None: the run's own.
            grows: Start more workers as nodes join.
        """
        self._task = task
        self._fleet = Fleet(task, needs, load, grows=grows)
        self._races = count()
        self._referee: Any = None
        self._polled_at = 0.0
        self.workers = needs.workers

    def in_flight(self) -> Tally:
        return Tally.sum(slot.in_flight for slot in self._fleet)

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]:
        """Process every shard on the actors."""
        self._schedule = Schedule(
            works, max_attempts=self._task.config.compute.max_attempts, clock=time.monotonic
        )
        self._export = DriverExport(ray.util.metrics, self._task.output_url)
        try:
            self._fleet.begin()
            while self._assign():
                yield from self._ended()
                if time.monotonic() - self._polled_at > 1.0:
                    self._polled_at = time.monotonic()
                    self._look()
                    yield None
            self._let_end()
        finally:
            self._clean(self._fleet.end())

    def _ended(self) -> Iterator[Outcome]:
        """What has come of the calls that end within about a second."""
        slots = {call: slot for slot in self._fleet for call in slot.calls}
        if not slots:  # every worker waits for the next shard to arrive
            time.sleep(1.0)
        ready, _ = ray.wait(list(slots), num_returns=1, timeout=1.0)
        for call in ready:
            slot = slots[call]
            if slot not in self._fleet:
                continue  # replaced because of another call's end
            outcome = self._finish(slot, call)
            if outcome is not None:
                self._export.count("done" if isinstance(outcome, Done) else "failed")
                yield outcome

    def _look(self) -> None:
        """See how far the workers are, and whether there is room for more."""
        for slot in self._fleet.loaded:
            for shard_id, tally in slot.look().items():
                self._schedule.progress(slot.number, shard_id, tally.read)
            if slot.is_silent:
                self._give_up(slot, "does not answer")
        self._export.refresh(
            waiting=self._schedule.waiting,
            in_flight=sum(len(slot.running) for slot in self._fleet),
            workers=len(self._fleet.loaded),
        )
        self._fleet.grow(self._schedule.waiting)
        self._fleet.say_if_waiting()

    def _let_end(self) -> None:
        """Every shard is done; those that are at one all the same have lost it."""
        lost = [call for slot in self._fleet for call in slot.running]
        if lost:
            ended, _ = ray.wait(lost, num_returns=len(lost), timeout=GRACE_S)
            for slot in self._fleet:
                slot.running = {c: name for c, name in slot.running.items() if c not in ended}

    def _clean(self, slots: Iterable[Slot]) -> None:
        """Remove what killed workers have left, on whichever machine they were."""
        busy = [slot for slot in slots if slot.running]
        calls = [call for slot in busy for call in slot.running]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=DEATH_S)
        killed = self._fleet.killed | {slot.writer for slot in busy}
        if killed:
            publish.clean_temporary(self._task.output_url, killed)
        for slot in busy:
            for shard_id in slot.running.values():
                if self._schedule.is_done(slot.number, shard_id):
                    Partial(self._task.output_url, shard_id, {}, every=0).remove()

    def _assign(self) -> bool:
        """Give every worker what it can take; False when nothing is left to do or to wait for."""
        for each in self._schedule.assign():
            if each.rival is None:
                self._submit(each, None)
                continue
            rival, race = self._fleet[each.rival], (self._get_referee(), next(self._races))
            call = rival.actor.contest.remote(each.work.shard.id, race)
            rival.contests[call] = (each, race)
        return not self._schedule.is_finished

    def _submit(self, each: Assignment, race: Race | None) -> None:
        slot, work = self._fleet[each.worker], each.work
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

    def _finish(self, slot: Slot, call: Any) -> Outcome | None:
        """Take the end of one call: of a worker's loading, or of a shard."""
        if call in slot.contests:
            return self._contested(slot, call)
        try:
            result = ray.get(call)
        except RayTaskError as raised:
            error = raised.cause if isinstance(raised.cause, Exception) else raised
            if call is slot.loading:
                self._fleet.has_not_loaded(slot, error)
                return None
            gave_up = self._schedule.failed(slot.number, slot.running.pop(call), error)
            self._count_retry(gave_up)
            if isinstance(error, StalledError):
                self._give_up(slot, "hangs")
            return gave_up
        except _DEATHS as died:
            return self._replace(slot, died)
        if call is slot.loading:
            self._fleet.has_loaded(slot, result)
            self._schedule.join(slot.number)
            return None
        shard_id = slot.running.pop(call)
        if result is None:
            self._schedule.withdrawn(slot.number, shard_id)
            return None
        slot.in_flight = Tally()  # counted by its commit now; the next poll has the rest
        self._schedule.progress(slot.number, shard_id, result.counts["read"])
        for other in self._schedule.done(slot.number, shard_id):
            self._fleet[other].actor.give_up.remote(shard_id)
        return Done(result)

    def _contested(self, slot: Slot, call: Any) -> Outcome | None:
        """Begin the copy of a shard, now that the worker which has it will ask the referee."""
        each, race = slot.contests.pop(call)
        try:
            agreed = ray.get(call)
        except _DEATHS as died:
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

    def _replace(self, slot: Slot, died: RayError) -> GaveUp | None:
        """Start another worker in place of a dead one and see to the shards that it held."""
        if slot.loading is not None:
            self._fleet.has_not_loaded(slot, died)
            return None
        log.warning("a worker died and is replaced: %s", " ".join(str(died).split())[:200])
        self._exchange(slot)
        gave_up = self._schedule.died(slot.number)
        self._count_retry(gave_up)
        return gave_up

    def _give_up(self, slot: Slot, how: str) -> None:
        """Replace a worker that hangs or is stopped; the shards that it holds have no blame."""
        log.warning("a worker %s and is replaced", how)
        self._exchange(slot)
        self._schedule.dismiss(slot.number)

    def _exchange(self, slot: Slot) -> None:
        self._fleet.exchange(slot)
        for each, _ in slot.contests.values():
            self._schedule.too_late(each)
