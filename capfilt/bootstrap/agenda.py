"""The parts of an experiment: listed first, then done one after the other, each of them once."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from capfilt.duration import duration

log = logging.getLogger("capfilt")


@dataclass(frozen=True)
class Part:
    """A piece of work that can be done again at no cost."""

    name: str  # unique
    kind: str  # parts of a kind take about as long; "": no time worth a word
    do: Callable[[], bool]  # False: it had been done before


class Agenda:
    """Parts in the order in which they were first added."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def add(self, name: str, do: Callable[[], bool], *, kind: str = "") -> None:
        """Put a part at the end, unless it is there already; see `Part`."""
        self._parts.setdefault(name, Part(name, kind, do))

    def work(self) -> None:
        """Do all parts; says before each how far it is."""
        parts = list(self._parts.values())
        seconds: dict[str, list[float]] = defaultdict(list)
        for number, part in enumerate(parts):
            left = _left(parts[number:], seconds)
            log.info("part %d of %d: %s%s", number + 1, len(parts), part.name, left)
            started = time.monotonic()
            if part.do():
                seconds[part.kind].append(time.monotonic() - started)


def _left(parts: Sequence[Part], seconds: dict[str, list[float]]) -> str:
    """How long they will take by what others of their kinds have taken."""
    kinds = [part.kind for part in parts if part.kind]
    known = [mean(seconds[kind]) for kind in kinds if seconds[kind]]
    if not known:
        return ""
    at_least = "" if len(known) == len(kinds) else "more than "
    return f" ({at_least}{duration(sum(known))} left)"
