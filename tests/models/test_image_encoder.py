"""Frozen image encoders against transformers' models of the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from capfilt.errors import ModelError
from capfilt.models.image_encoder import load_image_encoder
from capfilt.models.linear import prepare_for_inference
from tests import blip2_checkpoints
from tests.blip2_checkpoints import VISION, randomise
from tests.checkpoints import make_clip
from tests.models.conftest import make_images, normalised


def clip(folder: Path, **changes: Any) -> CLIPVisionModel:
    model = CLIPVisionModel(CLIPVisionConfig(**{**VISION, "intermediate_size": 112, **changes}))
    model = model.eval()
    randomise(model, 0)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("is_packed", [False, True])
@torch.inference_mode()
def test_features_of_a_clip_are_those_of_its_second_last_layer(
    activation: str, is_packed: bool, tmp_path: Path
) -> None:
    model = clip(tmp_path, hidden_act=activation, num_hidden_layers=3)
    vit = load_image_encoder(tmp_path, 28)
    assert vit.config.layers == 3  # two of CLIP's and its first norm
    if is_packed:
        prepare_for_inference(vit)
    images = make_images(3, side=28)
    states = model(normalised(images), output_hidden_states=True).hidden_states
    found = vit.features(images) / 2**20
    assert states[-2].std() > 0.3
    torch.testing.assert_close(found, states[-2], atol=1e-4, rtol=1e-4)
    expected = torch.nn.functional.layer_norm(states[-2], (48,))
    torch.testing.assert_close(vit(images), expected, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_clip_in_bf16_is_near(tmp_path: Path) -> None:
    model = clip(tmp_path, num_hidden_layers=3)
    vit = load_image_encoder(tmp_path, 28).bfloat16()
    images = make_images(3, side=28)
    states = model(normalised(images), output_hidden_states=True).hidden_states[-2]
    expected = torch.nn.functional.layer_norm(states, (48,))
    error = (vit(images).float() - expected).abs().mean()
    plain = model.bfloat16()(normalised(images).bfloat16(), output_hidden_states=True)
    of_plain = torch.nn.functional.layer_norm(plain.hidden_states[-2].float(), (48,)) - expected
    assert error < 2 * of_plain.abs().mean()


@torch.inference_mode()
def test_clip_model_gives_its_vision_model(tmp_path: Path) -> None:
    folder = make_clip(tmp_path)
    model = CLIPVisionModel.from_pretrained(folder).eval()
    images = make_images(2)
    states = model(normalised(images), output_hidden_states=True).hidden_states[-2]
    found = load_image_encoder(folder, 32).features(images) / 2**20
    torch.testing.assert_close(found, states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("qkv_bias", [True, False])
@torch.inference_mode()
def test_blip2_vision_model_is_taken_whole(qkv_bias: bool, tmp_path: Path) -> None:
    model = Blip2VisionModel(Blip2VisionConfig(**VISION, qkv_bias=qkv_bias)).eval()
    randomise(model, 1)
    model.save_pretrained(tmp_path)
    images = make_images(2, side=28)
    found = load_image_encoder(tmp_path, 28)(images)
    expected = model(normalised(images)).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_blip2_gives_its_image_encoder_at_any_size(tmp_path: Path) -> None:
    folder = blip2_checkpoints.make_captioner(tmp_path)
    assert load_image_encoder(folder, 28)(make_images(2, side=28)).shape == (2, 17, 48)
    assert load_image_encoder(folder, 42)(make_images(2, side=42)).shape == (2, 37, 48)
    with pytest.raises(ModelError, match="multiple of the patch size 7, is 30"):
        load_image_encoder(folder, 30)


def test_other_models_are_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(num_hidden_layers=1, hidden_size=12)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="is a bert; a frozen image encoder is a CLIP's"):
        load_image_encoder(tmp_path / "bert", 28)
    clip(tmp_path / "narrow", intermediate_size=80)
    with pytest.raises(ModelError, match="feed-forwards are 80 wide, less than twice its 48"):
        load_image_encoder(tmp_path / "narrow", 28)
