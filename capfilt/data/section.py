"""Reading a section of the order, window by window, one ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from capfilt.data.dataset import Dataset
from capfilt.data.example import Candidate
from capfilt.data.order import Span, Window
from capfilt.data.reader import read_numbers

_READS = 8  # spans that are read at once: with an object store, reading is waiting


@dataclass(frozen=True)
class Slot:
    """A place in a window, and with it who stands in where its own example is of no use."""

    window: Sequence[Candidate]
    at: int

    def in_turn(self) -> Iterator[Candidate]:
        """Its own candidate, then the others of the window, from the farthest on.

        The order depends on nothing but the window, so it is the same after a resume.
        """
        count = len(self.window)
        yield self.window[self.at]
        for offset in range(1, count):
            yield self.window[(self.at + (count // 2 + offset) % count) % count]


class SpanReader:
    """Reads windows with some threads."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets
        self._pool = ThreadPoolExecutor(_READS, thread_name_prefix="read")

    def start(self, window: Window) -> Pending:
        """Begin to read a window."""
        return Pending([self._pool.submit(self._read, span) for span in window.spans], window)

    def _read(self, span: Span) -> list[Candidate]:
        dataset = self._datasets[span.dataset]
        volume, nth = dataset.strands[span.strand]
        shard = dataset.volumes[volume].shard
        numbers = dataset.numbers(span.strand, span.start, span.stop)
        samples = read_numbers(shard, numbers, metadata=dataset.is_output)
        return [Candidate(dataset, shard.id, sample, span.cycle, nth) for sample in samples]


@dataclass(frozen=True)
class Pending:
    """A window that is being read."""

    reads: Sequence[Future[list[Candidate]]]
    window: Window

    def result(self) -> list[Candidate]:
        """Its candidates in the order of their use.

        Raises:
            InputError: A shard cannot be read.
        """
        found = [candidate for read in self.reads for candidate in read.result()]
        return [found[i] for i in self.window.order]


class SectionReader:
    """Goes through a section's windows; what lies behind is forgotten."""

    def __init__(self, windows: Iterator[Window], reader: SpanReader) -> None:
        self._windows = windows
        self._reader = reader
        self._first = 0  # place in the section of the current window's first example
        self._current: Sequence[Candidate] = ()
        self._next: Pending | None = None

    def take(self, start: int, count: int) -> list[Slot]:
        """The examples [start, start + count), which do not lie before those of the last call.

        Raises:
            InputError: A shard cannot be read.
        """
        slots: list[Slot] = []
        for place in range(start, start + count):
            while place - self._first >= len(self._current):
                self._advance(place)
            slots.append(Slot(self._current, place - self._first))
        if self._next is None and 2 * (start + count - self._first) >= len(self._current):
            window = next(self._windows, None)
            self._next = None if window is None else self._reader.start(window)
        return slots

    def _advance(self, place: int) -> None:
        """Go to the next window, without reading those that end before a place."""
        self._first += len(self._current)
        self._current = ()
        pending, self._next = self._next, None
        while pending is None:
            window = next(self._windows)
            if self._first + len(window.order) <= place:
                self._first += len(window.order)
            else:
                pending = self._reader.start(window)
        self._current = pending.result()
