"""ViT, the image encoder of BLIP: 16 x 16 patches, a class token, pre-norm blocks.

About 85 % of all the work of captioning and filtering happens here. Pixels come as bytes and are
normalised on the device: a quarter of the traffic of floats.

Shapes: N images, S side in pixels, G = S / patch, T = G * G + 1 tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capfilt.errors import ModelError
from capfilt.models.attention import attend, check_heads, heads, merge_heads
from capfilt.models.linear import LinearGelu, LinearQuickGelu
from capfilt.models.transfer import tensor_on

# CLIP's statistics, which BLIP uses.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# On a CPU two images of 577 tokens at a time keep a layer's activations in the cache.
_CPU_TOKENS = 1200


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a ViT, and how it is trained."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    image_size: int = 384
    patch_size: int = 16
    norm_eps: float = 1e-5
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    drop_path: float = 0.0  # of the last block's branches, while training; earlier ones less
    recompute: bool = False  # a block's activations in the backward pass

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1


def vit_config(settings: Any, *activations: str) -> VitConfig:
    """Our sizes from transformers' vision config of a BLIP, a BLIP-2 or a CLIP.

    Raises:
        ModelError: It has none of these activations, or images that are no squares.
    """
    if settings.hidden_act not in activations:
        known = " or ".join(map(repr, activations))
        raise ModelError(f"vision_config.hidden_act is {settings.hidden_act!r}, not {known}")
    return VitConfig(
        width=settings.hidden_size,
        layers=settings.num_hidden_layers,
        heads=settings.num_attention_heads,
        ffn=settings.intermediate_size,
        image_size=_side(settings.image_size, "image_size"),
        patch_size=_side(settings.patch_size, "patch_size"),
        norm_eps=settings.layer_norm_eps,
        activation=settings.hidden_act,
    )


def _side(size: int | list[int] | tuple[int, ...], name: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ModelError(f"vision_config.{name} is {size}, no square")
    return int(sides.pop())


class Block(nn.Module):
    """Self-attention and feed-forward, each on a normalised input and added to it."""

    def __init__(self, config: VitConfig, index: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.drop_path = config.drop_path * index / max(1, config.layers - 1)
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        up = LinearQuickGelu if config.activation == "quick_gelu" else LinearGelu
        self.up = up(config.width, config.ffn)
        self.down = nn.Linear(config.ffn, config.width)

    def forward(self, x: Tensor) -> Tensor:  # [N, T, D] -> [N, T, D]
        q, k, v = (heads(y, self.heads) for y in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self._branch(self.out(merge_heads(attend(q, k, v))))
        return x + self._branch(self.down(self.up(self.norm2(x))))

    def _branch(self, x: Tensor) -> Tensor:
        """Leave a branch out for an image at random while training (arXiv:1603.09382)."""
        if not (self.training and self.drop_path):
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * (kept / (1 - self.drop_path)).to(x.dtype)


class ViT(nn.Module):
    """The image encoder.

    Source: BLIP, arXiv:2201.12086, section 3.1; arXiv:2010.11929.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.patches = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = nn.LayerNorm(width, config.norm_eps)
        # Of pixels in [0, 1], per channel. No buffers: those would be rounded with the weights.
        self.pixel_mean: Sequence[float] = PIXEL_MEAN
        self.pixel_std: Sequence[float] = PIXEL_STD

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixels: uint8 [N, 3, S, S], RGB.

        Returns:
            [N, T, D], the class token first.
        """
        return self.norm(self.features(pixels))  # type: ignore[no-any-return]

    def features(self, pixels: Tensor) -> Tensor:
        """What the last norm gets: `forward` without it."""
        if pixels.device.type != "cpu" or torch.is_grad_enabled():
            return self._encode(pixels)
        chunks = torch.split(pixels, max(1, _CPU_TOKENS // self.config.tokens))
        return torch.cat([self._encode(chunk) for chunk in chunks])

    def _encode(self, pixels: Tensor) -> Tensor:
        mean, std = (
            tensor_on(statistic, pixels.device).view(1, 3, 1, 1) * 255
            for statistic in (self.pixel_mean, self.pixel_std)
        )
        normal = (pixels - mean) / std
        x = self.patches(normal.to(self.class_token.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        recompute = self.config.recompute and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x  # type: ignore[no-any-return]


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Interpolate position embeddings to another number of patches; the class token's is kept.

    Source: BLIP, `interpolate_pos_embed` of the published code (bicubic, corners not aligned).

    Args:
        positions: [1, 1 + G * G, D].
        grid: The new G.

    Returns:
        [1, 1 + grid * grid, D], of the same dtype.
    """
    class_token, patches = positions[:, :1], positions[:, 1:]
    old = round(patches.shape[1] ** 0.5)
    if old == grid:
        return positions
    square = patches.float().transpose(1, 2).reshape(1, -1, old, old)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([class_token, square.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def sine_positions(grid: int, width: int) -> Tensor:
    """Position embeddings that tell rows from columns before anything is learned.

    Learned ones, where pictures are few, find the rim and the middle but not left from right.

    Source: "Better plain ViT baselines", arXiv:2205.01580; sines and cosines of 1 to 1/10,000 per
    patch, a half of them across and a half down.

    Args:
        grid: G.
        width: D.

    Returns:
        [1, 1 + G * G, D]; zeros for the class token, and in the last D mod 4 places.
    """
    frequencies = 10_000 ** -torch.linspace(0, 1, width // 4)
    places = torch.arange(grid).float()[:, None] * frequencies
    axis = torch.cat([places.sin(), places.cos()], dim=1)
    both = torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)], dim=1)
    return F.pad(both, (0, width - both.shape[1], 1, 0))[None]
