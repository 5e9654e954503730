"""From a shard to batches of decoded samples, ahead of the models."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, islice, repeat

from torch import Tensor

from capfilt.errors import InputError
from capfilt.io.likeness import likeness
from capfilt.io.partial import Known, recalled
from capfilt.io.reader import read_samples
from capfilt.models import images
from capfilt.record import Reason, Sample
from capfilt.run.annotator import Decoded, is_good
from capfilt.run.device import one_thread_per_operation
from capfilt.run.flow import in_order
from capfilt.run.meter import Meter
from capfilt.run.task import Task
from capfilt.shard import InputShard

LARGE_PIXELS = 2**24  # decoded one at a time: each may take 16 bytes a pixel for a moment


class Decoder:
    """Reads shards and decodes their images in threads. Safe for several shards at once."""

    def __init__(
        self, task: Task, specs: Sequence[images.PixelSpec], meter: Meter, *, batch_size: int
    ) -> None:
        """Start the threads.

        Args:
            task: The run's work order.
            specs: What the models want to see of an image.
            meter: Counts the seconds, and the batches that wait.
            batch_size: Images of a batch.
        """
        self._task = task
        self._specs = specs
        self._meter = meter
        self._batch_size = batch_size
        threads = task.config.compute.decode_threads or min(8, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="decode", initializer=one_thread_per_operation
        )
        self._decoding_large = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop: the next batch of a shard is an error."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def batches(self, shard: InputShard, known: Sequence[Known]) -> Iterator[list[Decoded]]:
        """Group samples so that a batch has `batch_size` images for the models.

        Samples whose image failed ride along; a long run of them ends a batch too.

        Args:
            shard: What to read.
            known: What an earlier try has put aside of it, from its first sample on.

        Raises:
            InputError: The shard cannot be read in full, or this is closed meanwhile.
        """
        batch: list[Decoded] = []
        good = 0
        samples = zip(self._samples(shard), chain(known, repeat(None)), strict=False)
        for decoded in in_order(self._pool, self._decode, samples, most=self._batch_size):
            if self._closed.is_set():
                raise InputError(f"shard {shard.id}: given back, the worker is closing")
            batch.append(decoded)
            good += is_good(decoded.sample)
            if good == self._batch_size or len(batch) == 4 * self._batch_size:
                self._meter.queue(shard.id, 1)
                yield batch
                batch, good = [], 0
        if batch:
            self._meter.queue(shard.id, 1)
            yield batch

    def _samples(self, shard: InputShard) -> Iterator[Sample]:
        duplicates = self._task.duplicates.get(shard.id, {})
        samples = self._meter.each("read", read_samples(shard, self._task.config.images))
        samples = islice(samples, self._task.most_samples)
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
        excluded = self._task.excluded
        if excluded is None:
            return False
        limits = self._task.config.images
        return excluded.has(likeness(image, look=excluded.looks, limits=limits))

    def _pixels(self, image: bytes) -> dict[images.PixelSpec, Tensor]:
        with self._meter.stage("decode"):
            rgb = images.decode(image, self._task.config.images)
            return {spec: images.fit(rgb, spec) for spec in self._specs}
