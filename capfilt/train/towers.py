"""Sizes of what is pre-trained, and what is done to it only while it trains."""

from __future__ import annotations

from dataclasses import dataclass, replace

from capfilt.models.med import MedConfig
from capfilt.models.text_transformer import TextConfig
from capfilt.models.vit import VitConfig

_VIT_EPS = 1e-6  # of timm's ViT and BLIP's code


@dataclass(frozen=True)
class ImageTower:
    """Sizes of the ViT; BLIP-large has width 1024, 24 layers and 16 heads."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    image_size: int = 224
    patch_size: int = 16
    weights: str = ""  # folder of a timm or transformers ImageNet checkpoint; empty: from scratch

    def __post_init__(self) -> None:
        _check_tower(self.width, self.layers, self.heads)
        _check_image_size(self.image_size, self.patch_size)


@dataclass(frozen=True)
class TextTower:
    """Sizes of the text transformer."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    weights: str = ""  # folder of a BERT checkpoint; empty: from scratch

    def __post_init__(self) -> None:
        _check_tower(self.width, self.layers, self.heads)


@dataclass(frozen=True)
class FrozenImageTower:
    """An image encoder that is read and not trained."""

    weights: str = ""  # folder or hub id of a CLIP's or a BLIP-2's image encoder
    image_size: int = 224


@dataclass(frozen=True)
class QueryTower:
    """Sizes of the Q-Former."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    queries: int = 32
    cross_every: int = 2  # cross-attention in layers 0, 2, 4...
    weights: str = ""  # folder of a BERT checkpoint; empty: from scratch

    def __post_init__(self) -> None:
        _check_tower(self.width, self.layers, self.heads)
        if min(self.queries, self.cross_every) < 1:
            raise ValueError("queries and cross_every must be at least 1")


@dataclass(frozen=True)
class DropConfig:
    """What is left out at random while training."""

    text: float = 0.1  # of hidden states and attention weights of the text transformer
    path: float = 0.0  # of an image's branches in the last block of the ViT; earlier ones less

    def __post_init__(self) -> None:
        for name in ("text", "path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), is {getattr(self, name)}")


@dataclass(frozen=True)
class RecomputeConfig:
    """Whose activations are computed again in the backward pass, to save memory."""

    image: bool = False
    text: bool = False


def med_config(image: ImageTower, text: TextTower, *, embedding: int, vocabulary: int) -> MedConfig:
    """Sizes of both towers together."""
    return MedConfig(
        VitConfig(
            image.width,
            image.layers,
            image.heads,
            4 * image.width,
            image.image_size,
            image.patch_size,
            _VIT_EPS,
        ),
        TextConfig(
            vocabulary,
            text.width,
            text.layers,
            text.heads,
            4 * text.width,
            image_width=image.width,
        ),
        embedding,
    )


def trained(config: MedConfig, drop: DropConfig, recompute: RecomputeConfig) -> MedConfig:
    """The same sizes, with what is done while training."""
    return replace(
        config,
        image=replace(config.image, drop_path=drop.path, recompute=recompute.image),
        text=replace(config.text, dropout=drop.text, recompute=recompute.text),
    )


def resized(config: MedConfig, image_size: int) -> MedConfig:
    """The same sizes for images of another resolution.

    Raises:
        ValueError: It is no multiple of the patch size.
    """
    _check_image_size(image_size, config.image.patch_size)
    return replace(config, image=replace(config.image, image_size=image_size))


def _check_tower(width: int, layers: int, heads: int) -> None:
    if min(width, layers, heads) < 1 or width % heads:
        raise ValueError(
            f"width must be a multiple of heads, and all of them 1 or more; they are {width}, "
            f"{layers} layers and {heads}"
        )


def _check_image_size(image_size: int, patch_size: int) -> None:
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise ValueError(
            f"image_size must be a multiple of the patch size {patch_size}, is {image_size}"
        )
