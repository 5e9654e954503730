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
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch

from capfilt.errors import StalledError
from capfilt.io import files, outputs, publish
from capfilt.io.commits import Commit, InputRecord, OutputRecord, retire, write_commit
from capfilt.io.inputs import check_unchanged
from capfilt.io.lease import Fence
from capfilt.io.ledger import LedgerWriter
from capfilt.io.partial import Known, Partial
from capfilt.io.writer import DataWriter, open_writer
from capfilt.logs import about
from capfilt.record import Annotated, Verdict
from capfilt.run.annotator import Annotator, Captioner, Decoded, Filter
from capfilt.run.attempt import Attempt, OvertakenError
from capfilt.run.decoder import Decoder
from capfilt.run.device import automatic_batch_size, device_name, one_thread_per_operation
from capfilt.run.fitting import limit_memory
from capfilt.run.flow import ahead, in_order
from capfilt.run.meter import Meter
from capfilt.run.models import load_models
from capfilt.run.task import Task
from capfilt.shard import InputShard
from capfilt.tally import Tally

BATCHES_AHEAD = 2  # decoded batches that wait for the models, per shard in flight

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
        self.device = device_name()
        self.meter = Meter(lanes=batches_at_once)
        self._fence = Fence(task.output_url, task.lease)
        self.annotator = Annotator(task.config, captioner, filter_, self.meter)
        self._batch_size = task.config.compute.batch_size or automatic_batch_size()
        self.batches_at_once = batches_at_once
        self._models = ThreadPoolExecutor(
            batches_at_once, thread_name_prefix="models", initializer=one_thread_per_operation
        )
        self._decoder = Decoder(task, self.annotator.specs, self.meter, batch_size=self._batch_size)
        self._tallies: dict[str, Tally] = {}  # of the shards in flight
        self._lock = threading.Lock()  # `in_flight` reads them from another thread

    @classmethod
    def load(cls, task: Task, *, cpus: int) -> Worker:
        """Load the task's models onto this process's GPU, or else for this many CPU cores.

        Raises:
            ModelError: A checkpoint cannot be loaded, or is not the one that the driver saw.
        """
        one_thread_per_operation()
        publish.clean_for_stores()  # what killed workers have left here
        if task.config.compute.memory_limit_gb:
            limit_memory(int(task.config.compute.memory_limit_gb * 1e9))
        captioner, filter_ = load_models(task)
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
            OvertakenError: Another worker was first. Nothing of this try is left, once that one has
                committed the shard.
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
                self._removed_if_done_by_another(shard, aside),
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

    def close(self) -> None:
        """Stop: a shard in flight fails after its present batch and leaves nothing behind."""
        self._decoder.close()
        self._models.shutdown(wait=False, cancel_futures=True)

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

    @contextmanager
    def _removed_if_done_by_another(self, shard: InputShard, aside: Partial) -> Iterator[None]:
        try:
            yield
        except OvertakenError:
            # Without a commit who was first may still fail, and what is aside spares the next try.
            if files.exists(files.join(self.task.output_url, outputs.commit_path(shard.id))):
                aside.remove()
            raise

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
        decoded = self._decoder.batches(shard, known)
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

    def _annotate(self, shard: InputShard, batch: Sequence[Decoded]) -> list[Annotated]:
        self.meter.queue(shard.id, -1)
        annotated = self.annotator.annotate(batch, shard.source)
        made = zip(batch, annotated, strict=True)
        self.meter.count(judged for decoded, judged in made if decoded.judged is None)
        return annotated

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


def _record(published: publish.Published) -> OutputRecord:
    return OutputRecord(published.size_bytes, published.sha256)
