"""What texts see of images: two forms of the same cross-attention.

    KeyValueMemory   every layer's keys and values of all image tokens, projected once for all texts
    StateMemory      the image states alone; a layer's key and value matrices are applied to the few
                     queries and contexts instead ("absorbed": q (W x)^T = (q W) x^T)

The second does less arithmetic while the texts of an image are short, up to some 60 tokens in all
at the published sizes, and reads one matrix per image in place of two per layer. It needs the
operators of `capfilt.models.linear` to be the faster one, and serves where a model is packed.

Shapes: P packed tokens, D width, H heads, Dh = D / H, N images, T image tokens, Dv image width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from capfilt.models.attention import Grid, attend, heads, merge_heads
from capfilt.models.linear import Multiplier, multiplier, product
from capfilt.models.transfer import tensor_on

# From here on a product per head is worth its overhead.
_MANY_TOKENS = 32


class ImageMemory(Protocol):
    """What packed queries can look at."""

    def attend(self, layer: int, query: Tensor, grid: Grid) -> Tensor:
        """Let packed queries look at their images.

        Args:
            layer: Whose keys and values.
            query: [P, D], ordered by image.
            grid: N rows; row i holds the queries of image i.

        Returns:
            [P, D].
        """
        ...

    def select(self, images: Sequence[int]) -> ImageMemory:
        """The memory of these images alone, in this order."""
        ...


@dataclass(frozen=True)
class KeyValueMemory:
    """Keys and values of images for every layer's cross-attention, projected once."""

    keys: tuple[Tensor, ...]  # per layer [N, H, T, Dh]
    values: tuple[Tensor, ...]
    dropout: float = 0.0  # of the weights, while training

    def attend(self, layer: int, query: Tensor, grid: Grid) -> Tensor:
        key, value = self.keys[layer], self.values[layer]
        queries = heads(grid.spread(query), key.shape[1])
        context = attend(queries, key, value, dropout=self.dropout)
        return grid.gather(merge_heads(context))

    def select(self, images: Sequence[int]) -> KeyValueMemory:
        index = tensor_on(list(images), self.keys[0].device)
        return KeyValueMemory(
            tuple(key[index] for key in self.keys),
            tuple(value[index] for value in self.values),
            self.dropout,
        )

    def plus(self, other: KeyValueMemory) -> KeyValueMemory:
        """The memory of these images and then the other's."""
        return KeyValueMemory(
            tuple(torch.cat(pair) for pair in zip(self.keys, other.keys, strict=True)),
            tuple(torch.cat(pair) for pair in zip(self.values, other.values, strict=True)),
            self.dropout,
        )


@dataclass(frozen=True)
class Absorbed:
    """One layer's key and value matrices by head, as queries and contexts meet them.

    Keys have a bias, too; it adds the same to all scores of a query and changes nothing.
    """

    key: Tensor  # [H, Dv, Dh]
    value: Tensor  # [H, Dh, Dv]
    bias: Tensor  # [D], of the values

    @classmethod
    def of(cls, key_value: nn.Linear, head_count: int) -> Absorbed:
        """From the projection of image states to keys and values."""
        key, value = key_value.weight.detach().chunk(2)
        width = key.shape[1]
        return cls(
            key.view(head_count, -1, width).transpose(1, 2).contiguous(),
            value.reshape(head_count, -1, width).clone(),
            key_value.bias.detach().chunk(2)[1].clone(),
        )


class StateMemory:
    """Image states, and the matrices that stand for every layer's keys and values."""

    def __init__(
        self, images: Sequence[tuple[Multiplier, Multiplier]], layers: Sequence[Absorbed]
    ) -> None:
        self._images = images  # by states, and by states transposed
        self._layers = layers

    @classmethod
    def of(cls, states: Tensor, layers: Sequence[Absorbed]) -> StateMemory:
        """Remember image states [N, T, Dv]."""
        return cls([(multiplier(x), multiplier(x.T.contiguous())) for x in states], layers)

    def attend(self, layer: int, query: Tensor, grid: Grid) -> Tensor:
        matrices = self._layers[layer]
        count, _, head_width = matrices.key.shape
        by_head = (query / math.sqrt(head_width)).view(-1, count, head_width).transpose(0, 1)
        looks = _by_head(by_head, matrices.key).transpose(0, 1)  # [P, H, Dv]
        contexts = []
        for (scores, mix), of_image in zip(
            self._images, torch.split(looks, grid.counts), strict=True
        ):
            if len(of_image):
                weights = scores(of_image.flatten(0, 1)).softmax(-1)
                contexts.append(mix(weights).view(of_image.shape))
        context = _by_head(torch.cat(contexts).transpose(0, 1), matrices.value)
        return context.transpose(0, 1).flatten(1) + matrices.bias

    def select(self, images: Sequence[int]) -> StateMemory:
        return StateMemory([self._images[image] for image in images], self._layers)


def is_less_work(queries: float, states: Tensor, width: int, head_count: int) -> bool:
    """Whether `StateMemory` takes less arithmetic than `KeyValueMemory`.

    Args:
        queries: Tokens that will look at an image.
        states: [N, T, Dv].
        width: D.
        head_count: H.
    """
    tokens, image_width = states.shape[1:]
    absorbed = queries * image_width * (width + head_count * tokens)
    return absorbed < tokens * width * (image_width + queries)


def _by_head(x: Tensor, y: Tensor) -> Tensor:
    """x [H, P, I] times the transposed y [H, O, I]: [H, P, O]."""
    if x.shape[1] < _MANY_TOKENS:
        return torch.bmm(x, y.transpose(1, 2))
    return torch.stack([product(a, b) for a, b in zip(x, y, strict=True)])
