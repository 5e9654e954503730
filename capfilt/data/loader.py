"""Batches of training data, in an order that is a function of the step.

    main process           whole batches in order; pinned on CUDA; what was left out is logged
    workers (processes)    every W-th step each: read, decode, vary, tokenise

torch's DataLoader carries batches from the workers in shared memory and keeps their order. A
step's batch depends on the datasets, the config, the seed, the rank, the world size and the batch
size; not on the number of workers, their timing, or where the training was resumed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from capfilt.data.batch import Batch
from capfilt.data.config import DataConfig
from capfilt.data.dataset import Dataset
from capfilt.data.example import Example, UnusableError, make_example, stable_id
from capfilt.data.order import SECTIONS, Order
from capfilt.data.section import SectionReader, Slot, SpanReader
from capfilt.data.sources import open_datasets
from capfilt.errors import CapfiltError, InputError
from capfilt.models.vocabulary import Vocabulary

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
        vocabulary: Vocabulary,
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

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """This rank's batches from a step on, for ever.

        Raises:
            InputError: A shard cannot be read any more, or a worker died.
        """
        self.close()
        steps = _Steps(
            self._datasets, self._order, self._config, self._vocabulary, start, self.workers
        )
        loader = DataLoader(
            steps,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_begin_worker,
            prefetch_factor=_AHEAD,
            pin_memory=torch.cuda.is_available(),
            # Nothing of a worker touches CUDA, and a fork has torch imported already.
            multiprocessing_context="fork",
        )
        self._running = iter(loader)
        while self._running is not None:
            outcome = self._outcome()
            self._report(outcome.left_out)
            if outcome.error is not None:
                self.close()
                raise outcome.error
            assert outcome.batch is not None
            yield outcome.batch

    def close(self) -> None:
        """End the workers."""
        if self._running is not None:
            self._running._shutdown_workers()
            self._running = None

    def _outcome(self) -> _Outcome:
        try:
            outcome: _Outcome = next(self._running)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self.close()
            raise InputError(
                f"a data worker died ({str(error).splitlines()[0]}); if memory ran out, lower "
                f"data.workers ({self.workers})"
            ) from error
        return outcome

    def _report(self, left_out: Sequence[tuple[str, str]]) -> None:
        for key, reason in left_out:
            self.left_out[reason] += 1
            total = self.left_out.total()
            if total <= _SHOWN:
                log.warning("%s is left out (%s); another takes its place", key, reason)
            elif total in (10**n for n in range(1, 10)):
                reasons = ", ".join(f"{n} {name}" for name, n in self.left_out.most_common())
                log.warning("%d examples were left out so far (%s)", total, reasons)


@dataclass(frozen=True)
class _Outcome:
    """What a worker sends: a batch, or why there is none."""

    batch: Batch | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)  # keys and reasons
    error: CapfiltError | None = None

    def pin_memory(self) -> _Outcome:
        """torch's loader calls it by this name."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class _Steps(IterableDataset[_Outcome]):
    """The steps of one worker: every W-th."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        config: DataConfig,
        vocabulary: Vocabulary,
        start: int,
        workers: int,
    ) -> None:
        self._datasets = datasets
        self._order = order
        self._config = config
        self._vocabulary = vocabulary
        self._start = start
        self._workers = workers

    def __iter__(self) -> Iterator[_Outcome]:
        info = get_worker_info()
        maker = BatchMaker(self._datasets, self._order, self._config, self._vocabulary)
        step = self._start + (info.id if info else 0)
        while True:
            try:
                yield maker.make(step)
            except CapfiltError as error:
                yield _Outcome(error=error)
                return
            step += self._workers


class BatchMaker:
    """Makes the batches of steps; quick when steps of a section rise."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        config: DataConfig,
        vocabulary: Vocabulary,
    ) -> None:
        self._order = order
        self._config = config
        self._vocabulary = vocabulary
        self._reader = SpanReader(datasets)
        self._sections: dict[tuple[int, int], SectionReader] = {}  # by epoch and section

    def make(self, step: int) -> _Outcome:
        """The batch of a step.

        Raises:
            InputError: A shard cannot be read, or has nothing that is of use.
        """
        left_out: list[tuple[str, str]] = []
        examples = [self._example(slot, left_out) for slot in self._slots(step)]
        return _Outcome(self._batch(examples), left_out)

    def _slots(self, step: int) -> list[Slot]:
        place = self._order.place(step)
        if place is None:
            candidates = self._reader.start(self._order.across_epochs(step)).result()
            return [Slot(candidates, at) for at in range(len(candidates))]
        where = place.epoch, place.section
        if where not in self._sections:
            for old in [key for key in self._sections if key[0] < place.epoch]:
                del self._sections[old]
            self._sections[where] = SectionReader(self._order.windows(*where), self._reader)
        return self._sections[where].take(place.start, self._order.batch_size)

    def _example(self, slot: Slot, left_out: list[tuple[str, str]]) -> Example:
        for candidate in slot.in_turn():
            try:
                return make_example(candidate, self._config, self._order.seed)
            except UnusableError as error:
                if candidate is slot.window[slot.at]:
                    left_out.append((candidate.key, str(error)))
        key, reason = left_out[-1]
        raise InputError(
            f"{key}: cannot be used ({reason}), nor can any of the {len(slot.window)} examples "
            "that were read with it: look at the dataset with `capfilt run`"
        )

    def _batch(self, examples: Sequence[Example]) -> Batch:
        size = self._config.image_size
        images = torch.empty(len(examples), 3, size, size, dtype=torch.uint8)
        for row, example in zip(images, examples, strict=True):
            row.copy_(example.pixels)
        texts = [example.text for example in examples]
        ids = self._vocabulary.encode(texts, max_tokens=self._config.max_tokens)
        return Batch(
            images,
            [tokens[1:] for tokens in ids],
            [example.key for example in examples],
            torch.tensor([stable_id(example.key) for example in examples]),
            torch.tensor([stable_id(text) for text in texts]),
        )


def _workers(asked: int) -> int:
    """How many processes decode: a divisor of a rank's sections, so that each has its own."""
    if not asked:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        asked = len(os.sched_getaffinity(0)) // ranks_here
    return max(n for n in range(1, SECTIONS + 1) if SECTIONS % n == 0 and n <= max(asked, 1))


def _begin_worker(_number: int) -> None:
    # The main process decides when to end: it may have a checkpoint to write first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
