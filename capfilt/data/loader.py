"""Batches of training data, in an order that is a function of the step.

    main process           whole batches in order; pinned on CUDA; what was left out is logged
    workers (processes)    every W-th step each: read, decode, vary, tokenise

torch's DataLoader runs the workers and keeps their order; pixels pass through shared memory. A
step's batch depends on the datasets, the config, the seed, the rank, the world size and the batch
size; not on the number of workers, their timing, or where the training was resumed.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from capfilt.data.batch import Batch
from capfilt.data.config import DataConfig
from capfilt.data.maker import BatchMaker, Encoder, Parcel
from capfilt.data.order import SECTIONS, Order
from capfilt.data.ring import Ring
from capfilt.data.sources import open_datasets
from capfilt.errors import CapfiltError, InputError

log = logging.getLogger("capfilt")

_AHEAD = 2  # batches that each worker has ready
_SHOWN = 5  # samples left out that are named; of the others there are counts


class Loader:
    """This rank's batches from any step on."""

    def __init__(
        self,
        config: DataConfig,
        *,
        rank: int,
        world: int,
        batch_size: int,
        vocabulary: Encoder,
        seed: int,
    ) -> None:
        """Open the datasets and count their examples; no image is decoded yet.

        Args:
            config: Which data, and how it is varied.
            rank: Of this process among those that train.
            world: How many of those there are.
            batch_size: Examples of a batch of this rank.
            vocabulary: Of the model.
            seed: Of the order and of what is drawn.

        Raises:
            ConfigError: There is no dataset, or one asks for what it cannot have.
            InputError: A dataset is missing, empty, or lacks images or texts.
        """
        self._datasets = open_datasets(config.datasets)
        stocks = tuple(dataset.stock for dataset in self._datasets)
        self._order = Order(stocks, seed, rank, world, batch_size)
        self._config = config
        self._vocabulary = vocabulary
        self._running: Any = None
        self.workers = _workers(config.workers)
        self.left_out: Counter[str] = Counter()  # by reason; another example took their place

    @property
    def steps_per_epoch(self) -> float:
        """Steps that show every example as often as its dataset's weight says."""
        return self._order.steps_per_epoch

    @property
    def examples(self) -> dict[str, int]:
        """How many examples each dataset has, by name."""
        return {dataset.name: dataset.stock.size for dataset in self._datasets}

    @property
    def fingerprint(self) -> str:
        """Of everything that decides a step's batch: a resume is exact while it is the same."""
        order = self._order
        what = [
            replace(self._config, workers=0),
            (order.seed, order.world, order.batch_size),
            [
                (v.shard.id, v.shard.version, v.samples, v.shard.source)
                for dataset in self._datasets
                for v in dataset.volumes
            ],
            [dataset.stock.lengths.tolist() for dataset in self._datasets],
        ]
        return hashlib.sha256(repr(what).encode()).hexdigest()

    @property
    def pictures(self) -> str:
        """Fingerprint of what images there are under which keys, however they are drawn."""
        shards = [
            (dataset.config.path, dataset.config.images, v.shard.id, v.shard.version)
            for dataset in self._datasets
            for v in dataset.volumes
        ]
        return hashlib.sha256(repr(shards).encode()).hexdigest()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """This rank's batches from a step on, for ever.

        Raises:
            InputError: A shard cannot be read any more, or a worker died.
        """
        self.close()
        shape = (self._order.batch_size, 3, self._config.image_size, self._config.image_size)
        # A worker begins a batch when an earlier one is handed over: that one is not copied yet.
        ring = Ring(self.workers, _AHEAD + 1, shape)
        maker = partial(BatchMaker, self._datasets, self._order, self._config, self._vocabulary)
        loader = DataLoader(
            _Steps(maker, ring, start, self.workers),
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_begin_worker,
            prefetch_factor=_AHEAD,
            # Nothing of a worker touches CUDA, and a fork has torch imported already.
            multiprocessing_context="fork",
        )
        with _own_handler_of_dead_children():
            self._running = iter(loader)
        for number in itertools.count():
            if self._running is None:  # closed meanwhile
                return
            parcel = self._parcel()
            self._report(parcel.left_out)
            if parcel.error is not None:
                self.close()
                raise parcel.error
            yield parcel.batch(ring.copy(number % self.workers, number // self.workers))

    def close(self) -> None:
        """End the workers."""
        if self._running is not None:
            running, self._running = self._running, None
            running._shutdown_workers()
            for worker in running._workers:
                worker.kill()  # one that still waits for a store has not heard, nor would a SIGTERM

    def _parcel(self) -> Parcel:
        try:
            parcel: Parcel = next(self._running)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self.close()
            raise InputError(
                f"a data worker died ({str(error).splitlines()[0]}); if memory ran out, lower "
                f"data.workers ({self.workers})"
            ) from error
        return parcel

    def _report(self, left_out: Sequence[tuple[str, str]]) -> None:
        for key, reason in left_out:
            self.left_out[reason] += 1
            total = self.left_out.total()
            if total <= _SHOWN:
                log.warning("%s is left out (%s); another takes its place", key, reason)
            elif total in (10**n for n in range(1, 10)):
                reasons = ", ".join(f"{n} {name}" for name, n in self.left_out.most_common())
                log.warning("%d examples were left out so far (%s)", total, reasons)


class _Steps(IterableDataset[Parcel]):
    """The steps of one worker: every W-th."""

    def __init__(self, maker: Callable[[], BatchMaker], ring: Ring, start: int, step: int) -> None:
        self._maker = maker
        self._ring = ring
        self._start = start
        self._step = step

    def __iter__(self) -> Iterator[Parcel]:
        info = get_worker_info()
        assert info is not None
        maker = self._maker()
        for nth in itertools.count():
            step = self._start + info.id + nth * self._step
            try:
                yield maker.make(step, self._ring.place(info.id, nth))
            except CapfiltError as error:
                yield Parcel(error=error)
                return


def _workers(asked: int) -> int:
    """How many processes decode: a divisor of a rank's sections, so that each has its own."""
    if not asked:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        asked = len(os.sched_getaffinity(0)) // ranks_here
    return max(n for n in range(1, SECTIONS + 1) if SECTIONS % n == 0 and n <= max(asked, 1))


@contextmanager
def _own_handler_of_dead_children() -> Iterator[None]:
    """Keep what is done at SIGCHLD, for which torch's DataLoader sets a handler of its own.

    That one raises wherever the main thread is, in the middle of a step, too. Whoever asks for the
    next batch hears of a dead worker anyhow.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _begin_worker(_number: int) -> None:
    # The main process decides when to end: it may have a checkpoint to write first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
