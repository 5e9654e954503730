"""This process among those that train together: one alone, torchrun's, or Ray Train's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from capfilt.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is, and where it computes."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks of a tensor on their devices."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, by rank. Slow: for what is said once."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def share(self, of_batch: int, what: str) -> int:
        """A rank's part of a batch.

        Raises:
            ConfigError: The ranks cannot divide it evenly.
        """
        if of_batch % self.count:
            below = max(1, of_batch // self.count) * self.count
            raise ConfigError(
                f"{what} is {of_batch} images, which {self.count} processes cannot divide evenly: "
                f"take {below} or {below + self.count}"
            )
        return of_batch // self.count


@contextmanager
def joined(device: torch.device | None = None) -> Iterator[Ranks]:
    """Join the others: those of Ray Train, which has met them, of torchrun, or nobody.

    Args:
        device: Of this rank; None finds it.
    """
    device = device or _device()
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
        return
    if not by_torchrun():
        yield Ranks(0, 1, device)
        return
    # As long as Ray Train waits: for the first rank, which writes checkpoints and models.
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    # A rank that fails alone must exit, so that torchrun ends the others, which wait for it in the
    # middle of a step: NCCL would wait for them before the group is gone.
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    except KeyboardInterrupt:  # all ranks stop after the same step
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def by_torchrun() -> bool:
    """Whether torchrun has started this process, as one of several or alone."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
