from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Blip2VisionConfig, BlipForConditionalGeneration, BlipImageProcessorPil

from capfilt.errors import ModelError
from capfilt.models.load import blip_settings, load_caption_model
from capfilt.models.vit import ViT, VitConfig, resize_positions, sine_positions, vit_config
from tests.models.conftest import make_images, normalised


def tower(folder: Path) -> ViT:
    return load_caption_model(folder, blip_settings(folder)).vit


@torch.inference_mode()
def test_vit_on_bytes_gives_transformers_states(
    captioner_folder: Path, hf_captioner: BlipForConditionalGeneration
) -> None:
    images = make_images(100)  # on a CPU a chunk of 70 and one of 30
    expected = hf_captioner.vision_model(normalised(images)).last_hidden_state
    assert expected.std() > 0.5
    torch.testing.assert_close(tower(captioner_folder)(images), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_vit_with_other_pixel_statistics_gives_transformers_states(
    captioner_folder: Path, hf_captioner: BlipForConditionalGeneration
) -> None:
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.9)
    images = make_images(2)
    processor = BlipImageProcessorPil(do_resize=False, image_mean=mean, image_std=std)
    pixels = processor(list(images), return_tensors="pt").pixel_values
    vit = tower(captioner_folder)
    vit.pixel_mean, vit.pixel_std = mean, std
    expected = hf_captioner.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(vit(images), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_vit_in_bf16_rounds_pixels_only_after_normalising_them(captioner_folder: Path) -> None:
    vit = tower(captioner_folder).to(torch.bfloat16)
    seen: list[Tensor] = []
    vit.patches.register_forward_hook(lambda _, x, __: seen.append(x[0]))
    images = make_images(2)
    vit(images)
    error = (seen[0].float() - normalised(images)).abs() / normalised(images).abs().clamp(min=0.1)
    assert seen[0].dtype == torch.bfloat16
    assert error.max() < 2**-8


def test_resize_positions_to_more_patches_is_transformers_interpolation(
    hf_captioner: BlipForConditionalGeneration,
) -> None:
    embeddings = hf_captioner.vision_model.embeddings  # 4 x 4 patches of 8 pixels
    tokens = torch.zeros(1, 7 * 7 + 1, 80)
    expected: Tensor = embeddings.interpolate_pos_encoding(tokens, 56, 56)
    resized = resize_positions(embeddings.position_embedding, 7)
    torch.testing.assert_close(resized, expected)
    assert torch.equal(resized[:, :1], embeddings.position_embedding[:, :1])


def test_resize_positions_to_same_patches_changes_nothing() -> None:
    positions = torch.randn(1, 17, 8)
    assert torch.equal(resize_positions(positions, 4), positions)


def test_sine_positions_are_the_formula_s_across_and_down() -> None:
    positions = sine_positions(3, 10)
    assert positions.shape == (1, 10, 10)
    assert not positions[0, 0].any()
    for row in range(3):
        for column in range(3):
            waves = [
                wave(place * frequency)
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for frequency in (1.0, 1e-4)
            ]
            expected = torch.tensor([*waves, 0.0, 0.0])
            torch.testing.assert_close(positions[0, 1 + 3 * row + column], expected)


def test_sizes_come_from_transformers_config() -> None:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    square = Blip2VisionConfig(**sizes, intermediate_size=80, image_size=[28, 28], patch_size=7)
    expected = VitConfig(48, 2, 4, 80, image_size=28, patch_size=7, norm_eps=square.layer_norm_eps)
    assert vit_config(square, "gelu", "quick_gelu") == expected
    with pytest.raises(ModelError, match=r"vision_config.image_size is \[28, 14\], no square"):
        vit_config(Blip2VisionConfig(**sizes, image_size=[28, 14]), "gelu")
    with pytest.raises(ModelError, match=r"vision_config.hidden_act is 'quick_gelu', not 'gelu'"):
        vit_config(Blip2VisionConfig(**sizes, hidden_act="quick_gelu"), "gelu")
