"""The actors of a run on Ray: started, asked how far they are, removed when they end.

One actor per GPU or CPU slot, and more as nodes join. One that cannot load its models is tried
again elsewhere, but not for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import ray
from ray.exceptions import RayError

from capfilt import logs
from capfilt.cluster import Resources, room
from capfilt.errors import CapfiltError, ConfigError, ModelError
from capfilt.run.actor import Actor, LoadWorker, Race, load_worker
from capfilt.run.engine import one_line
from capfilt.run.schedule import IN_FLIGHT, Assignment
from capfilt.run.task import Task
from capfilt.tally import Tally

PATIENCE_S = 60.0  # before a person is told that no worker has started
# Workers in a row that end before their models are loaded; more where some have loaded them, since
# then it is not the models that do not fit but the machines that are taken away.
MAX_FAILED_STARTS, MAX_TAKEN_AWAY = 3, 30
LOOK_FOR_NODES_S = 5.0
# Looks, about a second apart, for an answer that does not come: a worker's process is stopped, and
# Ray does not miss it. Not seconds, which pass as well while this process is stopped itself.
SILENT_LOOKS = 300

log = logging.getLogger("capfilt")


@dataclass(eq=False)
class Slot:
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

    @property
    def is_silent(self) -> bool:
        """Whether it has not answered for too long."""
        return self.silent_looks > SILENT_LOOKS

    def look(self) -> dict[str, Tally]:
        """How far its shards are, where it has answered by now; does not wait for the answer."""
        answer: dict[str, Tally] = {}
        if self.poll is not None and ray.wait([self.poll], timeout=0)[0]:
            with suppress(RayError):  # its death, if it is that, arrives with its shards
                answer = ray.get(self.poll)
                self.in_flight = Tally.sum(answer.values())
            self.poll = None
        if self.poll is None:  # an idle one has figures, too
            self.poll, self.silent_looks = self.actor.in_flight.remote(), 0
        self.silent_looks += 1
        return answer


class Fleet:
    """The slots of a run, by number."""

    def __init__(
        self, task: Task, needs: Resources, load: LoadWorker | None = None, *, grows: bool = False
    ) -> None:
        """Prepare; nothing is started yet. As `ClusterEngine`."""
        self._task = task
        self._load = load or load_worker
        self._needs = needs
        self._grows = grows
        self._slots: dict[int, Slot] = {}
        self._numbers = count()
        self._failed_starts = 0
        self._most_failed_starts = MAX_FAILED_STARTS
        self._looked_at = 0.0
        self._waiting_since: float | None = None
        self.killed: set[str] = set()  # writers

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def __contains__(self, slot: Slot) -> bool:
        return slot.number in self._slots

    @property
    def loaded(self) -> list[Slot]:
        """Those that can take shards."""
        return [slot for slot in self if slot.loading is None]

    def begin(self) -> None:
        """Start as many as the run begins with."""
        for _ in range(self._needs.workers):
            self._start()
        self._waiting_since = self._looked_at = time.monotonic()

    def end(self) -> list[Slot]:
        """Kill them all; they are not ours any more."""
        slots = list(self)
        for slot in slots:
            ray.kill(slot.actor)
        self._slots.clear()
        return slots

    def grow(self, waiting: int) -> None:
        """Start workers on nodes that have joined, as long as there are shards for them."""
        if not self._grows or time.monotonic() - self._looked_at < LOOK_FOR_NODES_S:
            return
        self._looked_at = time.monotonic()
        more = min(room(self._needs) - len(self._slots), waiting)
        for _ in range(more):
            log.info("a node has joined: another worker is started")
            self._start()

    def has_loaded(self, slot: Slot, writer: str) -> None:
        """A worker has its models."""
        slot.loading, slot.writer, self._failed_starts = None, writer, 0
        self._most_failed_starts = MAX_TAKEN_AWAY

    def has_not_loaded(self, slot: Slot, error: Exception) -> None:
        """Try again: one GPU may be sick, one node too small or taken away; but not for ever.

        Raises:
            ConfigError, ModelError: These would keep every worker from its models alike.
            CapfiltError: None of several in a row has loaded them, and there is no other.
        """
        if isinstance(error, ConfigError | ModelError):
            raise error from None
        log.warning("a worker could not load its models: %s", one_line(error)[:300])
        self._failed_starts += 1
        if self._failed_starts < self._most_failed_starts:
            self.exchange(slot)
            return
        told = f"{self._failed_starts} workers in a row died while loading their models"
        if not self.loaded:
            raise CapfiltError(
                f"{told}; is there memory enough for them? (the reason is in Ray's logs)"
            )
        log.warning("%s; the others go on without more of them", told)
        self._grows = False
        self._remove(slot)

    def exchange(self, slot: Slot) -> None:
        """Start another in place of one that is dead, hangs or is stopped."""
        self._remove(slot)
        self._start()

    def say_if_waiting(self) -> None:
        """Name the reason once when no worker gets a place: others may hold the cluster."""
        if self.loaded:
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
        loading = actor.load.remote(self._task, self._load, self._needs.cpus)
        self._slots[number] = Slot(number, actor, loading)

    def _remove(self, slot: Slot) -> None:
        ray.kill(slot.actor)  # it may only be unreachable
        del self._slots[slot.number]
        if slot.writer:
            self.killed.add(slot.writer)
