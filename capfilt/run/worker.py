"""One worker: takes an input shard, leaves its data, ledger and commit. No Ray.

    read -> decode (threads) -> batch --queue--> caption -> score -> judge --thread--> write ->
    publish

Reading and decoding run ahead of the models by `AHEAD` batches and writing trails them by one, so
the models never wait. `process` may be called from two threads at once: the models take one batch
at a time, so while one shard is in its models the next is being read, and the last one is being
published. A worker holds a few batches of images per shard in flight, whatever the shard's size.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from capfilt.config import SelectionConfig
from capfilt.errors import ModelError
from capfilt.io import files, outputs
from capfilt.io.commits import (
    Commit,
    InputRecord,
    OutputRecord,
    remove_commit,
    write_commit,
)
from capfilt.io.inputs import read_samples
from capfilt.io.ledger import LedgerWriter
from capfilt.io.writer import open_writer
from capfilt.models import images
from capfilt.record import Annotated, ModelIdentity, Reason, Sample, Score, Source, Text, Verdict
from capfilt.run.task import Task
from capfilt.selection import judge
from capfilt.shard import InputShard
from capfilt.tally import Tally
from capfilt.text import normalise

AHEAD = 2  # decoded batches that wait for the models, per shard in flight

Item = TypeVar("Item")
Pixels = Mapping[images.PixelSpec, torch.Tensor]  # per model's need, uint8 [3, size, size]


class Captioner(Protocol):
    """Makes captions; see `capfilt.models.captioner`."""

    pixels: images.PixelSpec
    identity: ModelIdentity

    def caption(
        self, pixels: Sequence[torch.Tensor], keys: Sequence[str]
    ) -> list[tuple[str, ...]]: ...


class Filter(Protocol):
    """Scores texts; see `capfilt.models.filter`."""

    pixels: images.PixelSpec
    identity: ModelIdentity

    def score(
        self, pixels: Sequence[torch.Tensor], texts: Sequence[Sequence[str]]
    ) -> list[list[Score]]: ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample and what the models see of its image; none when it failed or nothing looks."""

    sample: Sample
    pixels: Pixels


