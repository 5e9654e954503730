"""Rows of token ids under decoding: what every way of choosing the next token works on.

Shapes: A active rows (ordered by image), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.models.transfer import tensor_on


class Rows(Protocol):
    """Rows of one batch under decoding, whatever model decodes."""

    logits: Tensor  # [A, V], of each row's next token

    def advance(self, ids: Tensor) -> None:
        """Append one token [A] to every row."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, ordered by image; a row may come more than once."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let rows [A] change places with others of their image; a row may come more than once."""
        ...


def adjust(scores: Tensor, ids: Tensor, end: int, config: CaptionConfig) -> Tensor:
    """Apply repetition penalty and minimal length to scores [A, V] of rows ids [A, length].

    Source: transformers' RepetitionPenaltyLogitsProcessor and MinLengthLogitsProcessor.
    """
    penalty = config.repetition_penalty
    if penalty is not None and penalty != 1.0:
        seen = scores.gather(1, ids)
        scores = scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))
    if ids.shape[1] < config.min_length:
        scores = scores.clone()
        scores[:, end] = -math.inf
    return scores


def pick(x: Tensor, rows: list[int]) -> Tensor:
    """These rows of x [A, ...]."""
    return x.index_select(0, tensor_on(rows, x.device))


def until(ids: list[int], end: int) -> list[int]:
    """What comes before the first `end`."""
    return ids[: ids.index(end)] if end in ids else ids
