"""Checkpoints: all that a training needs to go on as if it had never stopped.

    <out>/checkpoints/step-00001000/
        model.safetensors         parameters, momentum copies and queues
        optimiser.safetensors
        checkpoint.json           written last: step, ranks, config, sha256 of each file

Each file is built beside its place and published whole; without its `checkpoint.json` a folder is
not a checkpoint. Random numbers and the place in the data are functions of the seed, the step and
the rank, so the step is all there is to keep of them.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from capfilt.errors import CapfiltError, CommitError, ConfigError, ModelError
from capfilt.io import files
from capfilt.io.publish import publishing, write_bytes
from capfilt.io.store import storage_errors
from capfilt.train.optimiser import Optimiser

log = logging.getLogger("capfilt")

_MARK = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    step: int
    ranks: int
    data: str  # the data's fingerprint
    config: dict[str, Any]

    def load(self, model: nn.Module, optimiser: Optimiser) -> None:
        """Put its tensors where they belong.

        Raises:
            ModelError: It is of a model of other sizes.
        """
        _fill(model, load_file(self.folder / "model.safetensors"), str(self.folder))
        state = load_file(self.folder / "optimiser.safetensors")
        optimiser.load(state, str(self.folder))


class Checkpoints:
    """The checkpoints of an output folder, of which the last few are kept."""

    def __init__(self, out: Path, *, keep: int) -> None:
        self._folder = out / "checkpoints"
        self._keep = keep

    def folder(self, step: int) -> Path:
        """Where the checkpoint after so many steps lies."""
        return self._folder / f"step-{step:08d}"

    def last(self) -> Checkpoint | None:
        """The newest whole checkpoint; a damaged one is put aside with a warning."""
        for folder in reversed(self._folders()):
            try:
                return _read(folder)
            except CapfiltError as error:
                log.warning("%s; going on from the checkpoint before it", error)
                _put_aside(folder)
        return None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimiser: Optimiser,
        *,
        ranks: int,
        data: str,
        config: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, then remove those that are too many.

        Args:
            step: Steps done.
            model: What trains, with its queues and momentum copies.
            optimiser: Of it.
            ranks: How many trained.
            data: The data's fingerprint.
            config: Of the training, as a tree.

        Raises:
            CommitError: It cannot be written.
        """
        folder = self.folder(step)
        contents = {"model": unique_tensors(model), "optimiser": optimiser.tensors()}
        record: dict[str, Any] = {"step": step, "ranks": ranks, "data": data, "config": config}
        record["files"] = {}
        for name, tensors in contents.items():
            with publishing(str(folder / f"{name}.safetensors")) as publication:
                whole = {n: tensor.detach().contiguous() for n, tensor in tensors.items()}
                with storage_errors(publication.url, CommitError):
                    save_file(whole, publication.path)
            done = publication.published
            record["files"][f"{name}.safetensors"] = [done.size_bytes, done.sha256]
        write_bytes(str(folder / _MARK), (json.dumps(record, indent=1) + "\n").encode())
        for old in self._folders()[: -self._keep]:
            (old / _MARK).unlink(missing_ok=True)  # first: half a folder is no checkpoint
            shutil.rmtree(old)
        return folder

    def clean(self) -> None:
        """Remove what a killed process has left of checkpoints that it was writing or removing."""
        for folder in self._folder.glob("step-*[0-9]"):
            if not (folder / _MARK).exists():
                shutil.rmtree(folder)

    def check_space(self, size_bytes: int) -> None:
        """Refuse a disk that cannot hold the checkpoints that are kept, and one on its way.

        Raises:
            ConfigError: It cannot.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        there = sum(f.stat().st_size for f in self._folder.rglob("*.safetensors"))
        need = size_bytes * (self._keep + 1)
        free = shutil.disk_usage(self._folder).free
        if need > free + there:
            raise ConfigError(
                f"{self._folder}: {free / 1e9:,.1f} GB are free, but loop.keep={self._keep} "
                f"checkpoints of {size_bytes / 1e9:,.1f} GB and one on its way need "
                f"{need / 1e9:,.1f} GB"
            )

    def _folders(self) -> list[Path]:
        return sorted(mark.parent for mark in self._folder.glob(f"step-*[0-9]/{_MARK}"))


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a model's `state_dict` holds, each shared tensor under the first of its names."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


@torch.no_grad()
def _fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    own = unique_tensors(model)
    if wrong := sorted(own.keys() ^ tensors.keys()):
        raise ModelError(f"{where}: is of another model: only one of them has {wrong[0]}")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise ModelError(
                f"{where}: is of a model of another size: {name} has shape "
                f"{list(tensors[name].shape)} there and {list(tensor.shape)} here"
            )
        tensor.copy_(tensors[name])


def _read(folder: Path) -> Checkpoint:
    try:
        record = json.loads(files.read_bytes(str(folder / _MARK)))
        for name, (size_bytes, sha256) in record["files"].items():
            if files.digest(str(folder / name)) != (size_bytes, sha256):
                raise ModelError(f"{folder / name}: is damaged, not as it was written")
        facts = (record[name] for name in ("step", "ranks", "data", "config"))
        return Checkpoint(folder, *facts)
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{folder / _MARK}: is damaged, no record of a checkpoint") from None


def _put_aside(folder: Path) -> None:
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
