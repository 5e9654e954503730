"""ITC of BLIP-2: a text against all of an image's queries, among the pairs of all ranks.

An image is as similar to a text as the most similar of its queries is. There is neither a momentum
encoder nor a queue: with a frozen image encoder a batch is large enough. A pair is positive when
its images are the same or its texts are, as in `capfilt.train.itc`.

Shapes: N pairs of this rank, M of all ranks, Q queries, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capfilt.train.gather import gather, gather_with_gradient
from capfilt.train.itc import COLDEST, WARMEST, Contrast


@dataclass(frozen=True)
class QueryItcConfig:
    """Source: BLIP-2, arXiv:2301.12597, section 3.1; its code, `blip2_qformer.py`."""

    temperature: float = 0.07  # at the start; learned, clamped to [0.001, 0.5]
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not COLDEST <= self.temperature <= WARMEST:
            raise ValueError(
                f"temperature must be in [{COLDEST}, {WARMEST}], is {self.temperature}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), is {self.label_smoothing}")


class QueryItc(nn.Module):
    """The loss and its learned temperature."""

    def __init__(self, config: QueryItcConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = nn.Parameter(torch.tensor(config.temperature))

    def forward(
        self, images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor
    ) -> Contrast:
        """Compare this rank's pairs with those of all ranks, both ways.

        Args:
            images: [N, Q, E], fp32, of length 1.
            texts: [N, E], fp32, of length 1.
            image_ids: [N], equal for the same image.
            text_ids: [N].
        """
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                self.temperature.clamp_(COLDEST, WARMEST)
                same = (image_ids[:, None] == gather(image_ids)) | (
                    text_ids[:, None] == gather(text_ids)
                )
                targets = self._targets(same)
            all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
            to_text = torch.einsum("nqe,me->nmq", images, all_texts).amax(-1) / self.temperature
            to_image = torch.einsum("ne,mqe->nmq", texts, all_images).amax(-1) / self.temperature
            losses = [-(x.log_softmax(1) * targets).sum(1).mean() for x in (to_text, to_image)]
            loss = torch.stack(losses).mean()
            return Contrast(loss, to_text.detach(), to_image.detach(), same)

    def _targets(self, same: Tensor) -> Tensor:
        """[N, M]: even over the positives, and a part of it even over all."""
        smoothing = self.config.label_smoothing
        hard = same / same.sum(1, keepdim=True)
        return (1 - smoothing) * hard + smoothing / same.shape[1]
