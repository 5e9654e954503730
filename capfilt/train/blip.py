"""What trains: BLIP's pre-training, and the finetuning of a captioner and of a filter.

    BlipPretrain        ITC + ITM + LM, one image pass, three text passes
    CaptionerFinetune   LM
    FilterFinetune      ITC + ITM

Each is a module whose `forward(batch, step)` gives its losses by name, fp32 scalars of this rank
whose sum is to be minimised; wrapped in DistributedDataParallel, the mean of the ranks' gradients
is the gradient of the joint batch (pass `broadcast_buffers=False`: the queues are equal on all
ranks by themselves). All that goes on from step to step is in `state_dict()`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from capfilt.data.batch import Batch
from capfilt.train.itc import ItcConfig
from capfilt.train.itm import ItmConfig
from capfilt.train.lm import LmConfig

Sharing = Literal["all_but_self_attention", "all", "all_but_cross_attention", "none"]


@dataclass(frozen=True)
class ImageTower:
    """Sizes of the ViT; BLIP-large has width 1024, 24 layers and 16 heads."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    image_size: int = 224
    patch_size: int = 16
    weights: str = ""  # folder of a timm or transformers ImageNet checkpoint; empty: from scratch


@dataclass(frozen=True)
class TextTower:
    """Sizes of the text transformer."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    weights: str = ""  # folder of a BERT checkpoint; empty: from scratch


@dataclass(frozen=True)
class DropConfig:
    """What is left out at random while training."""

    text: float = 0.1  # of hidden states and attention weights of the text transformer
    path: float = 0.0  # of an image's branches in the last block of the ViT; earlier ones less


@dataclass(frozen=True)
class RecomputeConfig:
    """Whose activations are computed again in the backward pass, to save memory."""

    image: bool = False
    text: bool = False


@dataclass(frozen=True)
class BlipConfig:
    """Pre-training.

    Source: BLIP, arXiv:2201.12086, sections 3.1, 3.2 and 4.1 (`sharing`: Table 3).
    """

    image: ImageTower = field(default_factory=ImageTower)
    text: TextTower = field(default_factory=TextTower)
    embedding: int = 256
    sharing: Sharing = "all_but_self_attention"
    itc: ItcConfig = field(default_factory=ItcConfig)
    itm: ItmConfig = field(default_factory=ItmConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    drop: DropConfig = field(default_factory=DropConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)


@dataclass(frozen=True)
class CaptionerConfig:
    """Finetuning of a captioner."""

    start: str = ""  # folder of a `BlipForConditionalGeneration`
    image_size: int = 384
    lm: LmConfig = field(default_factory=lambda: LmConfig(prompt="a picture of "))
    drop: DropConfig = field(default_factory=DropConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)


@dataclass(frozen=True)
class FilterConfig:
    """Finetuning of a filter."""

    start: str = ""  # folder of a `BlipForImageTextRetrieval`
    image_size: int = 384
    itc: ItcConfig = field(default_factory=ItcConfig)
    itm: ItmConfig = field(default_factory=lambda: ItmConfig(negatives="all_ranks"))
    drop: DropConfig = field(default_factory=DropConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)


class BlipPretrain(nn.Module):
    """ITC, ITM and LM over one image encoder."""

    @classmethod
    def load(cls, config: BlipConfig, *, vocabulary: Path, seed: int) -> BlipPretrain:
        """Make a model on the CPU, from scratch or from what `config` names.

        Args:
            config: What is trained.
            vocabulary: BERT's `vocab.txt`, or a folder with a tokenizer.
            seed: Of new weights, and of the draws of negatives.

        Raises:
            ModelError: A folder holds no such checkpoint, or tensors of other sizes.
        """
        raise NotImplementedError

    def check_batch(self, images: int, ranks: int) -> None:
        """Refuse a batch that the objectives cannot work with, before anything is read.

        Args:
            images: Of one forward pass on one rank.
            ranks: How many there are.

        Raises:
            ConfigError: The queue is no multiple of a step's images; a batch has no negatives.
        """
        raise NotImplementedError

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The losses "itc", "itm" and "lm".

        Args:
            batch: Of this rank, on the model's device; as many images on every rank.
            step: Of the optimiser, from 0. Forward passes of one step (gradient accumulation)
                count as one for the momentum encoder.

        Raises:
            ConfigError: As `check_batch`; no image of the step has a text that is not its own.
        """
        raise NotImplementedError

    def export_captioner(self, folder: Path, vocabulary: Path) -> None:
        """Save the decoder as a `BlipForConditionalGeneration` with tokenizer and processor."""
        raise NotImplementedError

    def export_filter(self, folder: Path, vocabulary: Path) -> None:
        """Save the encoder as a `BlipForImageTextRetrieval` with tokenizer and processor."""
        raise NotImplementedError


class CaptionerFinetune(nn.Module):
    """LM alone."""

    @classmethod
    def load(cls, config: CaptionerConfig, *, vocabulary: Path, seed: int) -> CaptionerFinetune:
        """As `BlipPretrain.load`; `vocabulary` may be the folder it starts from."""
        raise NotImplementedError

    def check_batch(self, images: int, ranks: int) -> None:
        """As `BlipPretrain.check_batch`: any batch will do."""

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss "lm"; see `BlipPretrain.forward`."""
        raise NotImplementedError

    def export_captioner(self, folder: Path, vocabulary: Path) -> None:
        """As `BlipPretrain.export_captioner`."""
        raise NotImplementedError


class FilterFinetune(nn.Module):
    """ITC and ITM."""

    @classmethod
    def load(cls, config: FilterConfig, *, vocabulary: Path, seed: int) -> FilterFinetune:
        """As `BlipPretrain.load`; `vocabulary` may be the folder it starts from."""
        raise NotImplementedError

    def check_batch(self, images: int, ranks: int) -> None:
        """As `BlipPretrain.check_batch`."""
        raise NotImplementedError

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The losses "itc" and "itm"; see `BlipPretrain.forward`."""
        raise NotImplementedError

    def export_filter(self, folder: Path, vocabulary: Path) -> None:
        """As `BlipPretrain.export_filter`."""
        raise NotImplementedError
