"""Which example is where: the order of training as a pure function of numbers.

    dataset   strands of known length; a strand is one pass over one shard
    piece     a run of consecutive examples of a strand, read in one go; permuted in every cycle
    cycle     one pass over a dataset. An epoch takes weight x length examples of the endless row
              of its dataset's cycles, so 0.2 shows every example once in five epochs
    epoch     the pieces of all datasets, mixed evenly:
              [head | rank 0: section 0, 1, ... | rank 1: ... | tail]
    section   what one reader goes through. Its pieces lie on lanes side by side
    window    some examples from each lane, read together and fully permuted

A global step takes world x batch size examples. Whole steps of an epoch go through the sections,
one after the other; the tail that fills no step is carried over and makes one with the head of the
next epoch. Over an epoch every rank has the same number of steps, and no example is lost or seen
twice. Nothing depends on how many processes read, or on what was read before: a step is found by
arithmetic. Memory is one window per section, and a shard is mostly read from its start to its end.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SECTIONS = 12  # of a rank: the most loader processes it can use; many numbers divide it
LANES = 16
WINDOW = 1024  # examples at least, where a section has them; 100 MB of images of 100 KB

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stock:
    """What a dataset holds.

    Attributes:
        lengths: Examples of each strand, int64 [strands].
        weight: Share of them that an epoch shows.
        grain: Examples that are read together whatever is asked for, as a Parquet row group.
    """

    lengths: Ints
    weight: Fraction
    grain: int

    @property
    def size(self) -> int:
        return int(self.lengths.sum())

    @property
    def rate(self) -> Fraction:
        """Examples that an epoch shows, on average: whole epochs have one more or less."""
        return self.weight * self.size

    def seen_before(self, epoch: int) -> int:
        """How many examples earlier epochs have shown."""
        return int(epoch * self.rate)


class Span(NamedTuple):
    """Examples [start, stop) of a strand, in their visit number `cycle`."""

    dataset: int
    strand: int
    cycle: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Window(NamedTuple):
    """Spans to read together, and the order in which their examples are used."""

    spans: tuple[Span, ...]
    order: Ints


class Place(NamedTuple):
    """Where a rank's batch lies: examples [start, start + batch size) of a section's windows."""

    epoch: int
    section: int  # of the rank
    start: int


@dataclass(frozen=True)
class Order:
    """The order of one rank's batches. All counts are of examples."""

    stocks: tuple[Stock, ...]
    seed: int
    rank: int
    world: int
    batch_size: int

    @property
    def step_size(self) -> int:
        """Examples of a step on all ranks."""
        return self.world * self.batch_size

    @property
    def steps_per_epoch(self) -> float:
        """On average over epochs; the tail of one is part of the next one's first step."""
        return float(_rate(self.stocks) / self.step_size)

    def seen_before(self, epoch: int) -> int:
        """How many examples earlier epochs have shown, on all ranks."""
        return sum(stock.seen_before(epoch) for stock in self.stocks)

    def epoch_at(self, position: int) -> int:
        """The epoch of an example by its position among all that are ever shown."""
        epoch = max(0, int(position / _rate(self.stocks)) - 1)
        while self.seen_before(epoch + 1) <= position:
            epoch += 1
        return epoch

    def place(self, step: int) -> Place | None:
        """Where this rank's batch of a step lies; None where the step is of several epochs."""
        position = step * self.step_size
        epoch = self.epoch_at(position)
        if position + self.step_size > self.seen_before(epoch + 1):
            return None
        nth = step - self._first_step(epoch)
        return Place(epoch, nth % SECTIONS, nth // SECTIONS * self.batch_size)

    def across_epochs(self, step: int) -> Window:
        """This rank's batch of a step that begins in one epoch and ends in another."""
        start = step * self.step_size + self.rank * self.batch_size
        stop = start + self.batch_size
        spans: list[Span] = []
        while start < stop:
            epoch = self.epoch_at(start)
            before, after = self.seen_before(epoch), self.seen_before(epoch + 1)
            until = min(stop, after)
            spans += self._epoch(epoch).cut(start - before, until - before)
            start = until
        return Window(tuple(spans), np.arange(self.batch_size))

    def windows(self, epoch: int, section: int) -> Iterator[Window]:
        """The windows of a section of this rank, in their order."""
        start, stop = self._bounds(epoch, section)
        grains = [stock.grain for stock in self.stocks]
        for number, spans in enumerate(_lanes(self._epoch(epoch).cut(start, stop), grains)):
            random = _random(self.seed, "window", epoch, self.rank, section, number)
            yield Window(spans, random.permutation(sum(span.size for span in spans)))

    def _first_step(self, epoch: int) -> int:
        """The first step that is of this epoch alone."""
        return -(-self.seen_before(epoch) // self.step_size)

    def _steps(self, epoch: int) -> int:
        """How many steps are of this epoch alone."""
        return max(0, self.seen_before(epoch + 1) // self.step_size - self._first_step(epoch))

    def _head(self, epoch: int) -> int:
        return self._first_step(epoch) * self.step_size - self.seen_before(epoch)

    def _bounds(self, epoch: int, section: int) -> tuple[int, int]:
        steps = self._steps(epoch)
        sizes = [len(range(s, steps, SECTIONS)) * self.batch_size for s in range(SECTIONS)]
        start = self._head(epoch) + self.rank * steps * self.batch_size + sum(sizes[:section])
        return start, start + sizes[section]

    def _epoch(self, epoch: int) -> _Epoch:
        return _epoch(self.stocks, self.seed, self.world, epoch)


@dataclass(frozen=True)
class _Epoch:
    """The pieces of an epoch in their order."""

    rows: Ints  # [pieces, 5], a span each
    ends: list[int]  # where each piece ends in the epoch

    def cut(self, start: int, stop: int) -> list[Span]:
        """The examples at [start, stop)."""
        spans = []
        index = bisect_right(self.ends, start)
        while start < stop:
            dataset, strand, cycle, _, high = self.rows[index].tolist()
            first = high - (self.ends[index] - start)
            until = min(stop, self.ends[index])
            spans.append(Span(dataset, strand, cycle, first, first + until - start))
            start, index = until, index + 1
        return spans


@lru_cache(maxsize=4)
def _epoch(stocks: tuple[Stock, ...], seed: int, world: int, epoch: int) -> _Epoch:
    sizes = [stock.seen_before(epoch + 1) - stock.seen_before(epoch) for stock in stocks]
    # So small that every section has some for each of its lanes, so large that few are cut; the
    # same in all epochs: a cycle that goes through several must be cut in one way.
    most = max(1, int(_rate(stocks) / (world * SECTIONS * LANES)))
    parts, places = [], []
    for index, (stock, size) in enumerate(zip(stocks, sizes, strict=True)):
        rows = _shown(stock, index, seed, epoch, most)
        middle = np.cumsum(rows[:, 4] - rows[:, 3]) - (rows[:, 4] - rows[:, 3]) / 2
        parts.append(rows)
        places.append(middle / max(size, 1))
    rows = np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]
    return _Epoch(rows, np.cumsum(rows[:, 4] - rows[:, 3]).tolist())


def _rate(stocks: Sequence[Stock]) -> Fraction:
    return sum((stock.rate for stock in stocks), Fraction(0))


def _shown(stock: Stock, dataset: int, seed: int, epoch: int, most: int) -> Ints:
    """The spans of a dataset that an epoch shows."""
    start, stop = stock.seen_before(epoch), stock.seen_before(epoch + 1)
    shown = [np.empty((0, 5), np.int64)]
    for cycle in range(start // stock.size, -(-stop // stock.size)):
        pieces = _pieces(stock, max(most, stock.grain))
        pieces = pieces[_random(seed, "cycle", dataset, cycle).permutation(len(pieces))]
        ends = np.cumsum(pieces[:, 2] - pieces[:, 1]) + cycle * stock.size
        begins = ends - (pieces[:, 2] - pieces[:, 1])
        low = pieces[:, 1] + np.maximum(start - begins, 0)
        high = pieces[:, 2] - np.maximum(ends - stop, 0)
        constant = np.ones_like(low)
        rows = np.stack([constant * dataset, pieces[:, 0], constant * cycle, low, high], axis=1)
        shown.append(rows[low < high])
    return np.concatenate(shown)


def _pieces(stock: Stock, most: int) -> Ints:
    """Every strand in pieces of about `most`, whole grains each: strand, start, stop."""
    size = most // stock.grain * stock.grain
    counts = np.maximum(-(-stock.lengths // size), 1)
    strands = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.arange(len(strands)) - first) * size
    stops = np.minimum(starts + size, stock.lengths[strands])
    return np.stack([strands, starts, stops], axis=1)


def _lanes(spans: Sequence[Span], grains: Sequence[int]) -> Iterator[tuple[Span, ...]]:
    """A section's spans as windows: some of each lane in turn, until a window is full."""
    waiting = iter(spans)
    lanes = [span for _, span in zip(range(LANES), waiting, strict=False)]
    taken: list[Span] = []
    size = at = 0
    while lanes:
        at %= len(lanes)
        span = lanes[at]
        quantum = max(WINDOW // LANES, grains[span.dataset])
        # Up to a multiple of the quantum: what is read together is used together.
        stop = min(span.stop, (span.start // quantum + 1) * quantum)
        taken.append(span._replace(stop=stop))
        size += stop - span.start
        if stop < span.stop:
            lanes[at] = span._replace(start=stop)
            at += 1
        elif (fresh := next(waiting, None)) is not None:
            lanes[at] = fresh
            at += 1
        else:
            del lanes[at]
        if size >= WINDOW:
            yield tuple(taken)
            taken, size = [], 0
    if taken:
        yield tuple(taken)


def _random(*parts: int | str) -> np.random.RandomState:
    """Random numbers of their own; `RandomState`, because numpy promises to keep its numbers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return np.random.RandomState(np.frombuffer(digest, np.uint32))
