"""How checkpoints name a ViT's tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from capfilt.models.layout import Layout, Parts, join, layers_of, linear

_BLOCK = ("norm1", "qkv", "out", "norm2", "up", "down")  # in the order of its work


def image_net(*, image_layers: int, timm: bool) -> Layout:
    """Of the ViT in a checkpoint of an image classifier."""
    head = re.compile(r"^(head|head_dist|classifier|cls_classifier|pooler|pre_logits)\.|^logit_")
    if timm:
        return Layout(_timm("", image_layers), head, {})
    names = (
        "layernorm_before", "attention.attention.{}", "attention.output.dense", "layernorm_after",
        "intermediate.dense", "output.dense",
    )  # fmt: skip

    def block(i: int, our: str, their: str) -> Parts:
        parts = ("query", "key", "value") if our == "qkv" else ("",)
        return linear(
            f"vit.blocks.{i}.{our}", *(f"encoder.layer.{i}.{their.format(p)}" for p in parts)
        )

    stem = {
        "vit.class_token": ("embeddings.cls_token",),
        "vit.positions": ("embeddings.position_embeddings",),
        **linear("vit.patches", "embeddings.patch_embeddings.projection"),
        **linear("vit.norm", "layernorm"),
    }
    blocks = layers_of(
        image_layers,
        lambda i: join(block(i, o, t) for o, t in zip(_BLOCK, names, strict=True)),
    )
    return Layout(stem | blocks, head, {})


def query_image(*, image_layers: int) -> Layout:
    """Of the image encoder of a BLIP-2."""
    return Layout(image_parts(image_layers, original=False), re.compile(r"^(?!vision_model\.)"), {})


def clip_image(*, image_layers: int) -> Layout:
    """Of the first blocks of a `CLIPVisionModel`, numbered from 1, and of its two first norms.

    `vit.blocks.0.norm2` is the norm before the first block; see `capfilt.models.image_encoder`.
    """
    root = "vision_model"
    stem = {
        "vit.class_token": (f"{root}.embeddings.class_embedding",),
        "vit.positions": (f"{root}.embeddings.position_embedding.weight",),
        "vit.patches.weight": (f"{root}.embeddings.patch_embedding.weight",),
        **linear("vit.blocks.0.norm2", f"{root}.pre_layrnorm"),
    }

    def block(i: int) -> Parts:
        ours, theirs = f"vit.blocks.{i + 1}", f"{root}.encoder.layers.{i}"
        qkv = [f"{theirs}.self_attn.{name}_proj" for name in ("q", "k", "v")]
        return {
            **linear(f"{ours}.norm1", f"{theirs}.layer_norm1"),
            **linear(f"{ours}.qkv", *qkv),
            **linear(f"{ours}.out", f"{theirs}.self_attn.out_proj"),
            **linear(f"{ours}.norm2", f"{theirs}.layer_norm2"),
            **linear(f"{ours}.up", f"{theirs}.mlp.fc1"),
            **linear(f"{ours}.down", f"{theirs}.mlp.fc2"),
        }

    rest = rf"^(?!{root}\.)|\.position_ids$|\.post_layernorm\.|\.layers\.{image_layers}\."
    return Layout(stem | layers_of(image_layers, block), re.compile(rest), {})


def image_parts(layers: int, original: bool) -> Parts:
    """Of the ViT in a BLIP or BLIP-2; `original`: in its authors' files."""
    if original:
        return _timm("visual_encoder.", layers)
    root = "vision_model"
    stem = {
        "vit.class_token": (f"{root}.embeddings.class_embedding",),
        "vit.positions": (f"{root}.embeddings.position_embedding",),
        **linear("vit.patches", f"{root}.embeddings.patch_embedding"),
        **linear("vit.norm", f"{root}.post_layernorm"),
    }
    names = (
        "layer_norm1", "self_attn.qkv", "self_attn.projection", "layer_norm2", "mlp.fc1",
        "mlp.fc2",
    )  # fmt: skip
    return stem | _blocks(layers, f"{root}.encoder.layers", names)


def _timm(root: str, layers: int) -> Parts:
    stem = {
        "vit.class_token": (f"{root}cls_token",),
        "vit.positions": (f"{root}pos_embed",),
        **linear("vit.patches", f"{root}patch_embed.proj"),
        **linear("vit.norm", f"{root}norm"),
    }
    names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return stem | _blocks(layers, f"{root}blocks", names)


def _blocks(layers: int, root: str, names: Sequence[str]) -> Parts:
    return layers_of(
        layers,
        lambda i: join(
            linear(f"vit.blocks.{i}.{our}", f"{root}.{i}.{their}")
            for our, their in zip(_BLOCK, names, strict=True)
        ),
    )
