"""What BLIP-2's stage files put together, besides `capfilt.train.parts`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from capfilt.data.loader import Loader
from capfilt.errors import ConfigError
from capfilt.models.checkpoint import Role, weight_files
from capfilt.models.placement import check_fits, target
from capfilt.train.blip2 import Blip2Represent
from capfilt.train.blip2_generate import Blip2Generate
from capfilt.train.config import Blip2Stage1Config, Blip2Stage2Config, TrainConfig
from capfilt.train.parts import resolved, start_folder
from capfilt.train.ranks import Ranks


def load_representative(
    config: Blip2Stage1Config, ranks: Ranks, vocabulary: Path
) -> Blip2Represent:
    """The model of stage 1.

    Raises:
        ConfigError: No image encoder is given.
        ModelError: A checkpoint cannot be loaded.
    """
    image = config.model.image
    if not image.weights:
        raise ConfigError(
            "model.image.weights is not set: give the folder or hub id of a CLIP, or of a BLIP-2 "
            "whose image encoder is to be read"
        )
    image = replace(image, weights=str(resolved("model.image.weights", image.weights)))
    return Blip2Represent.load(
        replace(config.model, image=image),
        vocabulary=vocabulary,
        seed=config.seed,
        dtype=_frozen_dtype(config, ranks),
    )


def load_generative(config: Blip2Stage2Config, ranks: Ranks, *, role: Role) -> Blip2Generate:
    """The model of stage 2 and of its finetuning.

    Args:
        config: Of the stage.
        ranks: Those who train.
        role: What it starts from where `model.start` is a training's output: the "filter" of
            stage 1, or the "captioner" of stage 2.

    Raises:
        ConfigError: A folder is missing.
        ModelError: A checkpoint cannot be loaded, or is larger than the device.
    """
    made_by = "blip2_stage1" if role == "filter" else "blip2_stage2"
    start = start_folder(config.model.start, role, made_by)
    language = config.model.language and str(resolved("model.language", config.model.language))
    largest, key = (language, "model.language") if language else (start, "model.start")
    if any(Path(largest).glob("*.safetensors")):
        weights = weight_files(Path(largest))
        check_fits(f"{key} {largest}", weights, config.loop.precision, str(ranks.device))
    return Blip2Generate.load(
        replace(config.model, start=str(start), language=language),
        seed=config.seed,
        dtype=_frozen_dtype(config, ranks),
    )


def keep_features(
    model: Blip2Represent | Blip2Generate,
    config: Blip2Stage1Config | Blip2Stage2Config,
    data: Loader,
) -> None:
    """Let a frozen image encoder keep what it makes of images, where a folder for it is given."""
    if config.cache_features:
        seen = (config.data.image_size, config.data.augment, config.seed, data.pictures)
        model.features.keep(Path(config.cache_features), *seen)


def _frozen_dtype(config: TrainConfig, ranks: Ranks) -> torch.dtype:
    """Of what does not learn: half precision on CUDA."""
    return target(config.loop.precision, str(ranks.device))[1]
