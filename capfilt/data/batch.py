"""A training batch: what the loader gives and the objectives take.

N images of one rank, S pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images, their texts as tokens, and who is who.

    A text's ids have no special first token, which the objective sets ([CLS], [ENC], or [DEC] and
    the prompt), and end with [SEP].
    """

    images: Tensor  # uint8 [N, 3, S, S], RGB, augmented; normalised in the image encoder
    texts: list[list[int]]  # N texts, each its tokens and [SEP]
    keys: list[str]  # "<dataset>/<shard id>/<key>", for messages
    image_ids: Tensor  # int64 [N], equal for the same image
    text_ids: Tensor  # int64 [N], equal for equal normalised texts

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on a device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            image_ids=self.image_ids.to(device, non_blocking=non_blocking),
            text_ids=self.text_ids.to(device, non_blocking=non_blocking),
        )
