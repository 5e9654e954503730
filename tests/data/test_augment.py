from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from capfilt.data.augment import augment, random_box
from capfilt.data.config import AugmentConfig
from capfilt.models.images import PixelSpec, fit

PLAIN = AugmentConfig(flip=False, operations=0)


@pytest.fixture
def rgb() -> np.ndarray:
    patches = np.random.default_rng(0).integers(20, 235, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize((80, 60), Image.Resampling.BILINEAR)).copy()


def test_random_box_is_within_the_image_and_the_bounds() -> None:
    areas, ratios = [], []
    for seed in range(2000):
        box = random_box(400, 400, 0.2, random.Random(seed))
        assert 0 <= box.top <= 400 - box.height
        assert 0 <= box.left <= 400 - box.width
        areas.append(box.height * box.width / 160_000)
        ratios.append(box.width / box.height)
    assert 0.19 < min(areas) < 0.25
    assert 0.9 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.8 < 1.25 < max(ratios) < 1.35
    assert abs(np.mean(np.log(ratios))) < 0.03


def test_random_box_of_a_strip_is_its_middle() -> None:
    assert random_box(10, 1000, 0.5, random.Random(0)) == (0, 493, 10, 13)
    assert random_box(1000, 9, 0.5, random.Random(0)) == (494, 0, 12, 9)


def test_augment_crops_and_resizes_as_torch_does(rgb: np.ndarray) -> None:
    top, left, height, width = random_box(60, 80, 0.2, random.Random(3))
    crop = torch.from_numpy(rgb[top : top + height, left : left + width].copy())
    expected = torch.nn.functional.interpolate(
        crop.permute(2, 0, 1)[None].float(), size=(32, 32), mode="bicubic", antialias=True
    )
    found = augment(rgb, random.Random(3), PLAIN, 32)
    assert found.dtype == torch.uint8
    assert (found - expected[0].clamp(0, 255)).abs().max() <= 1.5


def test_augment_flips_half_of_the_images_unless_it_is_off(rgb: np.ndarray) -> None:
    flipping = AugmentConfig(operations=0)
    flipped = 0
    for seed in range(200):
        plain = augment(rgb, random.Random(seed), PLAIN, 16)
        found = augment(rgb, random.Random(seed), flipping, 16)
        assert torch.equal(found, plain) or torch.equal(found, plain.flip(-1))
        flipped += torch.equal(found, plain.flip(-1))
    assert 65 < flipped < 135


def test_augment_that_is_off_is_the_transform_of_inference(rgb: np.ndarray) -> None:
    found = augment(rgb, random.Random(0), AugmentConfig(enabled=False), 24)
    assert torch.equal(found, fit(rgb, PixelSpec(24)))


def test_augment_is_a_function_of_its_random_numbers(rgb: np.ndarray) -> None:
    made = [augment(rgb, random.Random(seed), AugmentConfig(), 24) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_augment_applies_randaugment_after_crop_and_flip(rgb: np.ndarray) -> None:
    varied = 0
    for seed in range(60):
        found = augment(rgb, random.Random(seed), AugmentConfig(magnitude=10), 24)
        plain = augment(rgb, random.Random(seed), AugmentConfig(operations=0), 24)
        assert found.shape == (3, 24, 24)
        varied += not torch.equal(found, plain)
    assert 25 < varied < 60
