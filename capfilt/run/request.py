"""What a person asks of a run, made definite: absolute places, known weights, a work order.

Nothing is loaded onto a device here, so a wrong request costs nobody a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from capfilt.config import RunConfig
from capfilt.io import files
from capfilt.io.likeness import EvaluationSet
from capfilt.record import ModelIdentity
from capfilt.run.models import inspect_models
from capfilt.run.task import Task
from capfilt.run.where import Where


def absolute(config: RunConfig, where: Where) -> tuple[RunConfig, Where]:
    """Local paths as every worker finds them, whatever its current folder."""
    models: dict[str, Any] = {
        role: files.absolute(source)
        for role, source in (("captioner", config.captioner), ("filter", config.filter))
        if Path(source).is_dir()  # else a hub id, or none
    }
    exclude = tuple(files.absolute(place) for place in config.images.exclude)
    models["images"] = replace(config.images, exclude=exclude)
    where = replace(
        where,
        input=files.absolute(where.input),
        output=files.absolute(where.output),
        human=where.human and files.absolute(where.human),
        human_images=where.human_images and files.absolute(where.human_images),
    )
    return replace(config, **models), where


def task_of(config: RunConfig, output_url: str) -> Task:
    """The work order of a run, from a config whose paths are absolute.

    Raises:
        ModelError: A checkpoint is missing, of another class, or unsafe to load.
        ConfigError, InputError: An evaluation set cannot be read.
    """
    models = inspect_models(config)
    excluded = EvaluationSet.load(config.images.exclude) if config.images.exclude else None
    return Task(_settled(config, models), models, output_url, excluded)


def _settled(config: RunConfig, models: Mapping[str, ModelIdentity]) -> RunConfig:
    """The config with the prompt that the captioner brings, where none is given.

    So the fingerprint and the manifest say what was done.
    """
    if config.captions.prompt is not None:
        return config
    from capfilt.models.checkpoint import CAPTIONER, PROMPTS

    architecture = models["captioner"].architecture if "captioner" in models else CAPTIONER
    return replace(config, captions=replace(config.captions, prompt=PROMPTS[architecture]))
