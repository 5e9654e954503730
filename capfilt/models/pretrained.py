"""transformers' own modules, filled with exactly the tensors of a checkpoint.

What a checkpoint lacks transformers draws at random, which it tells a log alone: such a CLIP would
score by chance, and another worker by another chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capfilt.errors import ModelError
from capfilt.models.layout import listed

_SLACK = 2**28  # numbers that a model may have beside its weights, as GPT-2's masks: 1 GiB of fp32


def fill_exactly(
    make: Callable[[Any], Any],
    config: Any,
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    prefix: str = "",
) -> Any:
    """A module of transformers on the CPU.

    Args:
        make: Of a config, the module of its class.
        config: Its sizes.
        tensors: By transformers' names.
        folder: Names the checkpoint in errors.
        dtype: Of the module.
        prefix: Of the tensors' names in the checkpoint, for errors.

    Raises:
        ModelError: A tensor is missing, surplus or misshapen. What is tied need be there once.
    """
    with torch.device("meta"):
        empty = make(config)
    _check_size(empty, tensors, folder)
    module, report = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported with the rest
    )
    for key, problem in (("missing_keys", "missing"), ("unexpected_keys", "not of this model")):
        if names := [prefix + name for name in sorted(report[key])]:
            raise ModelError(f"{folder}: tensor {listed(names)} {problem}")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"{folder}: tensor {prefix}{name} has shape {list(found)} but config.json makes it "
            f"{list(expected)}"
        )
    return module


def _check_size(empty: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a config that makes far more than there is, before any of it is allocated."""
    wanted = sum(x.numel() for x in (*empty.parameters(), *empty.buffers()))
    found = sum(x.numel() for x in tensors.values())
    if wanted > 2 * found + _SLACK:
        raise ModelError(
            f"{folder}: config.json makes a model of {wanted:,} numbers, but the weights have "
            f"{found:,}: they are of different checkpoints"
        )
