"""Attention, and how texts of unequal length share a batch without padding.

Tokens of a batch travel packed, one row each, so that no linear layer ever works on padding. Only
inside attention do they stand in a rectangle, a `Grid`: texts x positions for self-attention,
images x tokens for cross-attention (`capfilt.models.memory`).

Shapes: P packed tokens, D width, H heads, Dh = D / H, N images, B texts, Q queries, T keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.models.linear import product
from capfilt.models.transfer import tensor_on

# On a CPU the fused kernel costs more than it saves below this number of queries.
_FEW_QUERIES = 8
# From here on a loop over heads is worth its overhead.
_MANY_QUERIES = 128


def check_heads(width: int, count: int) -> None:
    """For a config's `__post_init__`.

    Raises:
        ValueError: The heads cannot share the width.
    """
    if count < 1 or width < 1 or width % count:
        raise ValueError(f"{count} attention heads cannot share a width of {width}")


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention with the kernel that is fastest where the tensors are.

    Args:
        query: [N, H, Q, Dh].
        key: [N, H, T, Dh].
        value: [N, H, T, Dh].
        mask: True where a query may look, broadcastable to [N, H, Q, T]; None looks everywhere.
        dropout: Of the weights, while training.

    Returns:
        [N, H, Q, Dh].
    """
    if query.device.type == "cpu":
        # In training the fused kernel has no dropout of its own, and is half as fast where torch is
        # asked for a lower precision (`capfilt.train.precision`).
        lower = torch.is_grad_enabled() and torch.get_float32_matmul_precision() != "highest"
        if dropout or lower:
            return _plain(query, key, value, mask, dropout)
        # The fused kernel is the slowest in bf16, whatever the number of queries.
        few = query.shape[2] < (_MANY_QUERIES if query.dtype == torch.bfloat16 else _FEW_QUERIES)
        if few or (mask is not None and query.dtype == torch.bfloat16):
            return _plain(query, key, value, mask)
        if query.shape[2] >= _MANY_QUERIES and mask is None and not torch.is_grad_enabled():
            return _by_head(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ value


def _by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One head at a time, whose scores then stay in the processor's cache.

    On one Zen 5 core, 577 x 577, this is 1.6 times as fast as the fused kernel in fp32, and 2.7
    times in bf16.
    """
    images, count, queries, width = query.shape
    # As the heads will be merged: no copy is left to do then.
    context = query.new_empty(images, queries, count, width).transpose(1, 2)
    scaled = query / math.sqrt(width)
    for image in range(images):
        for head in range(count):
            scores = product(scaled[image, head], key[image, head])
            torch.softmax(scores, -1, out=scores)
            context[image, head] = product(scores, value[image, head].T)
    return context


def heads(x: Tensor, count: int) -> Tensor:
    """Split the width into heads: [N, Q, D] -> [N, H, Q, Dh]."""
    return x.view(*x.shape[:-1], count, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Undo `heads`: [N, H, Q, Dh] -> [N, Q, D]."""
    return x.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Grid:
    """Where consecutive packed rows stand in a rectangle of `height` rows and `width` columns."""

    height: int
    width: int
    cells: Tensor | None  # [P], flat index of each packed row; None: the rectangle is full
    counts: list[int]  # of packed rows in each row

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> Grid:
        """The grid whose row i holds the next `counts[i]` packed rows, from its left."""
        width = max(counts, default=0)
        if all(count == width for count in counts):
            return cls(len(counts), width, None, list(counts))
        cells = [i * width + j for i, count in enumerate(counts) for j in range(count)]
        return cls(len(counts), width, tensor_on(cells, device), list(counts))

    def spread(self, x: Tensor) -> Tensor:
        """[P, D] -> [height, width, D], zeros where no row stands."""
        if self.cells is None:
            return x.view(self.height, self.width, -1)
        flat = x.new_zeros(self.height * self.width, x.shape[-1])
        return flat.index_copy(0, self.cells, x).view(self.height, self.width, -1)

    def gather(self, x: Tensor) -> Tensor:
        """[height, width, D] -> [P, D], the inverse of `spread`."""
        flat = x.reshape(self.height * self.width, -1)
        return flat if self.cells is None else flat[self.cells]

    def filled(self) -> Tensor | None:
        """True where a row stands, [height, width]; None when that is everywhere."""
        if self.cells is None:
            return None
        mask = torch.zeros(self.height * self.width, dtype=torch.bool, device=self.cells.device)
        mask[self.cells] = True
        return mask.view(self.height, self.width)


class Packed:
    """Self-attention within each text of a packed batch."""

    def __init__(
        self, grid: Grid, head_count: int, *, causal: bool = False, dropout: float = 0.0
    ) -> None:
        self._grid = grid
        self._heads = head_count
        self._causal = causal
        self._dropout = dropout
        filled = grid.filled()
        self._filled = None if filled is None else filled[:, None, None, :]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[P, D] each -> [P, D]."""
        q, k, v = (heads(self._grid.spread(x), self._heads) for x in (query, key, value))
        mask = self._filled
        if self._causal:  # padding stands at the end of a row, where no token looks
            mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
        return self._grid.gather(merge_heads(attend(q, k, v, mask, dropout=self._dropout)))


class Cache:
    """Self-attention of decoder rows that grow together, one or more tokens at a time."""

    def __init__(self, layers: int, head_count: int, *, rows: int, room: int, like: Tensor) -> None:
        """Make room for `room` tokens of `rows` texts, as wide as `like` [*, D] and of its kind."""
        shape = (layers, rows, head_count, room, like.shape[-1] // head_count)
        self._keys = like.new_empty(shape)
        self._values = like.new_empty(shape)
        self.length = 0

    @property
    def rows(self) -> int:
        return self._keys.shape[1]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Add the new tokens of every row and let them look back.

        Args:
            layer: Which layer's.
            query: [rows * Q, D], row after row.
            key: As `query`.
            value: As `query`.

        Returns:
            As `query`.
        """
        head_count = self._keys.shape[2]
        q, k, v = (
            heads(x.view(self.rows, -1, x.shape[-1]), head_count) for x in (query, key, value)
        )
        fresh = q.shape[2]
        end = self.length + fresh
        self._keys[layer, :, :, self.length : end] = k
        self._values[layer, :, :, self.length : end] = v
        mask = None
        if fresh > 1:
            mask = torch.ones(fresh, end, dtype=torch.bool, device=q.device).tril(self.length)
        context = attend(q, self._keys[layer, :, :, :end], self._values[layer, :, :, :end], mask)
        return merge_heads(context).flatten(0, 1)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        self._keys = self._keys.index_select(1, rows)
        self._values = self._values.index_select(1, rows)
