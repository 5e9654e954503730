"""One worker: takes an input shard, leaves its data, ledger and commit. No Ray.

    read -> decode (pool) -> batch --thread--> annotate (pool) -> write (thread) -> publish

Reading and decoding run ahead of the models and writing trails them, so the models never wait.
`process` may be called from two threads at once: while the models have one shard, the next is being
read and the last one published. A worker holds a few batches per shard in flight, whatever the
shard's size. What a large shard has is put aside now and then (`capfilt.io.partial`).

On a GPU the models take one batch at a time. On a CPU they take one per core, each computed by a
single thread: that is faster than sharing every operation among the cores, and a result does not
depend on how many cores there are.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat

import torch

from capfilt.errors import InputError, ModelError, StalledError
from capfilt.io import files, outputs, publish
from capfilt.io.commits import Commit, InputRecord, OutputRecord, retire, write_commit
from capfilt.io.inputs import check_unchanged
from capfilt.io.lease import Fence
from capfilt.io.ledger import LedgerWriter
from capfilt.io.likeness import likeness
from capfilt.io.partial import Known, Partial, recalled
from capfilt.io.reader import read_samples
from capfilt.io.writer import DataWriter, open_writer
from capfilt.logs import about
from capfilt.models import images
from capfilt.record import Annotated, ModelIdentity, Reason, Sample, Verdict
from capfilt.run.annotator import Annotator, Captioner, Decoded, Filter, is_good
from capfilt.run.attempt import Attempt, OvertakenError
from capfilt.run.fitting import limit_memory
from capfilt.run.flow import ahead, in_order
from capfilt.run.meter import Meter
from capfilt.run.task import Task
from capfilt.shard import InputShard
from capfilt.tally import Tally

BATCHES_AHEAD = 2  # decoded batches that wait for the models, per shard in flight
LARGE_PIXELS = 2**24  # decoded one at a time: each may take 16 bytes a pixel for a moment
CUDA_BATCH, CPU_BATCH = 64, 8  # images, where the config leaves it open

log = logging.getLogger("capfilt")


class Worker:
    """Captioner, filter and the threads around them."""

    def __init__(
        self,
        task: Task,
        captioner: Captioner | None,
        filter_: Filter | None,
        *,
        batches_at_once: int = 1,
    ) -> None:
        """Hold loaded models.

        Args:
            task: The run's work order.
            captioner: None when it is off.
            filter_: None when it is off.
            batches_at_once: How many batches the models take side by side.
        """
        self.task = task
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.device = _device()
        self.meter = Meter(lanes=batches_at_once)
        self._fence = Fence(task.output_url, task.lease)
        self.annotator = Annotator(task.config, captioner, filter_, self.meter)
        compute = task.config.compute
        cuda = torch.cuda.is_available()
        self._batch_size = compute.batch_size or (CUDA_BATCH if cuda else CPU_BATCH)
        self.batches_at_once = batches_at_once
        self._models = ThreadPoolExecutor(
            batches_at_once, thread_name_prefix="models", initializer=one_thread_per_operation
        )
        threads = compute.decode_threads or min(8, len(os.sched_getaffinity(0)))
        self._decoders = ThreadPoolExecutor(
            threads, thread_name_prefix="decode", initializer=one_thread_per_operation
        )
        self._decoding_large = threading.Lock()
        self._closed = threading.Event()
        self._tallies: dict[str, Tally] = {}  # of the shards in flight
        self._lock = threading.Lock()  # `in_flight` reads them from another thread

    @classmethod
    def load(cls, task: Task, *, cpus: int) -> Worker:
        """Load the task's models onto this process's GPU, or else for this many CPU cores.

        Raises:
            ModelError: A checkpoint cannot be loaded, or is not the one that the driver saw.
        """
        from capfilt.models.load import load_captioner, load_filter

        one_thread_per_operation()
        publish.clean_for_stores()  # what killed workers have left here
        config = task.config
        if config.compute.memory_limit_gb:
            limit_memory(int(config.compute.memory_limit_gb * 1e9))
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
        at_once = 1 if torch.cuda.is_available() else cpus
        return cls(task, captioner, filter_, batches_at_once=at_once)

    def process(
        self, shard: InputShard, *, redo: bool = False, attempt: Attempt | None = None
    ) -> Commit:
        """Take one shard all the way to its commit.

        Args:
            shard: What to read.
            redo: An older commit of this shard is stale and goes before its files are replaced.
            attempt: What says whether another worker is at this shard, and was first; None: nobody.

        Raises:
            InputError: The shard cannot be read in full, or has changed. Nothing of it is
                committed.
            StalledError: Nothing came of it for `read_timeout_s`; a thread of it still hangs.
            OvertakenError: Another worker was first. Nothing of this try is left.
            CommitError: It cannot be published, or another run has taken OUTPUT over.
        """
        attempt = attempt or Attempt()
        started = time.monotonic()
        log.debug("shard %s begins", shard.id, extra=about(shard=shard.id, worker=self.name))
        root, output = self.task.output_url, self.task.config.output
        data_path, ledger_path = outputs.data_path(shard.id, output), outputs.ledger_path(shard.id)
        aside = self._aside(shard)
        with self._counting(shard) as tally:
            # Contexts end inside out: the data is published first, then the ledger.
            with (
                _removed_if_overtaken(aside),
                publish.publishing(files.join(root, ledger_path)) as ledger_file,
                publish.publishing(files.join(root, data_path)) as data_file,
                LedgerWriter(ledger_file.path, metadata=self._ledger_metadata()) as ledger,
                open_writer(data_file.path, output, shard) as data,
            ):
                known = aside.recall()
                write = partial(self._write, data, ledger, tally, aside, attempt)
                self._flow(shard, known, write)
                flowed = time.monotonic()
                check_unchanged(shard)
                self._fence.check()
                attempt.begin_publishing()
                if redo:
                    retire(root, shard.id, {data_path, ledger_path})
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
                    "device": self.device,
                    "ended": round(time.time(), 3),
                },
            )
            self._fence.check()  # publishing may have taken long, and the process been frozen
            write_commit(root, commit)
            self.meter.add("publish", time.monotonic() - flowed)
            aside.remove()
        return commit

    def in_flight(self) -> dict[str, Tally]:
        """Counts of the shards that are not committed yet, by shard."""
        with self._lock:
            return {shard_id: Tally.sum([tally]) for shard_id, tally in self._tallies.items()}

    @property
    def batch_size(self) -> int:
        """Images that the models take at once, as far as is known by now."""
        return min(self._batch_size, self.annotator.fitting.most or self._batch_size)

    def peak_bytes(self) -> int:
        """Most memory that was in use: of the GPU, or of this process on a CPU."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        """Stop: a shard in flight fails after its present batch and leaves nothing behind."""
        self._closed.set()
        for pool in (self._models, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _counting(self, shard: InputShard) -> Iterator[Tally]:
        tally = Tally()
        with self._lock:
            self._tallies[shard.id] = tally
        try:
            yield tally
        finally:
            self.meter.forget(shard.id)
            with self._lock:
                del self._tallies[shard.id]

    def _aside(self, shard: InputShard) -> Partial:
        # Other batches may have other last digits, so they begin anew.
        made_by = {
            "fingerprint": self.task.fingerprint,
            "input": [shard.url, shard.size_bytes, shard.version],
            "batch_size": self._batch_size,
        }
        every = self.task.config.compute.checkpoint_every
        return Partial(self.task.output_url, shard.id, made_by, every=every)

    def _ledger_metadata(self) -> dict[str, str]:
        return {
            "fingerprint": self.task.fingerprint,
            "seed": str(self.task.config.seed),
            **{role: identity.sha256 for role, identity in self.task.models.items()},
        }

    def _flow(self, shard: InputShard, known: Sequence[Known], write: partial[None]) -> None:
        """Run a shard through the stages, each in threads of its own."""
        annotate = partial(self._annotate, shard)
        timeout_s = self.task.config.compute.read_timeout_s
        decoded = self._batches(shard, known)
        try:
            with (
                ahead(decoded, depth=BATCHES_AHEAD, timeout_s=timeout_s) as batches,
                ThreadPoolExecutor(1, thread_name_prefix="write") as writing,
            ):
                # One more than the models take, so that the next is there when one is done.
                annotated = in_order(self._models, annotate, batches, most=self.batches_at_once + 1)
                for _ in in_order(writing, write, annotated, most=2):
                    pass
        except TimeoutError:
            raise StalledError(f"{shard.url}: nothing came of it for {timeout_s:g} s") from None

    def _batches(self, shard: InputShard, known: Sequence[Known]) -> Iterator[list[Decoded]]:
        """Group samples so that a batch has `batch_size` images for the models.

        Samples whose image failed ride along; a long run of them ends a batch too.
        """
        batch: list[Decoded] = []
        good = 0
        # What an earlier try has put aside comes first; then there is nothing known.
        samples = zip(self._samples(shard), chain(known, repeat(None)), strict=False)
        for decoded in in_order(self._decoders, self._decode, samples, most=self._batch_size):
            if self._closed.is_set():
                raise InputError(f"shard {shard.id}: given back, the worker is closing")
            batch.append(decoded)
            good += is_good(decoded.sample)
            if good == self._batch_size or len(batch) == 4 * self._batch_size:
                self.meter.queue(shard.id, 1)
                yield batch
                batch, good = [], 0
        if batch:
            self.meter.queue(shard.id, 1)
            yield batch

    def _annotate(self, shard: InputShard, batch: Sequence[Decoded]) -> list[Annotated]:
        self.meter.queue(shard.id, -1)
        annotated = self.annotator.annotate(batch, shard.source)
        made = zip(batch, annotated, strict=True)
        self.meter.count(judged for decoded, judged in made if decoded.judged is None)
        return annotated

    def _samples(self, shard: InputShard) -> Iterator[Sample]:
        duplicates = self.task.duplicates.get(shard.id, {})
        samples = self.meter.each("read", read_samples(shard, self.task.config.images))
        samples = islice(samples, self.task.most_samples)
        for number, sample in enumerate(samples):
            yield replace(sample, unwanted=duplicates.get(number))

    def _decode(self, item: tuple[Sample, Known | None]) -> Decoded:
        sample, known = item
        if known is not None and known["key"] == sample.key:
            judged = recalled(known, sample)
            return Decoded(judged.sample, {}, judged)
        if sample.problem is not None or sample.image is None:
            return Decoded(replace(sample, image=None), {})
        image = sample.image
        is_large = images.count_pixels(image) > LARGE_PIXELS
        try:
            try:
                with self._decoding_large if is_large else nullcontext():
                    pixels = self._pixels(image)
            except MemoryError:  # beside others; alone it may fit
                with self._decoding_large:
                    pixels = self._pixels(image)
        except images.ImageError as error:
            return Decoded(replace(sample, image=None, problem=error.reason), {})
        if self._is_excluded(image):  # before a copy: as a cut decides
            sample = replace(sample, unwanted=Reason.EVALUATION_IMAGE)
        if sample.unwanted is not None:
            return Decoded(replace(sample, image=None), {})
        return Decoded(sample, pixels)

    def _is_excluded(self, image: bytes) -> bool:
        excluded = self.task.excluded
        if excluded is None:
            return False
        limits = self.task.config.images
        return excluded.has(likeness(image, look=excluded.looks, limits=limits))

    def _pixels(self, image: bytes) -> dict[images.PixelSpec, torch.Tensor]:
        with self.meter.stage("decode"):
            rgb = images.decode(image, self.task.config.images)
            return {spec: images.fit(rgb, spec) for spec in self.annotator.specs}

    def _write(
        self,
        data: DataWriter,
        ledger: LedgerWriter,
        tally: Tally,
        aside: Partial,
        attempt: Attempt,
        batch: Sequence[Annotated],
    ) -> None:
        attempt.check()
        with self.meter.stage("write"):
            for annotated in batch:
                ledger.write(annotated)
                if annotated.verdict is Verdict.KEPT:
                    data.write(annotated)
            aside.add(batch)
        with self._lock:
            for annotated in batch:
                tally.add(annotated)


def one_thread_per_operation() -> None:
    """Let an operation of torch use the calling thread alone; OpenMP wants to hear it in each."""
    torch.set_num_threads(1)


def _device() -> str:
    """What the models run on: a CPU, or one GPU by name and number, told from all others."""
    if not torch.cuda.is_available():
        return "CPU"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name} {getattr(properties, 'uuid', '')}".strip()


@contextmanager
def _removed_if_overtaken(aside: Partial) -> Iterator[None]:
    try:
        yield
    except OvertakenError:
        aside.remove()
        raise


def _record(published: publish.Published) -> OutputRecord:
    return OutputRecord(published.size_bytes, published.sha256)


def _check_same(role: str, found: ModelIdentity, expected: ModelIdentity) -> None:
    if found.sha256 != expected.sha256:
        raise ModelError(
            f"{role} {expected.source}: on node {socket.gethostname()} there are other weights "
            f"(sha256 {found.sha256[:12]}) than the driver's ({expected.sha256[:12]}); every node "
            "must see the same checkpoint"
        )
