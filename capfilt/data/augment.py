"""From an image's pixels to those that training sees: a random crop, a flip, RandAugment.

Source: BLIP, arXiv:2201.12086, section 4.1, and its code (`data/__init__.py`); the crop is
torchvision's `RandomResizedCrop`.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from capfilt.data.config import AugmentConfig
from capfilt.data.randaugment import randaugment
from capfilt.models.images import RGB, PixelSpec, fit

_MOST_RATIO = 4 / 3  # of a crop's sides, either way
_ATTEMPTS = 10


class Box(NamedTuple):
    """Part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def augment(rgb: RGB, draws: random.Random, config: AugmentConfig, size: int) -> Tensor:
    """The pixels that a model sees in training.

    Args:
        rgb: uint8 [H, W, 3].
        draws: Where the random numbers come from.
        config: What is done.
        size: Side of the square, in pixels.

    Returns:
        uint8 [3, size, size] in [0, 255].
    """
    if not config.enabled:
        return fit(rgb, PixelSpec(size))
    top, left, height, width = random_box(rgb.shape[0], rgb.shape[1], config.min_scale, draws)
    square = fit(rgb[top : top + height, left : left + width], PixelSpec(size))
    if config.flip and draws.random() < 0.5:
        square = square.flip(-1)
    if not config.operations:
        return square
    pixels = square.permute(1, 2, 0).contiguous().numpy()
    varied = randaugment(pixels, draws, operations=config.operations, magnitude=config.magnitude)
    return square if varied is pixels else torch.tensor(varied).permute(2, 0, 1)


def random_box(height: int, width: int, min_scale: float, draws: random.Random) -> Box:
    """Where to crop: area uniform in [min_scale, 1], ratio of sides log-uniform in [3/4, 4/3].

    A long strip in which no such box fits gives the middle of it.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * draws.uniform(min_scale, 1)
        ratio = math.exp(draws.uniform(-math.log(_MOST_RATIO), math.log(_MOST_RATIO)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = draws.randint(0, height - box_height)
            left = draws.randint(0, width - box_width)
            return Box(top, left, box_height, box_width)
    box_width = min(width, round(height * _MOST_RATIO))
    box_height = min(height, round(width * _MOST_RATIO))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
