"""Image encoders that BLIP-2 reads and does not train: its own ViT-g, and CLIP's ViT-L.

A CLIP becomes a ViT of BLIP-2's form, so that what is trained on it is a BLIP-2 in transformers'
layout, too. Its last block is left out, as in the paper. Its norm before the first block, for which
that form has no place, becomes a block of its own, which leaves x at

    x + K (f(y) - f(-y)) = x + K y    where y = norm(x), since f(y) - f(-y) = y for (quick) GELU

and all later blocks add K times as much as before. Norms do not see such a scale, and x beside K y
is less than a last digit of fp32. fp16 has no room for it: such an encoder works in fp32 or bf16.

Shapes: D width, F width of the feed-forward.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2VisionConfig, CLIPVisionConfig

from capfilt.errors import ModelError
from capfilt.models import checkpoint, vit_layout
from capfilt.models.harmless import made_from, read_json
from capfilt.models.vit import ViT, VitConfig, resize_positions, vit_config

_SCALE = 2.0**20  # K; a power of two, so that scaled weights lose no digit
_CLIP = ("clip", "clip_vision_model")
_BLIP2 = ("blip-2", "blip_2_vision_model", "instructblip")
_NOT_LANGUAGE = re.compile(r"(?!language_model\.)")  # nine tenths of some BLIP-2


def load_image_encoder(folder: Path, image_size: int) -> ViT:
    """The ViT of a folder in fp32 on the CPU, up to its second-last block where it is a CLIP's.

    Args:
        folder: Of a `CLIPVisionModel` or `CLIPModel`, a `Blip2VisionModel` or any BLIP-2.
        image_size: Positions are interpolated to it.

    Raises:
        ModelError: It is of another class; a tensor is missing, surplus or misshapen; the image
            size is no multiple of the patch size.
    """
    with made_from(folder):
        tree = read_json(folder / "config.json")
        kind = tree.get("model_type")
        settings: dict[str, Any] = tree.get("vision_config", tree)
        if kind in _CLIP:
            config = _config(CLIPVisionConfig(**_sizes(settings, CLIPVisionConfig)), image_size)
            state = _clip_state(_tensors(folder), config, folder)
        elif kind in _BLIP2:
            config = _config(Blip2VisionConfig(**_sizes(settings, Blip2VisionConfig)), image_size)
            tensors = with_biases(_tensors(folder))
            state = vit_layout.query_image(image_layers=config.layers).collect(tensors, str(folder))
        else:
            raise ModelError(
                f"{folder}: is a {kind}; a frozen image encoder is a CLIP's (CLIPVisionModel) or a "
                "BLIP-2's (Blip2VisionModel)"
            )
        state["vit.positions"] = resize_positions(
            state["vit.positions"], image_size // config.patch_size
        )
        with torch.device("meta"):
            vit = ViT(config)
        own = {name.removeprefix("vit."): x.float() for name, x in state.items()}
        checkpoint.fill(vit, own, str(folder))
        statistics = checkpoint.pixel_statistics(folder)
        vit.pixel_mean, vit.pixel_std = statistics.mean, statistics.std
        return vit


def with_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BLIP-2's tensors with the zeros that `qkv_bias: false` leaves out."""
    for name in list(tensors):
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(".self_attn.qkv.weight") and bias not in tensors:
            tensors[bias] = tensors[name].new_zeros(len(tensors[name]))
    return tensors


def _sizes(settings: dict[str, Any], kind: Any) -> dict[str, Any]:
    names = vars(kind()).keys()
    return {name: value for name, value in settings.items() if name in names}


def _config(settings: Any, image_size: int) -> VitConfig:
    """Sizes of the ViT; a CLIP's last block makes place for the one that its norm becomes."""
    config = vit_config(settings, "gelu", "quick_gelu")
    if image_size % config.patch_size:
        raise ModelError(
            f"image_size must be a multiple of the patch size {config.patch_size}, is {image_size}"
        )
    return replace(config, image_size=image_size)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors; those of a vision model alone get the prefix that they have in it."""
    tensors = checkpoint.read_tensors(folder, _NOT_LANGUAGE)
    if any(name.startswith("vision_model.") for name in tensors):
        return tensors
    return {f"vision_model.{name}": tensor for name, tensor in tensors.items()}


def _clip_state(tensors: dict[str, Tensor], config: VitConfig, folder: Path) -> dict[str, Tensor]:
    names = vit_layout.clip_image(image_layers=config.layers - 1)
    state = {name: x.float() for name, x in names.collect(tensors, str(folder)).items()}
    width, ffn = config.width, config.ffn
    if ffn < 2 * width:
        raise ModelError(f"{folder}: its feed-forwards are {ffn} wide, less than twice its {width}")
    state["vit.class_token"] = state["vit.class_token"].view(1, 1, -1)
    state["vit.positions"] = state["vit.positions"][None]
    state["vit.patches.bias"] = torch.zeros(width)
    state["vit.norm.weight"], state["vit.norm.bias"] = torch.ones(width), torch.zeros(width)
    for i in range(1, config.layers):
        for part in ("out", "down"):
            for kind in ("weight", "bias"):
                state[f"vit.blocks.{i}.{part}.{kind}"] *= _SCALE
    both = torch.cat([torch.eye(width), -torch.eye(width), torch.zeros(ffn - 2 * width, width)])
    first = {
        "norm1.weight": torch.ones(width),
        "norm1.bias": torch.zeros(width),
        "qkv.weight": torch.zeros(3 * width, width),
        "qkv.bias": torch.zeros(3 * width),
        "out.weight": torch.zeros(width, width),
        "out.bias": torch.zeros(width),
        "up.weight": both,
        "up.bias": torch.zeros(ffn),
        "down.weight": _SCALE * both.T.contiguous(),
        "down.bias": torch.zeros(width),
    }
    return state | {f"vit.blocks.0.{name}": tensor for name, tensor in first.items()}
