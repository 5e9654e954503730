"""What one worker does, counted as it does it: samples, seconds by stage, batches that wait."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from capfilt.record import Annotated
from capfilt.tally import Tally

Stage = Literal["read", "decode", "caption", "score", "write", "publish"]
MODELS: tuple[Stage, Stage] = ("caption", "score")  # what keeps a GPU busy

Item = TypeVar("Item")


class Meter:
    """What one worker has done. Safe to use from all its threads."""

    def __init__(self, *, lanes: int) -> None:
        """Begin at nothing.

        Args:
            lanes: Batches that the models take at once; all of them busy is a share of 1.
        """
        self._lanes = lanes
        self._lock = threading.Lock()
        self._tally = Tally()
        self._seconds: defaultdict[Stage, float] = defaultdict(float)
        self._waiting: Counter[str] = Counter()  # decoded batches by shard

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count the seconds within."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        """Count seconds."""
        with self._lock:
            self._seconds[stage] += seconds

    def each(self, stage: Stage, items: Iterable[Item]) -> Iterator[Item]:
        """The items, counting the seconds that each takes to come."""
        iterator = iter(items)
        while True:
            with self.stage(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def count(self, judged: Iterable[Annotated]) -> None:
        """Count samples and their texts."""
        with self._lock:
            for annotated in judged:
                self._tally.add(annotated)

    def queue(self, shard_id: str, batches: int) -> None:
        """Count batches of a shard that have joined those that wait, or have left them."""
        with self._lock:
            self._waiting[shard_id] += batches

    def forget(self, shard_id: str) -> None:
        """No batch of this shard waits any more, however it ended."""
        with self._lock:
            del self._waiting[shard_id]

    def read(self) -> Reading:
        """Everything up to now."""
        tally = Tally()
        with self._lock:
            tally.merge(self._tally)
            seconds = dict(self._seconds)
            waiting = self._waiting.total()
        busy_s = sum(seconds.get(stage, 0.0) for stage in MODELS) / self._lanes
        return Reading(time.monotonic(), tally, seconds, busy_s, waiting)


@dataclass(frozen=True, slots=True)
class Reading:
    """A meter at one moment."""

    at: float  # of the monotonic clock, in seconds
    tally: Tally
    seconds: Mapping[Stage, float]
    busy_s: float  # in which the models computed
    batches_waiting: int
