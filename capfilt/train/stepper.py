"""One step of the optimiser: passes forward and back, on all ranks together.

All randomness of a pass (dropout, drop path) comes from a generator seeded by (seed, step, pass,
rank), so that a checkpoint needs no random states and a resumed training repeats its losses. One
small tensor goes round the ranks per step: the losses, and whether a rank was asked to stop.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capfilt.data.batch import Batch
from capfilt.errors import TrainingError
from capfilt.train.config import TrainConfig
from capfilt.train.memory import enough_memory
from capfilt.train.optimiser import Optimiser
from capfilt.train.ranks import Ranks


@dataclass(frozen=True)
class Step:
    """What a step gave, the same on every rank but for `waited_s`."""

    losses: dict[str, float]  # mean over ranks and passes
    grad_norm: float
    is_stopping: bool  # a rank was asked to
    waited_s: float  # for images


class Stepper:
    """A model and its optimiser at work."""

    def __init__(self, model: nn.Module, config: TrainConfig, ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks
        self._passes = config.loop.accumulate
        precision = config.loop.precision
        on_cuda = ranks.device.type == "cuda"
        self._is_bf16 = precision == "bf16" or (precision == "auto" and on_cuda)
        self.model = model.to(ranks.device).train()
        self.optimiser = Optimiser(self.model, config.optimiser)
        self._distributed: nn.Module | None = None

    def step(self, batches: Iterator[Batch], step: int, lr: float, *, stop: bool) -> Step:
        """Take step `step` (from 0) at a learning rate.

        Args:
            batches: Of this rank, one per pass.
            step: Counted from 0.
            lr: Of this step.
            stop: Whether this rank was asked to stop.

        Raises:
            TrainingError: A loss or a gradient is not finite (the weights are as before the step);
                memory is short.
        """
        waited_s, keys, total = 0.0, [], None
        with enough_memory(self._config.loop, self._ranks.count):
            for number in range(self._passes):
                began = time.monotonic()
                batch = next(batches)
                waited_s += time.monotonic() - began
                keys += batch.keys
                names, losses = self._pass(batch, step, number)
                total = losses if total is None else total + losses
            assert total is not None
            norm = self.optimiser.gradient_norm()
            own, is_stopping = total / self._passes, torch.tensor([float(stop)])
            message = torch.cat([own, is_stopping.to(own)])
            *means, stopping, grad_norm = torch.cat(
                [self._ranks.mean(message), norm.float().reshape(1)]
            ).tolist()
            if not all(map(math.isfinite, [*means, grad_norm])):
                self._refuse(dict(zip(names, means, strict=True)), grad_norm, own, step, keys)
            self.optimiser.step(lr, norm)
        return Step(dict(zip(names, means, strict=True)), grad_norm, stopping > 0, waited_s)

    def _pass(self, batch: Batch, step: int, number: int) -> tuple[list[str], Tensor]:
        """Losses by name; their gradients are added to the parameters'."""
        model = self._wrapped()
        is_last = number + 1 == self._passes
        alone = isinstance(model, DistributedDataParallel) and not is_last
        waits: AbstractContextManager[None] = model.no_sync() if alone else nullcontext()  # type: ignore[operator]
        torch.manual_seed(_seed(self._config.seed, step, number, self._ranks.rank))
        device = self._ranks.device
        with waits:
            batch = batch.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=self._is_bf16):
                losses = model(batch, step)
            stacked = torch.stack([loss.float() for loss in losses.values()])
            (stacked.sum() / self._passes).backward()  # type: ignore[no-untyped-call]
        return list(losses), stacked.detach()

    def _wrapped(self) -> nn.Module:
        """The model as the ranks train it together; made late, when its weights are there."""
        if self._distributed is None:
            self._distributed = self.model
            if self._ranks.count > 1:
                on_cuda = self._ranks.device.type == "cuda"
                with warnings.catch_warnings():  # of a new name that torch 2.11 does not have
                    warnings.simplefilter("ignore", FutureWarning)
                    self._distributed = DistributedDataParallel(
                        self.model,
                        device_ids=[self._ranks.device] if on_cuda else None,
                        broadcast_buffers=False,  # queues are equal on all ranks by themselves
                        gradient_as_bucket_view=True,
                    )
        return self._distributed

    def _refuse(
        self, losses: dict[str, float], norm: float, own: Tensor, step: int, keys: list[str]
    ) -> None:
        """Stop before the weights are spoilt, naming the images."""
        is_mine = not bool(own.isfinite().all()) or all(map(math.isfinite, losses.values()))
        suspects = [key for of_rank in self._ranks.gather(keys * is_mine) for key in of_rank]
        values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        more = f" and {len(suspects) - 8} more" if len(suspects) > 8 else ""
        raise TrainingError(
            f"step {step + 1}: a loss or gradient is not finite ({values}, gradient {norm:g}) "
            f"with the images {', '.join(suspects[:8])}{more}"
        )


def _seed(*numbers: int) -> int:
    text = "/".join(map(str, numbers))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
