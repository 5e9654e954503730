"""What a run tells Prometheus: every metric, who records it, and how it gets there.

A worker adds to plain numbers in a `Meter`, at a microsecond for each. About once a second
`WorkerExport` hands what is new to Ray's metrics, and `DriverExport` does so for the driver; every
node of a Ray cluster then shows them at its metrics port. Without Ray nothing is handed on. Counts
begin anew with each process, and its last seconds may be missing: what holds is in the commits.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from capfilt.record import Verdict
from capfilt.run.meter import Meter, Reading

WINDOW_S = 60.0  # that a speed and a share are of


@dataclass(frozen=True, slots=True)
class Metric:
    """A name as capfilt records it; `run` (the OUTPUT) is a tag of each."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> str:
        """The name that Prometheus finds at a node's port."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


_WORKER = ("run", "worker", "device")
_DRIVER = ("run",)

IMAGES = Metric("capfilt_images", "counter", "Images judged", (*_WORKER, "verdict"))
TEXTS = Metric("capfilt_texts", "counter", "Texts judged", (*_WORKER, "source", "verdict"))
DROPPED_TEXTS = Metric(
    "capfilt_dropped_texts", "counter", "Texts dropped, by reason", (*_WORKER, "reason")
)
FAILED_IMAGES = Metric(
    "capfilt_failed_images", "counter", "Images that failed, by reason", (*_WORKER, "reason")
)
STAGE_SECONDS = Metric(
    "capfilt_stage_seconds", "counter", "Seconds of all threads in a stage", (*_WORKER, "stage")
)
IMAGES_PER_S = Metric(
    "capfilt_images_per_s", "gauge", "Images a second of a worker in the last minute", _WORKER
)
BUSY_SHARE = Metric(
    "capfilt_busy_share",
    "gauge",
    "Share of the last minute, in [0, 1], in which a worker's models computed",
    _WORKER,
)
BATCHES_WAITING = Metric(
    "capfilt_batches_waiting", "gauge", "Decoded batches that wait for the models", _WORKER
)
SHARDS = Metric(
    "capfilt_shards", "counter", "Shards by outcome: done, failed, retried", (*_DRIVER, "outcome")
)
SHARDS_WAITING = Metric("capfilt_shards_waiting", "gauge", "Shards that wait for a worker", _DRIVER)
SHARDS_IN_FLIGHT = Metric(
    "capfilt_shards_in_flight", "gauge", "Shards that workers are at", _DRIVER
)
WORKERS = Metric("capfilt_workers", "gauge", "Workers whose models are loaded", _DRIVER)

OF_WORKERS = (
    *(IMAGES, TEXTS, DROPPED_TEXTS, FAILED_IMAGES),
    *(STAGE_SECONDS, IMAGES_PER_S, BUSY_SHARE, BATCHES_WAITING),
)
OF_DRIVER = (SHARDS, SHARDS_WAITING, SHARDS_IN_FLIGHT, WORKERS)


def _counts(reading: Reading) -> Iterator[tuple[Metric, dict[str, str], float]]:
    """Every counter of a worker with its tags and its value."""
    for verdict in Verdict:
        yield IMAGES, {"verdict": verdict}, reading.tally.samples[verdict]
    for (source, verdict), count in reading.tally.texts.items():
        yield TEXTS, {"source": source, "verdict": verdict}, count
    for reason, count in reading.tally.dropped_texts.items():
        yield DROPPED_TEXTS, {"reason": reason}, count
    for reason, count in reading.tally.failed_samples.items():
        yield FAILED_IMAGES, {"reason": reason}, count
    for stage, seconds in reading.seconds.items():
        yield STAGE_SECONDS, {"stage": stage}, seconds


class _Registry:
    """Ray's counters and gauges for a list of metrics, with the tags that are always the same."""

    def __init__(
        self, ray_metrics: Any, metrics: Iterable[Metric], tags: Mapping[str, str]
    ) -> None:
        self._made = {}
        for metric in metrics:
            kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
            made = kind(metric.name, metric.description, metric.tags)
            self._made[metric] = made.set_default_tags(dict(tags))

    def add(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        if value > 0:
            self._made[metric].inc(value, {name: str(tag) for name, tag in tags.items()})

    def set(self, metric: Metric, value: float) -> None:
        self._made[metric].set(value)


class WorkerExport:
    """Hands what a worker's meter has counted to Ray."""

    def __init__(self, meter: Meter, ray_metrics: Any, tags: Mapping[str, str]) -> None:
        """Register the metrics.

        Args:
            meter: Of the worker.
            ray_metrics: The module `ray.util.metrics`, in a process of Ray's.
            tags: run, worker and device.
        """
        self._meter = meter
        self._registry = _Registry(ray_metrics, OF_WORKERS, tags)
        self._window = deque([meter.read()])
        self._told: defaultdict[tuple[Metric, tuple[str, ...]], float] = defaultdict(float)
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Tell what is new; asked for about once a second."""
        with self._lock:
            now = self._meter.read()
            for metric, tags, value in _counts(now):
                key = (metric, tuple(tags.values()))
                self._registry.add(metric, value - self._told[key], tags)
                self._told[key] = value
            before = self._window[0]
            self._window.append(now)
            while now.at - self._window[1].at > WINDOW_S:
                self._window.popleft()
        span_s = max(now.at - before.at, 1.0)
        self._registry.set(IMAGES_PER_S, (now.tally.read - before.tally.read) / span_s)
        self._registry.set(BUSY_SHARE, min(1.0, (now.busy_s - before.busy_s) / span_s))
        self._registry.set(BATCHES_WAITING, now.batches_waiting)


class DriverExport:
    """Hands what the driver knows to Ray."""

    def __init__(self, ray_metrics: Any, run: str) -> None:
        self._registry = _Registry(ray_metrics, OF_DRIVER, {"run": run})

    def count(self, outcome: Literal["done", "failed", "retried"]) -> None:
        """One more shard has ended, or one more try of it."""
        self._registry.add(SHARDS, 1, {"outcome": outcome})

    def refresh(self, *, waiting: int, in_flight: int, workers: int) -> None:
        """Tell how many shards wait and are in flight, and how many workers are ready."""
        self._registry.set(SHARDS_WAITING, waiting)
        self._registry.set(SHARDS_IN_FLIGHT, in_flight)
        self._registry.set(WORKERS, workers)
