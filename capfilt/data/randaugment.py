"""RandAugment as in BLIP's code: some of ten operations drawn, each applied with probability 0.5.

Images are uint8 [S, S, 3] in [0, 255]. What moves pixels fills with grey (128). At BLIP's magnitude
of 5 the factor of Brightness and Sharpness is 1.0, which changes nothing.

Source: RandAugment, arXiv:1909.13719; the operations and magnitudes are those of BLIP's code
(`transform/randaugment.py`), whose results are those of Pillow's functions of the same names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

RGB = npt.NDArray[np.uint8]  # [S, S, 3]
Operation = Callable[[RGB, float, random.Random], RGB]

_GREY = (128, 128, 128)
_PROBABILITY = 0.5
_MOST_SHEAR = 0.3  # pixels per pixel
_MOST_SHIFT = 10.0  # pixels
_MOST_DEGREES = 30.0


def randaugment(pixels: RGB, draws: random.Random, *, operations: int, magnitude: int) -> RGB:
    """Apply `operations` operations, drawn with replacement, each with probability 0.5.

    Args:
        pixels: uint8 [S, S, 3].
        draws: Where the random numbers come from; how many are taken depends on nothing else.
        operations: How many are drawn.
        magnitude: Of 10.

    Returns:
        uint8 [S, S, 3], perhaps `pixels` itself.
    """
    for name in draws.choices(list(OPERATIONS), k=operations):
        if draws.random() < _PROBABILITY:
            pixels = OPERATIONS[name](pixels, magnitude / 10, draws)
    return pixels


def identity(pixels: RGB, _level: float, _draws: random.Random) -> RGB:
    """The same image."""
    return pixels


def autocontrast(pixels: RGB, _level: float, _draws: random.Random) -> RGB:
    """Stretch each channel to the whole range."""
    return np.asarray(ImageOps.autocontrast(Image.fromarray(pixels)))


def equalize(pixels: RGB, _level: float, _draws: random.Random) -> RGB:
    """Make each channel's histogram flat."""
    return np.asarray(ImageOps.equalize(Image.fromarray(pixels)))


def brightness(pixels: RGB, level: float, _draws: random.Random) -> RGB:
    """Multiply by a factor of 0.1 to 1.9."""
    factor = _factor(level)
    if factor == 1.0:
        return pixels
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(factor))


def sharpness(pixels: RGB, level: float, _draws: random.Random) -> RGB:
    """Between a smoothed image (factor 0) and a sharpened one (2)."""
    factor = _factor(level)
    if factor == 1.0:
        return pixels
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(pixels)).enhance(factor))


def shear_x(pixels: RGB, level: float, draws: random.Random) -> RGB:
    """Move each row sideways in proportion to its height."""
    return _affine(pixels, (1, -_signed(_MOST_SHEAR * level, draws), 0, 0, 1, 0))


def shear_y(pixels: RGB, level: float, draws: random.Random) -> RGB:
    """Move each column up or down in proportion to its place."""
    return _affine(pixels, (1, 0, 0, -_signed(_MOST_SHEAR * level, draws), 1, 0))


def translate_x(pixels: RGB, level: float, draws: random.Random) -> RGB:
    """Move sideways by whole pixels."""
    return _shift(pixels, round(_signed(_MOST_SHIFT * level, draws)), axis=1)


def translate_y(pixels: RGB, level: float, draws: random.Random) -> RGB:
    """Move up or down by whole pixels."""
    return _shift(pixels, round(_signed(_MOST_SHIFT * level, draws)), axis=0)


def rotate(pixels: RGB, level: float, draws: random.Random) -> RGB:
    """Turn about the centre."""
    degrees = _signed(_MOST_DEGREES * level, draws)
    turned = Image.fromarray(pixels).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_GREY)
    return np.asarray(turned)


OPERATIONS: Mapping[str, Operation] = {
    "Identity": identity,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}


def _factor(level: float) -> float:
    return level * 1.8 + 0.1


def _signed(value: float, draws: random.Random) -> float:
    return value if draws.random() < 0.5 else -value


def _affine(pixels: RGB, coefficients: tuple[float, ...]) -> RGB:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), between its neighbours."""
    image = Image.fromarray(pixels)
    moved = image.transform(
        image.size,
        Image.Transform.AFFINE,
        coefficients,
        Image.Resampling.BILINEAR,
        fillcolor=_GREY,
    )
    return np.asarray(moved)


def _shift(pixels: RGB, by: int, *, axis: int) -> RGB:
    """Move along an axis; positive is right or down."""
    moved = np.full_like(pixels, _GREY[0])
    size = pixels.shape[axis]
    if abs(by) >= size:
        return moved
    source = slice(max(-by, 0), size - max(by, 0))
    target = slice(max(by, 0), size - max(-by, 0))
    if axis == 0:
        moved[target] = pixels[source]
    else:
        moved[:, target] = pixels[:, source]
    return moved
