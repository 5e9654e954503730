"""Where a model works: on which device, in which dtype, and whether it fits there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from capfilt.errors import ModelError
from capfilt.models.linear import prepare_for_inference

Precision = Literal["auto", "fp32", "bf16"]
Model = TypeVar("Model", bound=nn.Module)

GIB = 2**30


def target(precision: Precision, device: str | None) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to work in; "auto" is bf16 on CUDA and fp32 on a CPU.

    bf16 rather than fp16 for every model: it has fp32's range, without which FlanT5 overflows.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if precision == "auto":
        precision = "bf16" if where.type == "cuda" else "fp32"
    return where, torch.bfloat16 if precision == "bf16" else torch.float32


def place(model: Model, precision: Precision, device: str | None) -> Model:
    """Move a model to where it works, freeze it there and make it fast; see `target`."""
    where, dtype = target(precision, device)
    model = model.to(device=where, dtype=dtype).eval().requires_grad_(False)
    prepare_for_inference(model)
    return model


def check_fits(
    source: str, weights: Iterable[Path], precision: Precision, device: str | None
) -> None:
    """Refuse a checkpoint whose weights alone are more than its device has room for.

    Args:
        source: Names the checkpoint in the error.
        weights: Its safetensors files, of which the headers are read.
        precision: As in `target`.
        device: As in `target`.

    Raises:
        ModelError: It does not fit.
    """
    where, dtype = target(precision, device)
    needed, free = sum(size_bytes(path, dtype) for path in weights), free_bytes(where)
    if needed > free:
        name = (
            torch.cuda.get_device_name(where) if where.type == "cuda" else "this machine's memory"
        )
        raise ModelError(
            f"{source}: its weights take {needed / GIB:.1f} GiB in {str(dtype)[6:]}, but {where} "
            f"({name}) has {free / GIB:.1f} GiB left: give a smaller checkpoint, or a worker more "
            "of a GPU (--gpus-per-worker 1)"
        )


def size_bytes(path: Path, dtype: torch.dtype) -> int:
    """What the tensors of a safetensors file take in memory in `dtype`.

    Raises:
        ModelError: The file is damaged.
    """
    count = 0
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                elements = 1
                for side in file.get_slice(name).get_shape():
                    elements *= side
                count += elements
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({error}): download or copy it again") from None
    return count * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """What a device has left; of a CPU, all of the machine's memory."""
    if device.type != "cuda":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
