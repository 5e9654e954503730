"""MED, the multimodal mixture of encoder-decoder: BLIP's two finetuned halves.

    CaptionModel   ViT -> text transformer as image-grounded decoder -> language head
    MatchModel     ViT -> text transformer as encoder -> ITM head, ITC projections

`SimilarityModel` is a third thing under the name of BLIP: transformers' `BlipModel`, ITC alone.

Names of parameters are ours; `capfilt.models.med_layout` maps them to checkpoints'.

Shapes: N images, S side, T image tokens, B texts, P packed tokens, D width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.models.attention import Grid
from capfilt.models.linear import PackedLinear, can_pack
from capfilt.models.memory import ImageMemory
from capfilt.models.text_transformer import LanguageHead, Looking, TextConfig, TextTransformer
from capfilt.models.transfer import tensor_on
from capfilt.models.vit import ViT, VitConfig


@dataclass(frozen=True)
class MedConfig:
    """Sizes of both towers, and of the space they meet in for ITC."""

    image: VitConfig
    text: TextConfig
    embedding: int = 256


class CaptionModel(nn.Module):
    """What writes captions; `capfilt.models.generation` drives it."""

    def __init__(self, config: MedConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.image)
        self.text = TextTransformer(config.text)
        self.head = LanguageHead(config.text)
        self._scores: PackedLinear | None = None  # the tied weights as `pack` leaves them

    def logits(self, states: Tensor) -> Tensor:
        """[P, D] -> [P, V], fp32."""
        states = self.head(states)
        if self._scores is not None:
            return self._scores(states).float()  # type: ignore[no-any-return]
        return F.linear(states, self.text.words.weight, self.head.bias).float()

    def pack(self) -> None:
        """For `prepare_for_inference`: the word embeddings are also the head's matrix."""
        if can_pack(self.text.words.weight):
            self._scores = PackedLinear(self.text.words.weight, self.head.bias)


class MatchModel(nn.Module):
    """What judges whether a text matches an image."""

    def __init__(self, config: MedConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.image)
        self.text = TextTransformer(config.text)
        self.image_projection = nn.Linear(config.image.width, config.embedding)
        self.text_projection = nn.Linear(config.text.width, config.embedding)
        self.itm_head = nn.Linear(config.text.width, 2)

    def match_logits(self, texts: PackedTexts, memory: ImageMemory) -> Tensor:
        """ITM logits (unmatched, matched) of texts and their images.

        Args:
            texts: B texts, ordered by image, `[ENC]` first.
            memory: Of the images, from `text.remember`.

        Returns:
            [B, 2], fp32.
        """
        device = texts.ids.device
        own = self.text.packed(texts.grid)
        looking = Looking(memory, Grid.of(texts.tokens_per_image, device))
        first = Looking(memory, Grid.of(texts.texts_per_image, device))
        states = self.text.first_tokens(
            texts.ids, texts.positions, own, looking, first, texts.first
        )
        return self.itm_head(states).float()  # type: ignore[no-any-return]

    def text_embeddings(self, texts: PackedTexts) -> Tensor:
        """ITC embeddings [B, E] of length 1, fp32, of texts with `[CLS]` first."""
        own = self.text.packed(texts.grid)
        states = self.text.first_tokens(texts.ids, texts.positions, own, first=texts.first)
        return F.normalize(self.text_projection(states).float(), dim=-1)

    def image_embeddings(self, states: Tensor) -> Tensor:
        """ITC embeddings [N, E] of length 1, fp32, from image states [N, T, Dv]."""
        return F.normalize(self.image_projection(states[:, 0]).float(), dim=-1)


class SimilarityModel(nn.Module):
    """What tells how alike text and image are, as transformers' `BlipModel` does.

    It differs from BLIP's ITC: the class token is normalised twice, the text has a pooler, and the
    projections have no bias.
    """

    def __init__(self, config: MedConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.image)
        self.text = TextTransformer(config.text)
        self.pooler = nn.Linear(config.text.width, config.text.width)
        self.image_projection = nn.Linear(config.image.width, config.embedding, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.embedding, bias=False)

    def text_embeddings(self, texts: PackedTexts) -> Tensor:
        """As `MatchModel.text_embeddings`."""
        own = self.text.packed(texts.grid)
        states = self.text.first_tokens(texts.ids, texts.positions, own, first=texts.first)
        states = self.pooler(states).tanh()
        return F.normalize(self.text_projection(states).float(), dim=-1)

    def image_embeddings(self, states: Tensor) -> Tensor:
        """As `MatchModel.image_embeddings`."""
        return F.normalize(self.image_projection(self.vit.norm(states[:, 0])).float(), dim=-1)


@dataclass(frozen=True)
class PackedTexts:
    """Texts one after the other without padding, ordered by their image."""

    ids: Tensor  # [P]
    positions: Tensor  # [P], of each token in its text
    first: Tensor  # [B], row of each text's first token
    grid: Grid  # one row per text
    tokens_per_image: Sequence[int]
    texts_per_image: Sequence[int]

    @classmethod
    def of(cls, texts: Sequence[Sequence[Sequence[int]]], device: torch.device) -> PackedTexts:
        """Pack the token ids of every text of every image."""
        flat = [ids for of_image in texts for ids in of_image]
        ends = list(accumulate(map(len, flat)))
        return cls(
            ids=tensor_on([i for ids in flat for i in ids], device),
            positions=tensor_on([p for ids in flat for p in range(len(ids))], device),
            first=tensor_on([end - len(ids) for end, ids in zip(ends, flat, strict=True)], device),
            grid=Grid.of([len(ids) for ids in flat], device),
            tokens_per_image=[sum(map(len, of_image)) for of_image in texts],
            texts_per_image=[len(of_image) for of_image in texts],
        )
