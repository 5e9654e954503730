"""How many images the models take at once, learnt from what did not fit into memory."""

from __future__ import annotations

import gc
import logging
import resource
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# What else says so than the errors' classes.
_ON_A_CPU = ("allocate memory", "could not create a primitive")  # torch's, oneDNN's
_ON_A_GPU = (  # the driver's, cuBLAS's and cuDNN's, whose handles and workspaces are not torch's
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # by torch's own account mostly for want of memory
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED and more
)
GROW_AFTER = 32  # parts that fitted, before twice as many images are tried again

log = logging.getLogger("capfilt")


class Fitting:
    """Halves a batch that does not fit, remembers what did, and grows again carefully.

    Twice as many images are tried after `GROW_AFTER` parts that fitted; each time that fails, the
    next trial is twice as far away. Results come in order, whatever the parts. Thread-safe.
    """

    def __init__(self) -> None:
        self.most: int | None = None  # images at once; None: nothing has failed yet
        self._lock = threading.Lock()
        self._fitted = 0
        self._patience = GROW_AFTER

    def in_parts(
        self, function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
    ) -> list[Result]:
        """Apply a function to all items, to as many at once as fit.

        Args:
            function: One result per item; may be called again with a part of what it failed on.
            items: A batch.

        Raises:
            torch.OutOfMemoryError: Or what else says so on a CPU; a single item does not fit.
        """
        results: list[Result] = []
        while len(results) < len(items):
            part = items[len(results) :][: self.most or len(items)]
            try:
                results += function(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
            else:
                self._count(len(part))
                continue
            # Not inside `except`: there, the error's traceback still holds the tensors.
            self._halve(len(part))
        return results

    def _count(self, size: int) -> None:
        with self._lock:
            if self.most is None or size < self.most:
                return
            self._fitted += 1
            if self._fitted == self._patience:
                self.most, self._fitted = 2 * self.most, 0

    def _halve(self, size: int) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with self._lock:
            if self.most is not None and self.most < size:
                return  # another thread has
            self._patience *= 1 if self.most is None else 2
            self.most, self._fitted = size // 2, 0
        log.warning("%d images at once do not fit into memory: %d from now on", size, size // 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = (*_ON_A_CPU, *_ON_A_GPU)
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def limit_memory(size_bytes: int) -> None:
    """Let this process's own memory not grow above a limit: what asks for more gets an error.

    Counted is what the process could write to; files mapped for reading are not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size_bytes, hard))
