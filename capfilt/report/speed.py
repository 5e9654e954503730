"""How long a run took, from its commits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from capfilt.io.commits import Commit


@dataclass(frozen=True)
class Speed:
    """What the machines were busy with; a machine is a GPU, or a host without."""

    images: int
    busy_s: float  # of all machines together
    machines: int
    kinds: tuple[str, ...]

    @property
    def images_per_s(self) -> float:
        """Of one machine."""
        return self.images / self.busy_s

    @property
    def unit(self) -> str:
        """What an hour is of."""
        return "machine" if self.kinds == ("CPU",) else "GPU"

    def price_per_million(self, price_per_hour: float) -> float:
        """Of a million images, at the price of a machine's hour."""
        return price_per_hour * self.busy_s / 3600 / self.images * 1e6


def speed_of(commits: Mapping[str, Commit]) -> Speed | None:
    """Measure a run; None where its commits do not say when and on what they were made.

    A worker has two shards in flight, and workers may share a GPU or a host: an hour in which a
    machine was busy with several shards is one hour.
    """
    spans = defaultdict(list)
    kinds = {}
    for commit in commits.values():
        told = commit.telemetry
        if not {"device", "ended", "worker", "seconds"} <= told.keys():
            return None
        kind = str(told["device"])
        host = str(told["worker"]).rpartition(":")[0]  # of host:pid
        machine = host if kind == "CPU" else kind
        kinds[machine] = kind.partition(" GPU-")[0]
        spans[machine].append((told["ended"] - told["seconds"], told["ended"]))
    busy_s = sum(_union(of_machine) for of_machine in spans.values())
    images = sum(int(commit.counts["read"]) for commit in commits.values())
    if not busy_s or not images:
        return None
    return Speed(images, busy_s, len(spans), tuple(sorted(set(kinds.values()))))


def _union(spans: Iterable[tuple[float, float]]) -> float:
    total, until = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return total
