"""The momentum encoder: a slow copy of what makes ITC embeddings; it teaches and is not taught."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import nn

from capfilt.models.med import MatchModel


class MomentumEncoder(nn.Module):
    """An average of a `MatchModel`'s weights over its past: its ViT, text encoder and projections.

    It never drops anything, so that one image always has one target.

    Source: BLIP, arXiv:2201.12086, section 3.2; arXiv:2107.07651 (ALBEF), section 3.2.
    """

    def __init__(self, source: MatchModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(source)
        del self.model.itm_head
        for layer in self.model.text.layers:
            del layer.cross  # ITC's texts look at no image
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever the model around it does."""
        return super().train(False)

    @torch.no_grad()
    def update(self, source: MatchModel, momentum: float) -> None:
        """Move every weight towards the source's: w = momentum * w + (1 - momentum) * source."""
        theirs = dict(source.named_parameters())
        names, ours = zip(*self.model.named_parameters(), strict=True)
        torch._foreach_lerp_(list(ours), [theirs[name] for name in names], 1 - momentum)
