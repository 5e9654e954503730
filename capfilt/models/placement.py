"""Where a model works: on which device, in which dtype, and whether it fits there."""

from __future__ import annotations

import os
import re
import resource
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
        on_cuda = where.type == "cuda"
        name = torch.cuda.get_device_name(where) if on_cuda else "this machine's memory"
        more = "let fewer processes share the GPU" if on_cuda else "this process more memory"
        raise ModelError(
            f"{source}: its weights take {needed / GIB:.1f} GiB in {str(dtype)[6:]}, but {where} "
            f"({name}) has {free / GIB:.1f} GiB left: give a smaller checkpoint, or {more}"
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
    """What a device has left; of a CPU, what the system and limits leave this process.

    Limits are those of control groups, a container's, and on its own memory (`--memory-limit`).
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    rooms = [_number("MemAvailable", Path("/proc/meminfo")), *_free_of_groups()]
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY:
        rooms.append(limit - (_number("VmData", Path("/proc/self/status")) or 0))
    all_of_it = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min(all_of_it, *(room for room in rooms if room is not None)))


def _free_of_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What is left of each limited control group (version 2) that this process is in."""
    named = re.search(r"^0::/(.*)$", _read(own), re.MULTILINE)
    lowest = root / named[1] if named else root
    rooms = []
    for group in (lowest, *lowest.parents):
        limit, used = _read(group / "memory.max"), _read(group / "memory.current")
        if group.is_relative_to(root) and limit.strip().isdigit() and used:
            unused = (
                _number("inactive_file", group / "memory.stat") or 0
            )  # goes where room is short
            rooms.append(int(limit) - int(used) + unused)
    return rooms


def _number(name: str, path: Path) -> int | None:
    """A line's number in bytes, of a file of the system; None where it says none."""
    found = re.search(rf"^{name}:?\s+(\d+)( kB)?$", _read(path), re.MULTILINE)
    return int(found[1]) * (1024 if found[2] else 1) if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # of another system, or version
        return ""