class Worker:
    """Captioner, filter and the threads around them."""

    def __init__(self, task: Task, captioner: Captioner | None, filter_: Filter | None) -> None:
        self.task = task
        self.captioner = captioner
        self.filter = filter_
        self._specs = tuple({model.pixels for model in (captioner, filter_) if model is not None})
        self._models_lock = threading.Lock()
        threads = task.config.compute.decode_threads or min(8, len(os.sched_getaffinity(0)))
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._in_flight: dict[str, Tally] = {}
        self._in_flight_lock = threading.Lock()
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    @classmethod
    def load(cls, task: Task) -> Worker:
        """Load the task's models onto this process's device.

        Raises:
            ModelError: A checkpoint cannot be loaded, or is not the one that the driver saw.
        """
        from capfilt.models.load import load_captioner, load_filter

        config = task.config
        precision = config.compute.precision
        captioner = filter_ = None
        if "captioner" in task.models:
            captioner = load_captioner(
                config.captioner, config.captions, seed=config.seed, precision=precision
            )
            _check_same("captioner", captioner.identity, task.models["captioner"])
        if "filter" in task.models:
            filter_ = load_filter(config.filter, config.scoring, precision=precision)
            _check_same("filter", filter_.identity, task.models["filter"])
        return cls(task, captioner, filter_)

    def process(self, shard: InputShard, *, attempt: str, redo: bool = False) -> Commit:
        """Take one shard all the way to its commit.

        Args:
            shard: What to read.
            attempt: Names this attempt's temporary files; unique among all attempts of a run.
            redo: An older commit of this shard is stale and goes before its files are replaced.

        Raises:
            InputError: The shard cannot be read in full. Nothing of it is committed.
        """
        started = time.monotonic()
        root, config = self.task.output_url, self.task.config
        data_path = outputs.data_path(shard.id, config.output)
        ledger_path = outputs.ledger_path(shard.id)
        if redo:
            remove_commit(root, shard.id)
        tally = Tally()
        with self._counting(shard.id, tally):
            # The data is published first, then the ledger: contexts end inside out.
            with (
                files.publishing(files.join(root, ledger_path), attempt) as ledger_file,
                files.publishing(files.join(root, data_path), attempt) as data_file,
                LedgerWriter(ledger_file.path, metadata=self._ledger_metadata()) as ledger,
                open_writer(data_file.path, config.output, shard) as data,
                ThreadPoolExecutor(1, thread_name_prefix="write") as writing,
                ahead(self._batches(shard), depth=AHEAD) as batches,
            ):
                written: Future[None] | None = None
                for batch in batches:
                    annotated = self._annotate(batch, shard.source)
                    if written is not None:
                        written.result()
                    written = writing.submit(self._write, annotated, data, ledger, tally)
                if written is not None:
                    written.result()
            commit = Commit(
                shard=shard.id,
                input=InputRecord.of(shard),
                fingerprint=self.task.fingerprint,
                models=self.task.models,
                counts=tally.to_dict(),
                outputs={
                    data_path: _record(data_file.published),
                    ledger_path: _record(ledger_file.published),
                },
                telemetry={
                    "seconds": round(time.monotonic() - started, 3),
                    "worker": self.name,
                },
            )
            write_commit(root, commit)
        return commit

    def in_flight(self) -> Tally:
        """Counts of shards that are not committed yet."""
        total = Tally()
        with self._in_flight_lock:
            for tally in self._in_flight.values():
                total.merge(tally)
        return total

    def close(self) -> None:
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _counting(self, shard_id: str, tally: Tally) -> Iterator[None]:
        with self._in_flight_lock:
            self._in_flight[shard_id] = tally
        try:
            yield
        finally:
            with self._in_flight_lock:
                del self._in_flight[shard_id]

    def _ledger_metadata(self) -> dict[str, str]:
        return {
            "fingerprint": self.task.fingerprint,
            "seed": str(self.task.config.seed),
            **{role: identity.sha256 for role, identity in self.task.models.items()},
        }

    def _write(
        self, batch: Sequence[Annotated], data: Any, ledger: LedgerWriter, tally: Tally
    ) -> None:
        for annotated in batch:
            ledger.write(annotated)
            if annotated.verdict is Verdict.KEPT:
                data.write(annotated)
        with self._in_flight_lock:  # `in_flight` reads from another thread
            for annotated in batch:
                tally.add(annotated)

    # Reading: in the thread of `ahead`, with decoding in the pool.

    def _batches(self, shard: InputShard) -> Iterator[list[Decoded]]:
        """Group samples so that a batch has `batch_size` images for the models.

        Samples whose image failed ride along; a long run of them ends a batch too.
        """
        size = self.task.config.compute.batch_size
        batch: list[Decoded] = []
        good = 0
        for decoded in self._decode(read_samples(shard, self.task.config.images)):
            batch.append(decoded)
            good += decoded.sample.problem is None
            if good == size or len(batch) == 4 * size:
                yield batch
                batch, good = [], 0
        if batch:
            yield batch

    def _decode(self, samples: Iterable[Sample]) -> Iterator[Decoded]:
        """Decode in the pool, in order, as far ahead as one batch."""
        window: deque[Future[Decoded]] = deque()
        for sample in samples:
            window.append(self._decoders.submit(self._decode_one, sample))
            if len(window) > self.task.config.compute.batch_size:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()

    def _decode_one(self, sample: Sample) -> Decoded:
        if sample.problem is not None:
            return Decoded(replace(sample, image=None), {})
        assert sample.image is not None
        try:
            rgb = images.decode(sample.image, self.task.config.images)
        except images.ImageError as error:
            return Decoded(replace(sample, image=None, problem=error.reason), {})
        return Decoded(sample, {spec: images.fit(rgb, spec) for spec in self._specs})

    # The models: one batch at a time.

    def _annotate(self, batch: Sequence[Decoded], source: Source) -> list[Annotated]:
        """Caption, score and judge; every sample comes back, in order."""
        good = [d for d in batch if d.sample.problem is None]
        texts = [[self._check_text(t) for t in d.sample.texts] for d in good]
        rule = SelectionConfig(min_match_prob=None)  # human captions pass unfiltered
        if good and source is not Source.HUMAN:
            rule = self.task.config.selection
            with self._models_lock:
                self._caption(good, texts)
                self._score(good, texts)
        judged = iter(judge(t, rule) for t in texts)
        return [
            _failed(d.sample)
            if d.sample.problem is not None
            else _annotated(d.sample, *next(judged))
            for d in batch
        ]

    def _caption(self, good: Sequence[Decoded], texts: Sequence[list[Text]]) -> None:
        if self.captioner is None:
            return
        pixels = [d.pixels[self.captioner.pixels] for d in good]
        captions = self.captioner.caption(pixels, [d.sample.key for d in good])
        for of_image, found in zip(texts, captions, strict=True):
            of_image.extend(
                self._check_text(Text(Source.SYNTHETIC, i, caption))
                for i, caption in enumerate(found)
            )

    def _score(self, good: Sequence[Decoded], texts: Sequence[list[Text]]) -> None:
        if self.filter is None:
            return
        scorable = [[t.content for t in of_image if t.reason is None] for of_image in texts]
        pixels = [d.pixels[self.filter.pixels] for d in good]
        scores = self.filter.score(pixels, [[c for c in of if c is not None] for of in scorable])
        for of_image, of_scores in zip(texts, scores, strict=True):
            found = iter(of_scores)
            of_image[:] = [
                t if t.reason is not None else replace(t, score=next(found)) for t in of_image
            ]

    def _check_text(self, text: Text) -> Text:
        if text.reason is not None or text.content is None:
            return text
        seen = normalise(text.content, max_words=self.task.config.scoring.max_words)
        return text if seen.strip() else replace(text, reason=Reason.EMPTY_TEXT)


def _annotated(sample: Sample, texts: tuple[Text, ...], kept: tuple[Text, ...]) -> Annotated:
    return Annotated(sample, texts, kept, Verdict.KEPT if kept else Verdict.DROPPED)


def _failed(sample: Sample) -> Annotated:
    texts = tuple(
        replace(text, verdict=Verdict.FAILED, reason=sample.problem) for text in sample.texts
    )
    return Annotated(sample, texts, (), Verdict.FAILED)


def _record(published: files.Published) -> OutputRecord:
    return OutputRecord(published.size_bytes, published.sha256)


def _check_same(role: str, found: ModelIdentity, expected: ModelIdentity) -> None:
    if found.sha256 != expected.sha256:
        raise ModelError(
            f"{role} {expected.source}: this worker finds other weights there "
            f"(sha256 {found.sha256[:12]}) than the driver ({expected.sha256[:12]}); "
            "every node must see the same checkpoint"
        )


_END: Any = object()


@contextmanager
def ahead(items: Iterable[Item], *, depth: int) -> Iterator[Iterator[Item]]:
    """Run an iterable in a thread of its own, at most `depth` items ahead of its consumer.

    An exception of the iterable is raised at the consumer; leaving the context stops the thread.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - handed over, not swallowed
            put(_END, error)

    def consume() -> Iterator[Item]:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = threading.Thread(target=produce, name="read", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
