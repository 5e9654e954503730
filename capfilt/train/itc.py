"""ITC: image-text contrastive learning with a momentum encoder, queues and soft targets.

Every image is compared with the texts of all ranks and those of the queue as the momentum encoder
sees them, and every text with the images. A pair is positive when its images are the same or its
texts are: several captions of one image, one text under several images, and what of either is
still in the queue. With ids that are all different this is the paper's diagonal.

Shapes: N pairs of this rank, M of all ranks, Q in the queue, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capfilt.errors import ConfigError
from capfilt.train.gather import gather

COLDEST, WARMEST = 0.001, 0.5  # temperatures
_NEVER = -1e4  # as a similarity over the temperature, which is at most 1000 otherwise


@dataclass(frozen=True)
class ItcConfig:
    """Source: BLIP, arXiv:2201.12086, sections 3.2 and 4.1; its code, `configs/pretrain.yaml`."""

    queue: int = 57600  # pairs kept; a multiple of the images of a step on all ranks
    momentum: float = 0.995
    alpha: float = 0.4  # weight of the soft targets
    ramp_steps: int = 0  # over which alpha grows from 0; the paper's 2 epochs when pre-training
    # At the start; learned, clamped to [0.001, 0.5]. 0: as the checkpoint to start from has it.
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.queue < 0:
            raise ValueError(f"queue must be 0 (none) or more, is {self.queue}")
        if self.ramp_steps < 0:
            told = f"must be 0 (the published ramp) or more, is {self.ramp_steps}"
            raise ValueError(f"ramp_steps {told}")
        for name, low, high in (
            ("momentum", 0.0, 1.0),
            ("alpha", 0.0, 1.0),
            ("temperature", COLDEST if self.temperature else 0.0, WARMEST),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], is {getattr(self, name)}")

    def alpha_at(self, step: int) -> float:
        """Weight of the soft targets at a step."""
        return self.alpha * min(1.0, step / self.ramp_steps) if self.ramp_steps else self.alpha

    def check_batch(self, images: int) -> None:
        """Refuse a step of so many images on all ranks.

        Raises:
            ConfigError: The queue is no multiple of it.
        """
        if self.queue % images:
            raise ConfigError(
                f"itc.queue is {self.queue}, no multiple of the {images} images of a step on all "
                f"ranks: take {max(1, round(self.queue / images)) * images}"
            )


@dataclass(frozen=True)
class Pairs:
    """Embeddings of images and their texts, and which are the same."""

    image: Tensor  # [N, E], fp32, of length 1
    text: Tensor  # [N, E], fp32, of length 1
    image_ids: Tensor  # [N]
    text_ids: Tensor  # [N]

    def gathered(self) -> Pairs:
        """Of all ranks, without gradient."""
        return Pairs(*map(gather, (self.image, self.text, self.image_ids, self.text_ids)))

    def joined(self, other: Pairs) -> Pairs:
        return Pairs(
            torch.cat([self.image, other.image]),
            torch.cat([self.text, other.text]),
            torch.cat([self.image_ids, other.image_ids]),
            torch.cat([self.text_ids, other.text_ids]),
        )

    def same(self, other: Pairs) -> Tensor:
        """Whether an image or a text of two pairs is the same, [N, other's N]."""
        images = self.image_ids[:, None] == other.image_ids
        return images | (self.text_ids[:, None] == other.text_ids)


@dataclass(frozen=True)
class Contrast:
    """What ITC leaves: its loss, and what ITM draws negatives by."""

    loss: Tensor
    image_to_text: Tensor  # [N, M], similarities over the temperature, without gradient
    text_to_image: Tensor  # [N, M]
    same: Tensor  # [N, M], positives


class Queue(nn.Module):
    """The last pairs of all ranks as the momentum encoder saw them."""

    def __init__(self, size: int, embedding: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("image", torch.zeros(size, embedding))
        self.register_buffer("text", torch.zeros(size, embedding))
        self.register_buffer("image_ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("text_ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # since the start

    @property
    def pairs(self) -> Pairs:
        return Pairs(*(self.get_buffer(n) for n in ("image", "text", "image_ids", "text_ids")))

    def empty(self) -> Tensor:
        """True where no pair has come yet, [Q]."""
        seen = self.get_buffer("seen")
        return torch.arange(self.size, device=seen.device) >= seen

    @torch.no_grad()
    def put(self, pairs: Pairs) -> None:
        """Replace the oldest pairs by as many new ones."""
        if not self.size:
            return
        seen = self.get_buffer("seen")
        rows = (seen + torch.arange(len(pairs.image), device=seen.device)) % self.size
        for name in ("image", "text", "image_ids", "text_ids"):
            self.get_buffer(name).index_copy_(0, rows, getattr(pairs, name))
        seen += len(rows)


class Itc(nn.Module):
    """The loss, its learned temperature and its queue.

    Source: BLIP, arXiv:2201.12086, section 3.2; arXiv:2107.07651 (ALBEF), sections 3.2 and 3.3.
    """

    def __init__(self, config: ItcConfig, embedding: int) -> None:
        super().__init__()
        self.config = config
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.queue = Queue(config.queue, embedding)

    def forward(self, own: Pairs, teacher: Pairs, alpha: float) -> Contrast:
        """Compare this rank's pairs with everyone's and the queue's; then these enter the queue.

        Args:
            own: As the model sees this rank's pairs.
            teacher: As the momentum encoder sees them.
            alpha: Weight of the soft targets.

        Raises:
            ConfigError: The queue is no multiple of the pairs of all ranks.
        """
        with torch.autocast(own.image.device.type, enabled=False):
            return self._compare(own, teacher, alpha)

    def _compare(self, own: Pairs, teacher: Pairs, alpha: float) -> Contrast:
        everyone = teacher.gathered()
        self.config.check_batch(len(everyone.image))
        known = everyone.joined(self.queue.pairs)
        with torch.no_grad():
            self.temperature.clamp_(COLDEST, WARMEST)
            empty = torch.cat([torch.zeros_like(everyone.image_ids).bool(), self.queue.empty()])
            positive = own.same(known) & ~empty
            hard = positive / positive.sum(1, keepdim=True)
        losses, similarities = [], []
        for mine, taught, theirs in (
            (own.image, teacher.image, known.text),
            (own.text, teacher.text, known.image),
        ):
            with torch.no_grad():
                soft = self._similarity(taught, theirs, empty).softmax(1)
                targets = alpha * soft + (1 - alpha) * hard
            similarity = self._similarity(mine, theirs, empty)
            losses.append(-(similarity.log_softmax(1) * targets).sum(1).mean())
            similarities.append(similarity.detach()[:, : len(everyone.image)])
        if self.training:
            self.queue.put(everyone)
        same = positive[:, : len(everyone.image)]
        return Contrast(torch.stack(losses).mean(), similarities[0], similarities[1], same)

    def _similarity(self, mine: Tensor, theirs: Tensor, empty: Tensor) -> Tensor:
        return (mine @ theirs.T / self.temperature).masked_fill(empty, _NEVER)
