"""Small tensors and pixels on their way to a device, without making the host wait for it.

A copy from ordinary memory to a GPU waits until everything queued before it is done. From pinned
memory it takes its place in the queue, and torch keeps the memory until the copy is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tensor_on(values: Any, device: torch.device) -> Tensor:
    """As `torch.tensor(values, device=device)`."""
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values).pin_memory().to(device, non_blocking=True)


def stack_on(pixels: Sequence[Tensor], device: torch.device) -> Tensor:
    """Images, each uint8 [3, S, S], on a device: [N, 3, S, S]."""
    if device.type != "cuda":
        return torch.stack(list(pixels)).to(device)
    stacked = torch.empty(len(pixels), *pixels[0].shape, dtype=pixels[0].dtype, pin_memory=True)
    for row, image in zip(stacked, pixels, strict=True):
        row.copy_(image)
    return stacked.to(device, non_blocking=True)
