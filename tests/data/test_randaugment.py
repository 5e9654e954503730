"""Every operation against its formula."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from capfilt.data import randaugment
from capfilt.data.randaugment import OPERATIONS

RGB = npt.NDArray[np.uint8]


class Sign(random.Random):
    """Draws one sign for ever."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def random(self) -> float:
        return 0.0 if self.sign > 0 else 0.9


@pytest.fixture
def image() -> RGB:
    patches = np.random.default_rng(0).integers(20, 200, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize((40, 40), Image.Resampling.BICUBIC))


def bilinear(
    image: RGB, source: Callable[[float, float], tuple[float, float]]
) -> npt.NDArray[np.float64]:
    """The pixel of the centre (x, y) from `source(x, y)`; grey where that lies outside."""
    size = len(image)
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    found = np.full(image.shape, 128.0)
    for row in range(size):
        for column in range(size):
            x, y = source(column + 0.5, row + 0.5)
            if not (0 <= x < size and 0 <= y < size):
                continue
            left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
            right, down = x - 0.5 - left, y - 0.5 - top
            window = padded[top + 1 : top + 3, left + 1 : left + 3]
            weights = np.outer([1 - down, down], [1 - right, right])
            found[row, column] = (window * weights[:, :, None]).sum((0, 1))
    return found


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [5, 10])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "Rotate"])
def test_what_moves_pixels_between_pixels(name: str, magnitude: int, sign: int, image: RGB) -> None:
    level = magnitude / 10
    shear, angle = sign * 0.3 * level, np.deg2rad(sign * 30 * level)
    cos, sin, middle = np.cos(angle), np.sin(angle), 20.0
    source = {
        "ShearX": lambda x, y: (x - shear * y, y),
        "ShearY": lambda x, y: (x, y - shear * x),
        # Counterclockwise on a screen, where y points down.
        "Rotate": lambda x, y: (
            middle + cos * (x - middle) - sin * (y - middle),
            middle + sin * (x - middle) + cos * (y - middle),
        ),
    }[name]
    found = OPERATIONS[name](image, level, Sign(sign))
    difference = np.abs(found - bilinear(image, source)).max(axis=2)
    assert (difference > 1.5).mean() < 0.01  # a border pixel may fall on the other side


@pytest.mark.parametrize("sign", [1, -1])
def test_translate_moves_five_pixels_at_magnitude_five(sign: int, image: RGB) -> None:
    x = OPERATIONS["TranslateX"](image, 0.5, Sign(sign))
    y = OPERATIONS["TranslateY"](image, 0.5, Sign(sign))
    expected = np.full_like(image, 128)
    if sign > 0:
        expected[:, 5:] = image[:, :-5]
    else:
        expected[:, :-5] = image[:, 5:]
    assert np.array_equal(x, expected)
    assert np.array_equal(
        y.transpose(1, 0, 2)[:, :],
        OPERATIONS["TranslateX"](np.ascontiguousarray(image.transpose(1, 0, 2)), 0.5, Sign(sign)),
    )


def test_autocontrast_stretches_each_channel(image: RGB) -> None:
    values = image.astype(float)
    low, high = values.min((0, 1)), values.max((0, 1))
    found = OPERATIONS["AutoContrast"](image, 0.5, Sign(1))
    assert np.abs(found - (values - low) * 255 / (high - low)).max() <= 1


def test_equalize_follows_the_histogram(image: RGB) -> None:
    found = OPERATIONS["Equalize"](image, 0.5, Sign(1))
    for channel in range(3):
        histogram = np.bincount(image[:, :, channel].ravel(), minlength=256)
        step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
        before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        table = np.minimum((before + step // 2) // step, 255)
        assert np.array_equal(found[:, :, channel], table[image[:, :, channel]])


@pytest.mark.parametrize("magnitude", [0, 3, 5, 9])
def test_brightness_and_sharpness_have_the_published_factor(magnitude: int, image: RGB) -> None:
    factor = 1.8 * magnitude / 10 + 0.1
    bright = OPERATIONS["Brightness"](image, magnitude / 10, Sign(1))
    assert np.abs(bright - np.clip(image * factor, 0, 255)).max() <= 1
    sharp = OPERATIONS["Sharpness"](image, magnitude / 10, Sign(1))
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = image.astype(float).copy()
    smooth[1:-1, 1:-1] = sum(
        kernel[i, j] * image[i : i + 38, j : j + 38].astype(float)
        for i in range(3)
        for j in range(3)
    )
    assert np.abs(sharp - np.clip(smooth + factor * (image - smooth), 0, 255)).max() <= 2


def test_each_of_two_operations_is_drawn_evenly_and_applied_half_the_time(
    image: RGB, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: Counter[str] = Counter()

    def counting(name: str) -> randaugment.Operation:
        def count(pixels: RGB, level: float, _draws: random.Random) -> RGB:
            applied[name] += 1
            assert level == 0.5
            return pixels

        return count

    monkeypatch.setattr(randaugment, "OPERATIONS", {name: counting(name) for name in OPERATIONS})
    for seed in range(4000):
        randaugment.randaugment(image, random.Random(seed), operations=2, magnitude=5)
    assert set(applied) == set(OPERATIONS)
    assert len(OPERATIONS) == 10
    for count in applied.values():
        assert 400 - 5 * 20 < count < 400 + 5 * 20  # 4000 * 2 * 0.5 / 10, and five deviations
