"""What ranks know of each other; with one process, and without any, of themselves.

Shapes: N rows of this rank, W ranks, M = W * N.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from capfilt.models.transfer import tensor_on


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Everyone's rows in the order of ranks, [N, ...] -> [M, ...]; no gradient comes back."""
    if ranks() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(ranks())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def gather_with_gradient(x: Tensor) -> Tensor:
    """As `gather`; a row's gradient is the sum of what all ranks make of it."""
    return x if ranks() == 1 else _Gather.apply(x)  # type: ignore[no-untyped-call]


def mean_over_ranks(total: Tensor, count: int) -> Tensor:
    """This rank's share of a mean over the joint batch.

    Args:
        total: Sum of this rank's terms.
        count: How many there are; may differ from rank to rank, and be 0.

    Returns:
        A value whose mean over ranks is the sum of all terms over the number of all terms.
    """
    counts = tensor_on(float(count), total.device)
    if ranks() > 1:
        dist.all_reduce(counts)
    return total * ranks() / counts.clamp(min=1)


def anywhere(flag: Tensor) -> Tensor:
    """Whether a flag is true on any rank."""
    found = flag.float()
    if ranks() > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found > 0


def gather_texts(texts: list[list[int]], width: int, device: torch.device) -> Tensor:
    """Everyone's token ids [M, width], -1 where a text has ended.

    Args:
        texts: Of this rank.
        width: No text of any rank is longer.
        device: Where ranks exchange tensors.
    """
    rows = [ids + [-1] * (width - len(ids)) for ids in texts]
    return gather(tensor_on(rows, device).int())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = rank() * ctx.rows
        return gradient[start : start + ctx.rows]
