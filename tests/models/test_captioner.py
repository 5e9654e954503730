from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from capfilt.config import CaptionConfig
from capfilt.errors import ModelError
from capfilt.models.captioner import Captioner
from capfilt.models.images import PixelSpec
from capfilt.models.load import load_captioner
from tests.models.conftest import make_images

METHODS = [
    CaptionConfig(per_image=2),
    CaptionConfig(method="greedy"),
    CaptionConfig(method="beam", per_image=2),
]


def load(folder: Path, config: CaptionConfig, *, seed: int = 0) -> Captioner:
    return load_captioner(str(folder), config, seed=seed, device="cpu")


def in_batches(captioner: Captioner, order: list[int], size: int) -> dict[int, tuple[str, ...]]:
    images = make_images(64)
    captions = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        made = captioner.caption([images[i] for i in batch], [f"key{i}" for i in batch])
        captions.update(zip(batch, made, strict=True))
    return captions


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
def test_caption_alone_or_in_any_batch_and_order_is_the_same(
    config: CaptionConfig, captioner_folder: Path
) -> None:
    captioner = load(captioner_folder, config)
    order = list(range(64))
    whole = in_batches(captioner, order, 64)
    assert len(set(whole.values())) > 25
    assert in_batches(captioner, order, 1) == whole
    random.Random(0).shuffle(order)
    assert in_batches(captioner, order, 7) == whole
    assert in_batches(captioner, order, 64) == whole


def test_caption_with_another_seed_or_key_is_another(captioner_folder: Path) -> None:
    images = list(make_images(20))
    keys = [str(i) for i in range(20)]
    captions = load(captioner_folder, CaptionConfig()).caption(images, keys)
    assert load(captioner_folder, CaptionConfig(), seed=1).caption(images, keys) != captions
    assert load(captioner_folder, CaptionConfig()).caption(images, keys[::-1]) != captions


def test_first_caption_does_not_depend_on_how_many_there_are(captioner_folder: Path) -> None:
    images, keys = list(make_images(20)), [str(i) for i in range(20)]
    one = load(captioner_folder, CaptionConfig()).caption(images, keys)
    four = load(captioner_folder, CaptionConfig(per_image=4)).caption(images, keys)
    assert [captions[:1] for captions in four] == one
    assert len(set(four[0])) > 1


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
def test_image_passes_the_tower_once(config: CaptionConfig, captioner_folder: Path) -> None:
    captioner = load(captioner_folder, config)
    passes = []
    captioner.model.vit.register_forward_hook(lambda _, x, __: passes.append(len(x[0])))
    captioner.caption(list(make_images(9)), [str(i) for i in range(9)])
    assert passes == [9]


def test_caption_has_no_prompt_and_no_special_tokens(captioner_folder: Path) -> None:
    captioner = load(captioner_folder, CaptionConfig(method="greedy"))
    for (caption,) in captioner.caption(list(make_images(50)), [str(i) for i in range(50)]):
        assert caption
        assert caption == caption.strip()
        assert "a picture of" not in caption
        assert "[" not in caption


def test_caption_of_nothing_is_nothing(captioner_folder: Path) -> None:
    assert load(captioner_folder, CaptionConfig()).caption([], []) == []


def test_captioner_asks_for_its_checkpoints_pixels(captioner_folder: Path) -> None:
    captioner = load(captioner_folder, CaptionConfig())
    assert captioner.pixels == PixelSpec(size=32, crop=False)
    assert captioner.identity.architecture == "BlipForConditionalGeneration"


def test_prompt_without_room_is_refused(captioner_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"captions.max_length is 4 but .* are 4 tokens"):
        load(captioner_folder, CaptionConfig(max_length=4, min_length=0))


def test_max_length_beyond_the_positions_is_refused(captioner_folder: Path) -> None:
    with pytest.raises(ModelError, match="positions for 64 tokens"):
        load(captioner_folder, CaptionConfig(max_length=65))


def test_bf16_captions_run_and_mostly_agree_on_the_first_word(captioner_folder: Path) -> None:
    config = CaptionConfig(method="greedy")
    images, keys = list(make_images(40)), [str(i) for i in range(40)]
    full = load(captioner_folder, config).caption(images, keys)
    half = load_captioner(str(captioner_folder), config, seed=0, precision="bf16", device="cpu")
    assert half.model.head.bias.dtype == torch.bfloat16
    rounded = half.caption(images, keys)
    same = sum(a[0].split()[:1] == b[0].split()[:1] for a, b in zip(full, rounded, strict=True))
    assert same >= 30
