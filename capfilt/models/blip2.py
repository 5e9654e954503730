"""BLIP-2's two uses of the Q-Former over a frozen image encoder.

    QueryMatchModel   ViT -> Q-Former with text -> ITM head, ITC projections      (stage 1)
    PromptModel       ViT -> Q-Former -> projection to a language model's width   (stage 2)

The image encoder is our `ViT`: EVA-CLIP's, less its last block, has the same parts in transformers'
`Blip2VisionModel`, which takes 2.2 times as long for ViT-g's blocks on one Zen 5 core.

Names of parameters are ours; `capfilt.models.qformer_layout` maps them to checkpoints'.

Shapes: N images, S side, T image tokens, Dv image width, Q queries, B texts, D width, E embedding
width, W the language model's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.models.med import PackedTexts
from capfilt.models.memory import ImageMemory
from capfilt.models.qformer import QFormer, QFormerConfig
from capfilt.models.vit import ViT, VitConfig


@dataclass(frozen=True)
class QueryConfig:
    """Sizes of the image encoder and the Q-Former, and of what follows them."""

    image: VitConfig
    qformer: QFormerConfig
    embedding: int = 256  # E, for ITC
    language_width: int = 2560  # W


class QueryMatchModel(nn.Module):
    """What judges whether a text matches an image: transformers' `Blip2ForImageTextRetrieval`."""

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.image)
        self.qformer = QFormer(config.qformer)
        self.image_projection = nn.Linear(config.qformer.width, config.embedding)
        self.text_projection = nn.Linear(config.qformer.width, config.embedding)
        self.itm_head = nn.Linear(config.qformer.width, 2)

    def match_logits(self, texts: PackedTexts, memory: ImageMemory) -> Tensor:
        """ITM logits (unmatched, matched) of texts and their images: the mean over queries.

        Args:
            texts: B texts, ordered by image, `[CLS]` first.
            memory: Of the images, from `qformer.remember`.

        Returns:
            [B, 2], fp32.
        """
        states = self.qformer.read_queries(texts, memory)
        return self.itm_head(states).float().mean(1)  # type: ignore[no-any-return]

    def text_embeddings(self, texts: PackedTexts) -> Tensor:
        """ITC embeddings [B, E] of length 1, fp32, of texts with `[CLS]` first."""
        states = self.qformer.read_text(texts)
        return F.normalize(self.text_projection(states).float(), dim=-1)

    def image_embeddings(self, images: int, memory: ImageMemory) -> Tensor:
        """ITC embeddings [N, Q, E] of length 1, fp32, one per query."""
        states, _ = self.qformer.read(images, memory)
        return F.normalize(self.image_projection(states).float(), dim=-1)


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """ITC: the cosine of a text and the query that is most like it.

    Source: BLIP-2, arXiv:2301.12597, section 3.1.

    Args:
        images: [B, Q, E], each text's image, of length 1.
        texts: [B, E], of length 1.

    Returns:
        [B], in [-1, 1].
    """
    return (images @ texts[:, :, None]).squeeze(-1).amax(1).clamp(-1, 1)


class PromptModel(nn.Module):
    """What an image is to a language model: transformers' `Blip2ForConditionalGeneration`.

    Or, where the Q-Former reads text, its `InstructBlipForConditionalGeneration`, in which the
    queries read the language model's prompt beside the image.

    Source: BLIP-2, arXiv:2301.12597, section 3.2; InstructBLIP, arXiv:2305.06500, section 2.3.
    """

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.image)
        self.qformer = QFormer(config.qformer)
        self.projection = nn.Linear(config.qformer.width, config.language_width)

    def forward(self, pixels: Tensor, texts: PackedTexts | None = None) -> Tensor:
        """Soft visual prompts [B, Q, W] of images, uint8 [N, 3, S, S].

        Args:
            pixels: Of the images.
            texts: What the queries read beside them: B texts, ordered by image, `[CLS]` first.
                None where the Q-Former reads no text; B is N then.
        """
        return self.prompts(self.vit(pixels), texts)

    def prompts(self, states: Tensor, texts: PackedTexts | None = None) -> Tensor:
        """As `forward`, from image states [N, T, Dv]."""
        if texts is None:
            memory = self.qformer.remember(states, queries=self.config.qformer.queries)
            queries, _ = self.qformer.read(len(states), memory)
        else:
            share = len(texts.first) / len(states)
            memory = self.qformer.remember(states, queries=share * self.config.qformer.queries)
            queries = self.qformer.read_queries(texts, memory)
        return self.projection(queries)  # type: ignore[no-any-return]
