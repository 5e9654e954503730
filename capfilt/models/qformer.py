"""The Q-Former of BLIP-2: learned queries that read an image, beside a text, in one transformer.

Queries and text share self-attention (`capfilt.models.query_attention`) and have feed-forwards of
their own; queries alone look at the image, in every other layer. Four ways through it:

    read          queries read images, without text          stage 2; ITC's image side
    read_text     texts that see no query                     ITC's text side
    read_after    causal texts that see what `read` left       ITG
    read_pairs    each text with its own queries of its image  ITM

Shapes: N images, T image tokens, Dv image width, Q queries, B texts, P packed tokens, D width,
R rows: queries first, then tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capfilt.models.attention import Grid, Packed
from capfilt.models.med import PackedTexts
from capfilt.models.memory import ImageMemory
from capfilt.models.query_attention import AfterQueries, Mask, Paired, Trace, Tracing
from capfilt.models.text_transformer import (
    CrossAttention,
    FeedForward,
    Looking,
    SelfAttention,
    SelfView,
    TextConfig,
    remember,
)


@dataclass(frozen=True)
class QFormerConfig(TextConfig):
    """Sizes of a Q-Former: those of a text transformer, and its queries.

    Source: BLIP-2, arXiv:2301.12597, section 3.1 (BERT-base, 32 queries, EVA ViT-g's width).
    """

    vocabulary: int = 30523  # BERT's and `[DEC]`
    image_width: int = 1408
    queries: int = 32
    cross_every: int = 2  # cross-attention in layers 0, 2, 4...
    reads_text: bool = True  # without it there are no words, and no feed-forwards for them


class Layer(nn.Module):
    """Self-attention, queries' cross-attention, feed-forwards; each normalised after the sum."""

    def __init__(self, config: QFormerConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.cross_index = index // config.cross_every  # among the layers with cross-attention
        self.dropout = config.dropout
        self.attention = SelfAttention(config)
        self.cross = None if index % config.cross_every else CrossAttention(config)
        self.query_ffn = FeedForward(config)
        self.text_ffn = FeedForward(config) if config.reads_text else None

    def forward(
        self,
        x: Tensor,
        queries: int,
        own: SelfView,
        image: Looking | None,
        only: slice | Tensor | None = None,
    ) -> Tensor:
        """Rows [R, D], of which the first `queries` are queries -> [R, D].

        With `only`, the result has those rows alone: all queries, or rows of a text without them.
        """
        mine, dropout = self.attention, self.dropout if self.training else 0.0
        context = own.attend(self.index, *mine.qkv(x).chunk(3, dim=-1))
        if only is not None:
            x, context = x[only], context[only]
        x = mine.norm(_drop(mine.out(context), dropout) + x)
        query, text = x[:queries], x[queries:]
        if image is not None and self.cross is not None:
            cross = self.cross
            context = image.memory.attend(self.cross_index, cross.query(query), image.grid)
            query = cross.norm(_drop(cross.out(context), dropout) + query)
        if not len(text):
            return self.query_ffn(query, dropout)  # type: ignore[no-any-return]
        assert self.text_ffn is not None
        text = self.text_ffn(text, dropout)
        return torch.cat([self.query_ffn(query, dropout), text]) if queries else text


class QFormer(nn.Module):
    """Learned queries and a text transformer in one.

    Source: BLIP-2, arXiv:2301.12597, section 3.1 and figure 2.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        # From alike queries alike gradients would follow.
        start = torch.empty(1, config.queries, config.width).normal_(std=0.02)
        self.queries = nn.Parameter(start)
        if config.reads_text:
            self.words = nn.Embedding(config.vocabulary, config.width)
            self.positions = nn.Embedding(config.max_tokens, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))

    def remember(self, images: Tensor, *, queries: float = math.inf) -> ImageMemory:
        """Make image states [N, T, Dv] ready for all cross-attention.

        Args:
            images: From the image encoder.
            queries: About how many queries will look at each image; decides how it is done.
        """
        crosses = [layer.cross for layer in self.layers if layer.cross is not None]
        return remember(crosses, images, self.config, queries=queries, dropout=self._dropout)  # type: ignore[arg-type]

    def read(self, images: int, memory: ImageMemory) -> tuple[Tensor, Trace]:
        """Let the queries read images, without any text.

        Args:
            images: N.
            memory: Of the images.

        Returns:
            Their states [N, Q, D], and what causal texts see of them.
        """
        own = Tracing(images, self.config.heads, self._dropout)
        rows = images * self.config.queries
        image = Looking(memory, self._query_grid([1] * images))
        x = self._run(self._embedded_queries(images), rows, own, image)
        return x.view(images, self.config.queries, -1), own.trace

    def read_text(self, texts: PackedTexts) -> Tensor:
        """First tokens' states [B, D] of texts that see no query: the unimodal encoder."""
        own = Packed(texts.grid, self.config.heads, dropout=self._dropout)
        return self._run(self._embedded(texts), 0, own, None, only=texts.first)

    def read_after(self, texts: PackedTexts, trace: Trace) -> Tensor:
        """Tokens' states [P, D] of causal texts that see the queries of their images."""
        own = AfterQueries(texts, trace, self.config.heads, self._dropout)
        return self._run(self._embedded(texts), 0, own, None)

    def read_pairs(
        self, texts: PackedTexts, memory: ImageMemory, mask: Mask = Mask.BIDIRECTIONAL
    ) -> tuple[Tensor, Tensor]:
        """Run each text together with queries that read its image.

        Args:
            texts: B texts, ordered by image.
            memory: Of the images.
            mask: Who sees whom.

        Returns:
            States of queries [B, Q, D] and of tokens [P, D].
        """
        pairs, rows, x = self._pairs(texts)
        own = Paired(texts, mask, self.config.queries, self.config.heads, self._dropout)
        x = self._run(x, rows, own, Looking(memory, self._query_grid(texts.texts_per_image)))
        return x[:rows].view(pairs, self.config.queries, -1), x[rows:]

    def read_queries(self, texts: PackedTexts, memory: ImageMemory) -> Tensor:
        """Queries' states [B, Q, D] of `read_pairs` alone, which saves some of the last layer."""
        pairs, rows, x = self._pairs(texts)
        own = Paired(
            texts, Mask.BIDIRECTIONAL, self.config.queries, self.config.heads, self._dropout
        )
        image = Looking(memory, self._query_grid(texts.texts_per_image))
        x = self._run(x, rows, own, image, only=slice(rows))
        return x.view(pairs, self.config.queries, -1)

    def _pairs(self, texts: PackedTexts) -> tuple[int, int, Tensor]:
        """B, B * Q, and the rows [B * Q + P, D] that layer 0 gets."""
        pairs = len(texts.first)
        x = torch.cat([self._embedded_queries(pairs), self._embedded(texts)])
        return pairs, pairs * self.config.queries, x

    def _query_grid(self, per_image: Sequence[int]) -> Grid:
        """Where queries look: row i holds those of image i's texts."""
        return Grid.of([count * self.config.queries for count in per_image], self.queries.device)

    def _embedded_queries(self, count: int) -> Tensor:  # [count * Q, D]
        x = self.norm(self.queries).expand(count, -1, -1)
        return _drop(x.flatten(0, 1), self._dropout)

    def _embedded(self, texts: PackedTexts) -> Tensor:  # [P, D]
        x = self.norm(self.words(texts.ids) + self.positions(texts.positions))
        return _drop(x, self._dropout)

    @property
    def _dropout(self) -> float:
        return self.config.dropout if self.training else 0.0

    def _run(
        self,
        x: Tensor,
        queries: int,
        own: SelfView,
        image: Looking | None,
        only: slice | Tensor | None = None,
    ) -> Tensor:
        recompute = self.config.recompute and self.training and torch.is_grad_enabled()
        *layers, last = self.layers
        for layer in layers:
            if recompute:
                x = checkpoint(layer, x, queries, own, image, use_reentrant=False)
            else:
                x = layer(x, queries, own, image)
        return last(x, queries, own, image, only)  # type: ignore[no-any-return]


def _drop(x: Tensor, dropout: float) -> Tensor:
    return F.dropout(x, dropout) if dropout else x
