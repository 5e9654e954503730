"""What a worker's models compute on: one GPU, or cores of a CPU."""

from __future__ import annotations

import resource

import torch

CUDA_BATCH, CPU_BATCH = 64, 8


def device_name() -> str:
    """A CPU, or one GPU by name and number, told from all others."""
    if not torch.cuda.is_available():
        return "CPU"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name} {getattr(properties, 'uuid', '')}".strip()


def automatic_batch_size() -> int:
    """Images at once, where the config leaves it open."""
    return CUDA_BATCH if torch.cuda.is_available() else CPU_BATCH


def one_thread_per_operation() -> None:
    """Let an operation of torch use the calling thread alone; OpenMP wants to hear it in each."""
    torch.set_num_threads(1)


def peak_bytes() -> int:
    """Most memory that was in use: of the GPU, or of this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
