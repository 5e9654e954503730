"""The images of an evaluation, decoded in threads a few batches ahead of the models.

An image that is missing or cannot be decoded is an error here, not a row with a reason: figures
over other images than the file names would compare with nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from capfilt.config import ComputeConfig, ImageConfig
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.members import IMAGE_EXTS, is_key_safe
from capfilt.models.images import ImageError, PixelSpec, decode, fit

Item = TypeVar("Item")

_LOOKUPS_AT_ONCE = 16  # an object store takes tens of milliseconds for each
_CUDA_BATCH, _CPU_BATCH = 64, 8  # images, where the config leaves it open


@dataclass(frozen=True)
class Pictures:
    """A folder of images and how they are decoded."""

    folder: str
    limits: ImageConfig = field(default_factory=ImageConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        automatic = _CUDA_BATCH if torch.cuda.is_available() else _CPU_BATCH
        return self.compute.batch_size or automatic

    def names(self) -> list[str]:
        """Paths of all images below the folder, sorted.

        Raises:
            InputError: There is none.
        """
        entries = files.find(files.absolute(self.folder))
        found = [e.name for e in entries if e.name.rpartition(".")[2].lower() in IMAGE_EXTS]
        if not found:
            raise InputError(f"{self.folder}: no images below it")
        return found

    def check(self, paths: Iterable[str]) -> None:
        """Look whether all images are there, before a model does any work.

        Raises:
            InputError: Some are missing, or a path leaves the folder.
        """
        wanted = list(dict.fromkeys(paths))
        for path in wanted:
            if not is_key_safe(path):
                raise InputError(f"{path!r} is no path below {self.folder}")
        with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as pool:
            there = list(pool.map(lambda path: files.exists(self._url(path)), wanted))
        missing = [path for path, is_there in zip(wanted, there, strict=True) if not is_there]
        if missing:
            raise InputError(
                f"{self.folder}: {len(missing):,} of {len(wanted):,} images are not there, the "
                f"first is {missing[0]} (--images names the folder that paths start from)"
            )

    def batches(self, paths: Sequence[str], spec: PixelSpec) -> Iterator[list[Tensor]]:
        """The pixels of images in their order, `batch_size` at a time.

        Args:
            paths: Of the images, below the folder.
            spec: What the model wants.

        Yields:
            One uint8 [3, size, size] per image.

        Raises:
            InputError: An image cannot be read or decoded.
        """
        size = self.batch_size
        threads = self.compute.decode_threads or min(8, len(os.sched_getaffinity(0)))
        waiting: deque[Future[Tensor]] = deque()
        coming = iter(paths)
        with ThreadPoolExecutor(threads) as pool:
            try:
                for _ in range(0, len(paths), size):
                    for path in coming:
                        waiting.append(pool.submit(self._pixels, path, spec))
                        if len(waiting) >= 3 * size:  # one batch to give, two to come
                            break
                    yield [waiting.popleft().result() for _ in range(min(size, len(waiting)))]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _pixels(self, path: str, spec: PixelSpec) -> Tensor:
        try:
            return fit(decode(files.read_bytes(self._url(path)), self.limits), spec)
        except ImageError as error:
            raise InputError(f"{self._url(path)}: {error.reason}: {error}") from error

    def _url(self, path: str) -> str:
        return files.join(files.absolute(self.folder), path)


def shown(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """The same items, with a progress bar where stderr is a terminal."""
    console = Console(stderr=True)
    return track(items, title, total, console=console, disable=not console.is_terminal)
