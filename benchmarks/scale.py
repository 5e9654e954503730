"""Ten thousand shards on 256 workers by a virtual clock, driven by the real scheduling.

    python benchmarks/scale.py [--shards 10000] [--workers 256] [--seed 0] [--json]

`capfilt.run.schedule` is what `capfilt run` itself asks; here a simulation asks it. A shard takes
60 to 180 s of a worker's models, 2 s to begin reading and 2 s to publish; a worker that holds two
shards shares its models between them. A try puts each fifth of its shard aside (2,000 images of
10,000), and a later one or a copy begins with that. Each scenario is another kind of trouble:

    even        every worker and every try alike, and a shard's size tells its time to 10 %
    blind       the same, but every shard has the same size
    stragglers  one worker in 64 is five times slower, one try in 500 takes five times longer
    shrinking   stragglers, and a tenth of the workers die, one after another, and come back

`efficiency` is the models' seconds that led to a commit over workers times the run's seconds.
`bound` is what it would be if the shards were handed out in the same order, each to the first idle
worker, and nothing else took time: no reading, no publishing, no trouble.
`tail_s` is from the moment when no shard was left to hand out to the last commit.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from capfilt.run.engine import Work
from capfilt.run.schedule import Schedule, largest_first
from capfilt.shard import Form, InputShard

SHARD_S = (60.0, 180.0)
READ_S, PUBLISH_S = 2.0, 2.0
TICK_S = 1.0  # how often the driver looks around when nothing has happened
RELOAD_S = 60.0
IMAGES_PER_S = 50
SLOW = 5.0
PARTS = 5  # of a shard, that are put aside
SCENARIOS = ("even", "blind", "stragglers", "shrinking")


@dataclass
class Try:
    """A shard at a worker: it reads, takes its share of the models, publishes."""

    shard: str
    whole_s: float  # of the models alone
    left_s: float
    parts: int  # that others had put aside when it began
    parts_s: float  # that those have taken
    phase: str = "read"

    @property
    def done_s(self) -> float:
        """What it has done itself."""
        return self.whole_s * (1 - self.parts / PARTS) - self.left_s


@dataclass
class SimulatedWorker:
    """Models that the tries which need them share."""

    slowness: float = 1.0
    tries: dict[str, Try] = field(default_factory=dict)
    advanced_to_s: float = 0.0
    version: int = 0  # of what the next end was computed from

    def computing(self) -> list[Try]:
        return [t for t in self.tries.values() if t.phase == "models"]

    def advance(self, now_s: float) -> None:
        computing = self.computing()
        for each in computing:
            each.left_s -= (now_s - self.advanced_to_s) / self.slowness / len(computing)
        self.advanced_to_s = now_s

    def next_end(self) -> tuple[float, Try] | None:
        computing = self.computing()
        if not computing:
            return None
        first = min(computing, key=lambda each: each.left_s)
        return self.advanced_to_s + first.left_s * self.slowness * len(computing), first


class Simulation:
    """A virtual clock, workers, and the schedule that a run has."""

    def __init__(self, scenario: str, *, shards: int, workers: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self.now_s = 0.0
        self._scenario = scenario
        self._seconds: dict[str, float] = {}
        self._images: dict[str, int] = {}
        self._aside: dict[str, tuple[int, float]] = {}  # parts of a shard, and their seconds
        works = largest_first([self._make_shard(i) for i in range(shards)])
        self._bound = self._ideal([self._seconds[work.shard.id] for work in works], workers)
        self.schedule = Schedule(works, max_attempts=3, clock=lambda: self.now_s)
        self._workers = {n: SimulatedWorker() for n in range(workers)}
        self._names = count(workers)
        self._count = workers
        self._has_stragglers = scenario in ("stragglers", "shrinking")
        if self._has_stragglers:
            for n in range(0, workers, 64):
                self._workers[n].slowness = SLOW
        self._events: list[tuple[float, int, str, Any]] = []
        self._order = count()
        self.commits: Counter[str] = Counter()
        self.useful_s = self.wasted_s = 0.0
        self.copies = 0
        self.drained_s: float | None = None
        self._ticks = False

    def _make_shard(self, index: int) -> Work:
        seconds = self._rng.uniform(*SHARD_S)
        size = int(seconds * self._rng.uniform(0.9, 1.1) * 1e6)
        name = f"{index:05d}"
        self._seconds[name] = seconds
        self._images[name] = int(seconds * IMAGES_PER_S)
        size = 10**8 if self._scenario == "blind" else size
        return Work(InputShard(name, Form.TAR, name, size, ""))

    @staticmethod
    def _ideal(seconds: list[float], workers: int) -> float:
        """Efficiency where each shard goes to the first idle worker, at once."""
        ends = [0.0] * workers
        for each in seconds:
            heapq.heapreplace(ends, ends[0] + each)
        return sum(seconds) / workers / max(ends)

    def run(self) -> dict[str, Any]:
        """Until the schedule says that nothing is left."""
        for n in self._workers:
            self.schedule.join(n)
        expected_s = sum(self._seconds.values()) / self._count
        if self._scenario == "shrinking":
            for i in range(self._count // 10):
                self._at(expected_s * (0.2 + 0.6 * i / (self._count // 10)), "die", None)
        self._assign()
        while not self.schedule.is_finished:
            self.now_s, _, kind, about = heapq.heappop(self._events)
            getattr(self, f"_{kind}")(about)
            self._assign()
        return self._result()

    def _at(self, when_s: float, kind: str, about: Any) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), kind, about))

    def _assign(self) -> None:
        for assignment in self.schedule.assign():
            shard = assignment.work.shard.id
            self.copies += assignment.rival is not None
            late = self._has_stragglers and self._rng.random() < 1 / 500
            whole_s = self._seconds[shard] * (SLOW if late else 1.0)
            if assignment.rival is not None:
                self._put_aside(assignment.rival, shard)
            parts, parts_s = self._aside.get(shard, (0, 0.0))
            begun = Try(shard, whole_s, whole_s * (1 - parts / PARTS), parts, parts_s)
            self._workers[assignment.worker].tries[shard] = begun
            self._at(self.now_s + READ_S, "read", (assignment.worker, begun))
        if self.drained_s is None and not self.schedule.waiting:
            self.drained_s = self.now_s
        if not self._ticks and self.schedule.waiting < 2 * self._count:  # before, nothing is copied
            self._ticks = True
            self._at(self.now_s, "tick", None)

    def _put_aside(self, name: int, shard: str) -> None:
        """What a worker's try of a shard has left for others by now."""
        worker = self._workers[name]
        worker.advance(self.now_s)
        each = worker.tries[shard]
        parts = int(PARTS * (1 - each.left_s / each.whole_s))
        if parts > self._aside.get(shard, (0, 0.0))[0]:
            own_s = (parts - each.parts) / PARTS * each.whole_s * worker.slowness
            self._aside[shard] = parts, each.parts_s + own_s

    def _tick(self, about: None) -> None:
        """The driver looks around, and asks how far everybody is."""
        self._at(self.now_s + TICK_S, "tick", None)
        for name, worker in self._workers.items():
            worker.advance(self.now_s)
            for shard, each in worker.tries.items():
                share = 1 - each.left_s / each.whole_s
                self.schedule.progress(name, shard, int(share * self._images[shard]))

    def _read(self, about: tuple[int, Try]) -> None:
        name, begun = about
        if self._has(name, begun):
            self._workers[name].advance(self.now_s)
            begun.phase = "models"
            self._plan(name)

    def _plan(self, name: int) -> None:
        worker = self._workers[name]
        worker.version += 1
        found = worker.next_end()
        if found is not None:
            self._at(found[0], "computed", (name, found[1], worker.version))

    def _computed(self, about: tuple[int, Try, int]) -> None:
        name, begun, version = about
        if self._has(name, begun) and self._workers[name].version == version:
            self._workers[name].advance(self.now_s)
            begun.phase = "publish"
            self._at(self.now_s + PUBLISH_S, "published", (name, begun))
            self._plan(name)

    def _published(self, about: tuple[int, Try]) -> None:
        name, begun = about
        if not self._has(name, begun):
            return
        self.commits[begun.shard] += 1
        self.useful_s += begun.parts_s + begun.done_s * self._workers[name].slowness
        del self._workers[name].tries[begun.shard]
        self.schedule.progress(name, begun.shard, self._images[begun.shard])
        for other in self.schedule.done(name, begun.shard):
            self._lose(other, begun.shard)

    def _lose(self, name: int, shard: str) -> None:
        worker = self._workers[name]
        worker.advance(self.now_s)
        lost = worker.tries.pop(shard)
        self.wasted_s += lost.done_s * worker.slowness
        self.schedule.withdrawn(name, shard)
        self._plan(name)

    def _die(self, about: None) -> None:
        name = self._rng.choice(list(self._workers))
        for shard in self._workers[name].tries:
            self._put_aside(name, shard)
        del self._workers[name]
        assert self.schedule.died(name) is None
        self._at(self.now_s + RELOAD_S, "join", None)

    def _join(self, about: None) -> None:
        name = next(self._names)
        self._workers[name] = SimulatedWorker(advanced_to_s=self.now_s)
        self.schedule.join(name)

    def _has(self, name: int, begun: Try) -> bool:
        worker = self._workers.get(name)
        return worker is not None and worker.tries.get(begun.shard) is begun

    def _result(self) -> dict[str, Any]:
        missing = self._seconds.keys() - self.commits.keys()
        twice = [shard for shard, times in self.commits.items() if times > 1]
        if missing or twice:
            raise SystemExit(f"{len(missing)} shards lost, {len(twice)} committed twice")
        assert self.drained_s is not None
        return {
            "efficiency": self.useful_s / (self._count * self.now_s),
            "bound": self._bound,
            "hours": self.now_s / 3600,
            "tail_s": self.now_s - self.drained_s,
            "copies": self.copies,
            "wasted_share": self.wasted_s / (self._count * self.now_s),
        }


def main() -> None:
    """Simulate every scenario and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = {"shards": arguments.shards, "workers": arguments.workers, "seed": arguments.seed}
    found = {scenario: Simulation(scenario, **size).run() for scenario in SCENARIOS}
    if arguments.json:
        print(json.dumps({**size, "scenarios": found}))
        return
    print(f"{'':12}" + "".join(f"{name:>14}" for name in found["even"]))
    for scenario, figures in found.items():
        print(f"{scenario:12}" + "".join(f"{figure:14,.4g}" for figure in figures.values()))


if __name__ == "__main__":
    main()
