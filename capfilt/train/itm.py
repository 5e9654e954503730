"""ITM: image-text matching with hard negatives.

Every pair makes three: itself, its text with the image drawn for it, and its image with the text
drawn for it; a pair that drew nothing makes none. All that look at one image stand in one row of
the grid of cross-attention, so that its keys and values need not be copied. Only where an image was
drawn so often that most of the grid would be empty does it get more rows.

Shapes: N pairs of this rank, M of all ranks, B pairs of ITM, R images of other ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.models.blip2 import QueryMatchModel
from capfilt.models.med import MatchModel, PackedTexts
from capfilt.models.memory import ImageMemory
from capfilt.models.transfer import tensor_on
from capfilt.train.gather import mean_over_ranks
from capfilt.train.negatives import Negatives

# An image's tokens over the mean of all images, from which on it gets more rows.
_UNEVEN = 4


@dataclass(frozen=True)
class ItmConfig:
    """Source: BLIP, arXiv:2201.12086, section 3.2; its code, `blip_retrieval.py`."""

    negatives: Literal["own_rank", "all_ranks"] = "own_rank"

    def check_batch(self, images: int, world: int) -> None:
        """Refuse a batch without negatives.

        Args:
            images: Of one forward pass on one rank.
            world: How many ranks there are.

        Raises:
            ConfigError: There are none.
        """
        if images * (world if self.negatives == "all_ranks" else 1) < 2:
            raise ConfigError(
                "a batch of 1 image has no negatives for ITM: raise the batch size"
                + (", or set itm.negatives to all_ranks" if world > 1 else "")
            )


@dataclass(frozen=True)
class Matching:
    """Pairs of ITM, image by image: this rank's images, then those of other ranks."""

    texts: list[list[list[int]]]  # per image, without a first token
    matched: list[int]  # per text, 1 or 0, in the same order
    others: list[int]  # rows of the joint batch that are other ranks' images

    @classmethod
    def of(cls, negatives: Negatives, texts: Sequence[list[int]], *, first: int = 0) -> Matching:
        """Put together what was drawn.

        Args:
            negatives: The draws of this rank.
            texts: That they are rows of.
            first: This rank's first row there.
        """
        own = range(first, first + len(negatives.texts))
        others = sorted({row for row in negatives.images if row >= 0 and row not in own})
        places = {row: place for place, row in enumerate([*own, *others])}
        pairs: list[list[tuple[list[int], int]]] = [[] for _ in places]
        drawn = zip(own, negatives.texts, negatives.images, strict=True)
        for row, text, image in drawn:
            if text >= 0:
                pairs[places[row]] += [(texts[row], 1), (texts[text], 0)]
                pairs[places[image]].append((texts[row], 0))
        return cls(
            [[text for text, _ in of_image] for of_image in pairs],
            [matched for of_image in pairs for _, matched in of_image],
            others,
        )


def itm_loss(
    model: MatchModel | QueryMatchModel, memory: ImageMemory, matching: Matching, first: int
) -> Tensor:
    """Cross-entropy of the ITM head, this rank's share of the mean over all ranks' pairs.

    Source: BLIP, arXiv:2201.12086, section 3.2; BLIP-2, arXiv:2301.12597, section 3.1.

    Args:
        model: The image-grounded encoder.
        memory: Of the images of `matching`, in their order.
        matching: What is matched.
        first: The first token of a text: `[ENC]`, or BLIP-2's `[CLS]`.
    """
    texts, matched = matching.texts, matching.matched
    if not matched:  # no negatives here but on another rank: every weight still gets a gradient
        texts = [[[]], *texts[1:]]
    rows, images = evened([[[first, *ids] for ids in of_image] for of_image in texts])
    if len(images) > len(texts):
        memory = memory.select(images)
    packed = PackedTexts.of(rows, model.vit.class_token.device)
    logits = model.match_logits(packed, memory)
    if not matched:
        return mean_over_ranks(logits.sum() * 0, 0)
    target = tensor_on(matched, logits.device)
    return mean_over_ranks(F.cross_entropy(logits, target, reduction="sum"), len(matched))


def evened(texts: list[list[list[int]]]) -> tuple[list[list[list[int]]], list[int]]:
    """Split the texts of images that have far more tokens than most, in their order.

    Args:
        texts: Per image.

    Returns:
        Texts per row, and the image of each row; one row per image where none has far more.
    """
    room = _UNEVEN * sum(len(ids) for of_image in texts for ids in of_image) / len(texts)
    rows: list[list[list[int]]] = []
    images: list[int] = []
    for image, of_image in enumerate(texts):
        rows.append([])
        images.append(image)
        for ids in of_image:
            if rows[-1] and sum(map(len, rows[-1])) + len(ids) > room:
                rows.append([])
                images.append(image)
            rows[-1].append(ids)
    return rows, images
