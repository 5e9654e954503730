"""A look ahead: a few shards' first images through a real worker, written to a place that goes."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from capfilt.errors import CommitError, ConfigError, InputError, ModelError
from capfilt.io.commits import Commit
from capfilt.logs import about
from capfilt.run.device import peak_bytes
from capfilt.run.engine import one_line
from capfilt.run.meter import Reading
from capfilt.run.task import Task
from capfilt.run.worker import Worker
from capfilt.shard import InputShard
from capfilt.tally import Tally

SHARDS = 2
TRIES = 5  # shards, before an input is taken for unreadable
LOOK_S = 0.02  # between two looks at how far the worker is

log = logging.getLogger("capfilt")


@dataclass(frozen=True)
class Probe:
    """What a worker made of the first images of a few shards."""

    shards: tuple[InputShard, ...]
    tallies: tuple[Tally, ...]  # of each
    unreadable: tuple[str, ...]  # ids of shards that failed and gave way to others
    images_per_s: float
    device: str  # "CPU", or a GPU's name
    batch_size: int  # images at once that fit
    peak_bytes: int  # of the GPU's memory, or of this process on a CPU
    load_s: float  # of the models
    busy_share: float  # of the time, in which the models computed, in [0, 1]
    output_bytes: int

    @property
    def tally(self) -> Tally:
        """Of all its shards together."""
        total = Tally()
        for tally in self.tallies:
            total.merge(tally)
        return total


def probe(task: Task, shards: Sequence[InputShard], images: int) -> Probe:
    """Process the first images of two shards, drawn at random with the config's seed.

    Args:
        task: The run's; its output is not touched.
        shards: Of the input, at least one.
        images: Of all shards together.

    Raises:
        ConfigError, ModelError: As a run's.
        InputError: No shard of several could be read.
    """
    drawn = random.Random(task.config.seed).sample(shards, min(TRIES, len(shards)))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="capfilt-plan-") as folder:
        each = -(-images // min(SHARDS, len(drawn)))
        task = replace(task, output_url=folder, most_samples=each)
        worker = Worker.load(task, cpus=len(os.sched_getaffinity(0)))
        loaded = time.monotonic()
        try:
            return _probe(worker, drawn, load_s=loaded - started)
        finally:
            worker.close()


def _probe(worker: Worker, drawn: Sequence[InputShard], *, load_s: float) -> Probe:
    commits: dict[InputShard, Commit] = {}
    unreadable: list[str] = []
    reasons: list[str] = []
    pace = _Pace(worker)
    left = list(drawn)
    with ThreadPoolExecutor(SHARDS, thread_name_prefix="shard") as pool:
        while left and len(commits) < SHARDS:
            now, left = left[: SHARDS - len(commits)], left[SHARDS - len(commits) :]
            running = {shard: pool.submit(worker.process, shard) for shard in now}
            pace.follow(running.values())
            for shard, future in running.items():
                error = future.exception()
                if error is None:
                    commits[shard] = future.result()
                    continue
                if isinstance(error, ConfigError | ModelError | CommitError):
                    raise error
                unreadable.append(shard.id)
                reasons.append(one_line(error))
                log.warning(
                    "shard %s cannot be probed: %s",
                    shard.id,
                    reasons[-1],
                    extra=about(shard=shard.id),
                )
    if not commits:
        raise InputError(f"none of {len(drawn)} shards could be read, e.g. {reasons[0]}")
    tallies = tuple(Tally.from_dict(commit.counts) for commit in commits.values())
    if not any(tally.read for tally in tallies):
        raise InputError(f"shard {next(iter(commits)).id} has no image")
    outputs = (file for commit in commits.values() for file in commit.outputs.values())
    return Probe(
        shards=tuple(commits),
        tallies=tallies,
        unreadable=tuple(unreadable),
        images_per_s=pace.images_per_s(),
        device=worker.device,
        batch_size=worker.batch_size,
        peak_bytes=peak_bytes(),
        load_s=load_s,
        busy_share=pace.busy_share(),
        output_bytes=sum(file.size_bytes for file in outputs),
    )


class _Pace:
    """How fast a worker is once it runs: without its first batches, which warm it up."""

    def __init__(self, worker: Worker) -> None:
        self._meter = worker.meter
        self._warm = worker.batch_size * worker.batches_at_once
        self._readings = [self._meter.read()]

    def follow(self, running: Iterable[Future[Commit]]) -> None:
        """Look at the meter until the shards are done."""
        left = set(running)
        while left:
            _, left = wait(left, timeout=LOOK_S)
            reading = self._meter.read()
            if reading.tally.read > self._readings[-1].tally.read:
                self._readings.append(reading)

    def images_per_s(self) -> float:
        first, last = self._span()
        return (last.tally.read - first.tally.read) / max(last.at - first.at, 1e-9)

    def busy_share(self) -> float:
        first, last = self._span()
        return min(1.0, (last.busy_s - first.busy_s) / max(last.at - first.at, 1e-9))

    def _span(self) -> tuple[Reading, Reading]:
        last = self._readings[-1]
        for reading in self._readings[:-1]:
            if reading.tally.read >= self._warm:
                return reading, last
        return self._readings[0], last
