"""ITC: image-text contrastive learning with a momentum encoder, queues and soft targets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ItcConfig:
    """Source: BLIP, arXiv:2201.12086, sections 3.2 and 4.1; its code, `configs/pretrain.yaml`."""

    queue: int = 57600  # embeddings kept; a multiple of the images of a step on all ranks
    momentum: float = 0.995
    alpha: float = 0.4  # weight of the soft targets
    ramp_steps: int = 0  # over which alpha grows from 0; the paper's 2 epochs when pre-training
    temperature: float = 0.07  # at the start; learned, clamped to [0.001, 0.5]
