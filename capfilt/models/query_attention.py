"""Self-attention of a Q-Former: which of an image's queries and a text's tokens see each other.

Rows look at columns:

                   UNIMODAL           CAUSAL             BIDIRECTIONAL
                queries  text      queries  text        queries  text
    queries       all     -          all     -            all     all
    text           -     all         all   earlier        all     all
                     ITC                ITG                  ITM

Under the first two no query sees text, so the queries of an image run once, whatever its texts:
`Tracing` leaves their keys and values for the causal texts of `AfterQueries`; a text that sees no
query needs no more than `Packed`. Under the third, each text has its own copy of the queries.

Source: BLIP-2, arXiv:2301.12597, figure 2.

Shapes: N images, Q queries, B texts, L tokens of the longest, P packed tokens, D width, H heads,
Dh = D / H.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from capfilt.models.attention import Grid, attend, heads, merge_heads
from capfilt.models.med import PackedTexts
from capfilt.models.transfer import tensor_on


class Mask(Enum):
    """Which of queries and text see each other."""

    UNIMODAL = "unimodal"
    CAUSAL = "causal"  # multimodal: text sees the queries, and itself up to each token
    BIDIRECTIONAL = "bidirectional"

    def visible(self, queries: int, tokens: int) -> Tensor:
        """True where a row may look at a column, [Q + L, Q + L], queries first."""
        seen = torch.ones(queries + tokens, queries + tokens, dtype=torch.bool)
        if self is not Mask.BIDIRECTIONAL:
            seen[:queries, queries:] = False
        if self is Mask.UNIMODAL:
            seen[queries:, :queries] = False
        if self is Mask.CAUSAL:
            seen[queries:, queries:].tril_()
        return seen


@dataclass(frozen=True)
class Trace:
    """Keys and values that queries have in every layer, for texts that look at them."""

    keys: list[Tensor]  # per layer [N, H, Q, Dh]
    values: list[Tensor]


class Tracing:
    """Self-attention of queries alone, which leaves its keys and values in a `Trace`."""

    def __init__(self, images: int, head_count: int, dropout: float) -> None:
        self.trace = Trace([], [])
        self._images, self._heads, self._dropout = images, head_count, dropout

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N * Q, D] each -> [N * Q, D]."""
        q, k, v = (
            heads(x.view(self._images, -1, x.shape[-1]), self._heads) for x in (query, key, value)
        )
        if layer == len(self.trace.keys):  # a recomputed layer comes twice
            self.trace.keys.append(k)
            self.trace.values.append(v)
        return merge_heads(attend(q, k, v, dropout=self._dropout)).flatten(0, 1)


class AfterQueries:
    """Causal self-attention of texts that also look at the queries of their images."""

    def __init__(self, texts: PackedTexts, trace: Trace, head_count: int, dropout: float) -> None:
        self._grid, self._trace = texts.grid, trace
        self._heads, self._dropout = head_count, dropout
        device = texts.ids.device
        owners = [i for i, count in enumerate(texts.texts_per_image) for _ in range(count)]
        images, _, queries, _ = trace.keys[0].shape
        self._owners = None if owners == list(range(images)) else tensor_on(owners, device)
        visible = Mask.CAUSAL.visible(queries, self._grid.width)
        self._mask = visible[queries:].to(device)  # [L, Q + L]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[P, D] each -> [P, D]."""
        q, k, v = (heads(self._grid.spread(x), self._heads) for x in (query, key, value))
        seen_keys, seen_values = self._trace.keys[layer], self._trace.values[layer]
        if self._owners is not None:
            seen_keys, seen_values = seen_keys[self._owners], seen_values[self._owners]
        k, v = torch.cat([seen_keys, k], dim=2), torch.cat([seen_values, v], dim=2)
        # A row's padding stands at its end, where no token looks.
        context = attend(q, k, v, self._mask, dropout=self._dropout)
        return self._grid.gather(merge_heads(context))


class Paired:
    """Self-attention of each text and its own copy of the queries, under a mask."""

    def __init__(
        self, texts: PackedTexts, mask: Mask, queries: int, head_count: int, dropout: float
    ) -> None:
        lengths, device = texts.grid.counts, texts.ids.device
        pairs, longest = len(lengths), texts.grid.width
        width = queries + longest
        # Row i of the rectangle is pair i: its queries, its text, padding.
        rows = torch.arange(pairs, device=device)[:, None] * width
        of_queries = (rows + torch.arange(queries, device=device)).flatten()
        tokens = texts.grid.cells
        if tokens is None:
            tokens = torch.arange(pairs * longest, device=device)
        of_tokens = tokens // longest * width + queries + tokens % longest
        counts = [queries + n for n in lengths]
        self._grid = Grid(pairs, width, torch.cat([of_queries, of_tokens]), counts)
        filled = self._grid.filled()
        assert filled is not None
        visible = mask.visible(queries, longest).to(device)
        self._mask = (visible & filled[:, None, :])[:, None]  # [B, 1, Q + L, Q + L]
        self._heads, self._dropout = head_count, dropout

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B * Q + P, D] each -> [B * Q + P, D]."""
        q, k, v = (heads(self._grid.spread(x), self._heads) for x in (query, key, value))
        context = attend(q, k, v, self._mask, dropout=self._dropout)
        return self._grid.gather(merge_heads(context))
