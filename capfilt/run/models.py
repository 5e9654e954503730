"""The models of a run: identified by its driver, loaded by each of its workers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from capfilt.config import NONE, RunConfig
from capfilt.errors import ModelError
from capfilt.record import ModelIdentity
from capfilt.run.task import Task

if TYPE_CHECKING:  # it brings torch, which a driver does without
    from capfilt.run.annotator import Captioner, Filter


def inspect_models(config: RunConfig) -> dict[str, ModelIdentity]:
    """Which weights the config's checkpoints hold, by role; nothing is loaded onto a device.

    Raises:
        ModelError: A checkpoint is missing, of another class, or unsafe to load.
    """
    from capfilt.models.checkpoint import inspect

    found = {}
    if config.captioner != NONE:
        found["captioner"] = inspect(config.captioner, "captioner")
    if config.filter != NONE:
        found["filter"] = inspect(config.filter, "filter")
    return found


def load_models(task: Task) -> tuple[Captioner | None, Filter | None]:
    """Captioner and filter, on this process's GPU where it has one; None for one that is off.

    Raises:
        ModelError: A checkpoint cannot be loaded, or is not the one that the driver saw.
    """
    from capfilt.models.load import load_captioner, load_filter

    config, precision = task.config, task.config.compute.precision
    captioner = filter_ = None
    if "captioner" in task.models:
        captioner = load_captioner(
            config.captioner, config.captions, seed=config.seed, precision=precision
        )
        _check_same("captioner", captioner.identity, task.models["captioner"])
    if "filter" in task.models:
        filter_ = load_filter(config.filter, config.scoring, precision=precision)
        _check_same("filter", filter_.identity, task.models["filter"])
    return captioner, filter_


def _check_same(role: str, found: ModelIdentity, expected: ModelIdentity) -> None:
    if found.sha256 != expected.sha256:
        raise ModelError(
            f"{role} {expected.source}: on node {socket.gethostname()} there are other weights "
            f"(sha256 {found.sha256[:12]}) than the driver's ({expected.sha256[:12]}); every node "
            "must see the same checkpoint"
        )
