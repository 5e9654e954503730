"""Too little memory, said in words that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from capfilt.errors import TrainingError
from capfilt.train.config import LoopConfig

# How torch says it for a CPU, and CUDA's libraries for their handles and their own buffers.
_SIGNS = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
)


@contextmanager
def enough_memory(loop: LoopConfig, ranks: int) -> Iterator[None]:
    """Turn torch's lack of memory into one line with the keys that help.

    Raises:
        TrainingError: Memory is short.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_memory and not any(sign in str(error) for sign in _SIGNS):
            raise
        images = loop.batch_size // loop.accumulate // ranks
        raise TrainingError(
            f"out of memory with {images} images at once per process: raise loop.accumulate "
            f"(now {loop.accumulate}), set model.recompute.image and model.recompute.text to true, "
            "lower loop.batch_size, or use more GPUs"
        ) from error
