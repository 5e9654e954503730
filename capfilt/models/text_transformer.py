"""The text side of MED: one transformer, three modes, chosen at the call.

| mode                   | self-attention                     | `image`   | first token |
| ---------------------- | ---------------------------------- | --------- | ----------- |
| unimodal encoder       | `Packed(...)`                      | None      | `[CLS]`     |
| image-grounded encoder | `Packed(...)`                      | `Looking` | `[ENC]`     |
| image-grounded decoder | `Packed(..., causal=True)`, `Cache` | `Looking` | `[DEC]` |

One instance is one set of weights. Parts are separate modules so that two instances can share some
of them: BLIP shares everything but self-attention between encoder and decoder, which is
`decoder.layers[i].cross = encoder.layers[i].cross`, and so on (Table 3).

Shapes: P packed tokens, B texts, D width, N images, T image tokens, Dv image width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capfilt.models.attention import Grid, Packed, check_heads, heads
from capfilt.models.linear import LinearGelu, can_pack
from capfilt.models.memory import Absorbed, ImageMemory, KeyValueMemory, StateMemory, is_less_work


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text transformer, and how it is trained."""

    vocabulary: int = 30524
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    max_tokens: int = 512
    image_width: int = 768
    norm_eps: float = 1e-12
    dropout: float = 0.0  # of hidden states and attention weights, while training
    recompute: bool = False  # a layer's activations in the backward pass

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)


class SelfView(Protocol):
    """Which tokens see each other: `Packed` or `Cache`."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Looking:
    """What tokens see of their images."""

    memory: ImageMemory
    grid: Grid  # row i holds the tokens that look at image i


class SelfAttention(nn.Module):
    """Projections of self-attention; who sees whom is the caller's."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)


class CrossAttention(nn.Module):
    """Projections of cross-attention from text to image."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.image_width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.absorbed: Absorbed | None = None
        self._heads = config.heads

    def pack(self) -> None:
        """For `prepare_for_inference`: the matrices by head, for texts that are short."""
        if can_pack(self.key_value.weight):
            self.absorbed = Absorbed.of(self.key_value, self._heads)


class FeedForward(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.up = LinearGelu(config.width, config.ffn)
        self.down = nn.Linear(config.ffn, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        return self.norm(_drop(self.down(self.up(x)), dropout) + x)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each normalised after it is added."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.dropout = config.dropout
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, own: SelfView, image: Looking | None, only: Tensor | None = None
    ) -> Tensor:
        """[P, D] -> [P, D]; or the rows `only`, for which alone `image.grid` then stands."""
        mine, dropout = self.attention, self.dropout if self.training else 0.0
        context = own.attend(self.index, *mine.qkv(x).chunk(3, dim=-1))
        if only is not None:
            x, context = x[only], context[only]
        x = mine.norm(_drop(mine.out(context), dropout) + x)
        if image is not None:
            cross = self.cross
            context = image.memory.attend(self.index, cross.query(x), image.grid)
            x = cross.norm(_drop(cross.out(context), dropout) + x)
        return self.ffn(x, dropout)  # type: ignore[no-any-return]


class TextTransformer(nn.Module):
    """BERT with cross-attention in every layer.

    Source: BLIP, arXiv:2201.12086, section 3.1.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.max_tokens, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))

    def remember(self, images: Tensor, *, queries: float = math.inf) -> ImageMemory:
        """Make image states ready for the cross-attention of all their texts.

        Args:
            images: [N, T, Dv], from the ViT.
            queries: About how many tokens will look at each image; decides how it is done.
        """
        crosses = [layer.cross for layer in self.layers]
        return remember(crosses, images, self.config, queries=queries, dropout=self._dropout)  # type: ignore[arg-type]

    def packed(self, grid: Grid, *, causal: bool = False) -> Packed:
        """How the tokens of a packed batch see each other; one row of `grid` per text."""
        return Packed(grid, self.config.heads, causal=causal, dropout=self._dropout)

    def forward(
        self, ids: Tensor, positions: Tensor, own: SelfView, image: Looking | None = None
    ) -> Tensor:
        """Run all tokens through all layers.

        Args:
            ids: Token ids [P], text after text, ordered by image where there is one.
            positions: Of each token in its text, [P].
            own: Which tokens see each other.
            image: What they see of images; None leaves cross-attention out.

        Returns:
            [P, D].
        """
        x = self.embed(ids, positions)
        for layer in self.layers:
            x = self._run(layer, x, own, image)
        return x

    def first_tokens(
        self,
        ids: Tensor,
        positions: Tensor,
        own: SelfView,
        image: Looking | None = None,
        first_looking: Looking | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, for the first token of every text alone, which saves most of a layer.

        Args:
            ids: [P].
            positions: [P].
            own: As in `forward`.
            image: As in `forward`.
            first_looking: The same memory, and a grid of one token per text.
            first: Row of each text's first token, [B]; None finds them, for which the host waits.

        Returns:
            [B, D].
        """
        *layers, last = self.layers
        x = self.embed(ids, positions)
        for layer in layers:
            x = self._run(layer, x, own, image)
        if first is None:
            first = (positions == 0).nonzero().squeeze(1)
        return self._run(last, x, own, first_looking, first)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.positions(positions))
        return _drop(x, self._dropout)

    @property
    def _dropout(self) -> float:
        return self.config.dropout if self.training else 0.0

    def _run(
        self,
        layer: nn.Module,
        x: Tensor,
        own: SelfView,
        image: Looking | None,
        only: Tensor | None = None,
    ) -> Tensor:
        if self.config.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(layer, x, own, image, only, use_reentrant=False)  # type: ignore[no-any-return]
        return layer(x, own, image, only)  # type: ignore[no-any-return]


def remember(
    crosses: Sequence[CrossAttention],
    images: Tensor,
    config: TextConfig,
    *,
    queries: float,
    dropout: float,
) -> ImageMemory:
    """What layers see of image states [N, T, Dv]; see `TextTransformer.remember`."""
    if is_less_work(queries, images, config.width, config.heads):
        absorbed = [cross.absorbed for cross in crosses]
        if None not in absorbed:
            return StateMemory.of(images, absorbed)  # type: ignore[arg-type]
    keys, values = [], []
    for cross in crosses:
        key, value = cross.key_value(images).chunk(2, dim=-1)
        # Contiguous per head: every later product reads it as it lies.
        keys.append(heads(key, config.heads).contiguous())
        values.append(heads(value, config.heads).contiguous())
    return KeyValueMemory(tuple(keys), tuple(values), dropout)


def _drop(x: Tensor, dropout: float) -> Tensor:
    return F.dropout(x, dropout) if dropout else x


class LanguageHead(nn.Module):
    """Scores every token of the vocabulary; the output weights are the word embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = LinearGelu(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        """[P, D] -> [P, D], to be multiplied with the word embeddings."""
        return self.norm(self.dense(x))  # type: ignore[no-any-return]
