"""CLIP as a filter: similarity of image and text, as BLIP-2 ranks captions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.models.checkpoint import PixelStatistics
from capfilt.models.images import PixelSpec
from capfilt.record import ModelIdentity, Score


class ClipFilter:
    """transformers' `CLIPModel` on one device. Texts are taken raw, cut to the model's length.

    Source: BLIP-2, arXiv:2301.12597, section 3.4; CLIP, arXiv:2103.00020.
    """

    def __init__(
        self, model: Any, tokenizer: Any, statistics: PixelStatistics, identity: ModelIdentity
    ) -> None:
        """Hold a loaded model; `capfilt.models.load.load_filter` loads one."""
        self.model = model
        self.identity = identity
        self.pixels = PixelSpec(size=model.config.vision_config.image_size, crop=True)
        self._tokenizer = tokenizer
        # Padding and truncation are settings of the tokenizer: one thread at a time.
        self._lock = threading.Lock()
        self._mean, self._std = (
            torch.tensor(values, device=model.device).view(1, 3, 1, 1) * 255
            for values in (statistics.mean, statistics.std)
        )

    @torch.inference_mode()
    def score(self, pixels: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Score every text of every image; see `capfilt.models.filter.Filter`."""
        asked = [i for i, of_image in enumerate(texts) if of_image]
        if not asked:
            return [[] for _ in texts]
        images = self._images(torch.stack([pixels[i] for i in asked]))
        counts = torch.tensor([len(texts[i]) for i in asked], device=images.device)
        flat = self._texts([text for of_image in texts for text in of_image])
        cosines = (images.repeat_interleave(counts, dim=0) * flat).sum(-1).clamp(-1, 1)
        scores = iter([Score(similarity=cosine) for cosine in cosines.tolist()])
        return [[next(scores) for _ in of_image] for of_image in texts]

    def _images(self, pixels: Tensor) -> Tensor:  # uint8 [N, 3, S, S] -> [N, E] of length 1
        normal = (pixels.to(self.model.device).float() - self._mean) / self._std
        output = self.model.vision_model(pixel_values=normal.to(self.model.dtype))
        return F.normalize(self.model.visual_projection(output.pooler_output).float(), dim=-1)

    def _texts(self, texts: list[str]) -> Tensor:  # B texts -> [B, E] of length 1
        with self._lock:
            encoded = self._tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
        encoded = encoded.to(self.model.device)
        output = self.model.text_model(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask
        )
        return F.normalize(self.model.text_projection(output.pooler_output).float(), dim=-1)
