"""How fast a training goes, over its last steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_STEPS = 50


class Meter:
    """Images per second, the share of time spent waiting for data, and the time left."""

    def __init__(
        self, images_per_step: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._images = images_per_step
        self._clock = clock
        self._ends = deque([clock()], maxlen=_STEPS + 1)
        self._waits: deque[float] = deque(maxlen=_STEPS)

    def start(self) -> None:
        """The first step begins now."""
        self._ends[0] = self._clock()

    def step(self, waited_s: float) -> None:
        """A step has ended, in which the loop waited so long for its images."""
        self._ends.append(self._clock())
        self._waits.append(waited_s)

    @property
    def _first(self) -> int:
        """The first step, which warms everything up, counts only while it is alone."""
        return 1 if 2 < len(self._ends) <= _STEPS else 0

    @property
    def step_s(self) -> float:
        """Seconds per step."""
        steps = len(self._ends) - 1 - self._first
        return (self._ends[-1] - self._ends[self._first]) / max(steps, 1)

    @property
    def samples_per_s(self) -> float:
        return self._images / self.step_s if self.step_s else 0.0

    @property
    def waiting(self) -> float:
        """Share of the time, in [0, 1]."""
        elapsed = self._ends[-1] - self._ends[self._first]
        waited = sum(list(self._waits)[self._first :])
        return min(1.0, waited / elapsed) if elapsed else 0.0
