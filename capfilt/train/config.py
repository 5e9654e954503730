"""What a training does: frozen sections, each with its checks. Defaults are pre-training's.

A stage file in `pipelines/` gives its own defaults. Which keys only say how a training is watched
and kept, and may change when it is resumed, is `FREE`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

from capfilt.data.config import DataConfig
from capfilt.schema import Tree, check, differences, merge, to_dict
from capfilt.train.blip import BlipConfig, CaptionerConfig, FilterConfig
from capfilt.train.blip2 import RepresentConfig
from capfilt.train.blip2_generate import GenerateConfig

FREE = (
    "cache_features",
    "data.workers",
    "loop.save_every",
    "loop.keep",
    "loop.log_every",
    "loop.wandb",
)
# What older records do not name was so.
_BEFORE: Tree = {"optimiser": {"decay_all": True}}


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW.

    Source: BLIP, arXiv:2201.12086, section 4.1; its code, `pretrain.py`; BLIP-2's code,
    `base_model.py`.
    """

    lr: float = 3e-4
    weight_decay: float = 0.05
    decay_all: bool = True  # biases and norms, too, as in BLIP's code; BLIP-2's spares them
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 0.0  # largest norm of all gradients together; 0 is off, as in the paper

    def __post_init__(self) -> None:
        check(self.lr > 0, f"lr must be above 0, is {self.lr}")
        check(self.weight_decay >= 0, f"weight_decay must be 0 or more, is {self.weight_decay}")
        check(all(0 <= b < 1 for b in self.betas), f"betas must be in [0, 1), are {self.betas}")
        check(self.eps > 0, f"eps must be above 0, is {self.eps}")
        check(self.clip_norm >= 0, f"clip_norm must be 0 (off) or more, is {self.clip_norm}")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes on from `optimiser.lr`: once per epoch, as in BLIP's code, or not.

    "cosine_by_step" is for BLIP-2's stages, which see their images little more than once: by epochs
    their rate would fall once or not at all.

    Source: BLIP's code (`utils.py`); the paper's own factor is 0.85.
    """

    decay: Literal["factor", "cosine", "cosine_by_step"] = "factor"
    factor: float = 0.9  # per epoch
    min_lr: float = 1e-6
    warmup_steps: int = 3000
    warmup_lr: float = 1e-6  # of the first step

    def __post_init__(self) -> None:
        check(0 < self.factor <= 1, f"factor must be in (0, 1], is {self.factor}")
        check(self.min_lr >= 0, f"min_lr must be 0 or more, is {self.min_lr}")
        check(self.warmup_steps >= 0, f"warmup_steps must be 0 or more, is {self.warmup_steps}")
        check(self.warmup_lr >= 0, f"warmup_lr must be 0 or more, is {self.warmup_lr}")


@dataclass(frozen=True)
class LoopConfig:
    """How long, in which batches, and how it is watched."""

    epochs: int = 20
    steps: int = 0  # of the optimiser, instead of `epochs`; 0 is off
    batch_size: int = 2880  # images of one step, of all ranks and passes together
    accumulate: int = 1  # passes whose gradients make one step
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on CUDA, fp32 on CPU
    save_every: int = 1000  # steps between checkpoints
    keep: int = 2  # checkpoints; older ones are removed
    log_every: int = 20  # steps between lines of the log
    wandb: str = ""  # a project of Weights & Biases; empty is off

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "save_every", "keep", "log_every"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, is {getattr(self, name)}")
        check(self.steps >= 0, f"steps must be 0 (off) or more, is {self.steps}")
        check(
            self.batch_size % self.accumulate == 0,
            f"batch_size is {self.batch_size}, no multiple of accumulate ({self.accumulate})",
        )


@dataclass(frozen=True)
class TrainConfig:
    """What every stage has; its own class adds `model`."""

    seed: int = 0  # of weights, data order, augmentation, dropout and negatives
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        check(self.seed >= 0, f"seed must be 0 or more, is {self.seed}")


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Of `blip_pretrain`."""

    vocabulary: str = ""  # BERT's vocab.txt or a tokenizer's folder; empty: model.text.weights
    model: BlipConfig = field(default_factory=BlipConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.data.image_size, "model.image.image_size", self.model.image.image_size)


@dataclass(frozen=True)
class CaptionerFinetuneConfig(TrainConfig):
    """Of `blip_finetune_captioner`."""

    model: CaptionerConfig = field(default_factory=CaptionerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.data.image_size, "model.image_size", self.model.image_size)


@dataclass(frozen=True)
class FilterFinetuneConfig(TrainConfig):
    """Of `blip_finetune_filter`."""

    model: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.data.image_size, "model.image_size", self.model.image_size)


@dataclass(frozen=True)
class Blip2Stage1Config(TrainConfig):
    """Of `blip2_stage1`."""

    vocabulary: str = ""  # BERT's vocab.txt or a tokenizer's folder; empty: model.qformer.weights
    cache_features: str = ""  # folder for what the frozen encoder makes of images; empty: off
    model: RepresentConfig = field(default_factory=RepresentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.data.image_size, "model.image.image_size", self.model.image.image_size)
        _check_cache(self.cache_features, self.data)


@dataclass(frozen=True)
class Blip2Stage2Config(TrainConfig):
    """Of `blip2_stage2` and `blip2_finetune_captioner`."""

    cache_features: str = ""  # folder for what the frozen encoder makes of images; empty: off
    model: GenerateConfig = field(default_factory=GenerateConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.data.image_size, "model.image_size", self.model.image_size)
        _check_cache(self.cache_features, self.data)
        check(
            not (self.cache_features and self.model.train_image),
            "cache_features is for an image encoder that does not learn: model.train_image is true",
        )


def decisive_differences(old: Tree, new: TrainConfig) -> list[str]:
    """What of a config as saved differs from another in a way that changes the training."""
    whole: Tree = copy.deepcopy(_BEFORE)
    merge(whole, old)
    found = differences(whole, to_dict(new))
    return [line for line in found if line.partition(":")[0] not in FREE]


def _check_cache(folder: str, data: DataConfig) -> None:
    is_alike = data.augment.fixed or not data.augment.enabled
    check(
        not folder or is_alike,
        "cache_features needs images that look alike each time: set data.augment.fixed=true",
    )


def _check_side(side: int, key: str, other: int) -> None:
    check(side == other, f"data.image_size is {side} but {key} is {other}: set both alike")
