"""One step as the log has it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """What is known after a step."""

    step: int  # steps done
    steps: int  # in all
    epoch: float  # epochs done
    epochs: float  # in all
    loss: float  # the sum of `losses`
    losses: dict[str, float]  # of this step, by name, mean over ranks and passes
    lr: float
    grad_norm: float
    samples_per_s: float  # images, of all ranks, over the last steps
    waiting: float  # share of time that the first rank waited for data
    left_s: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def scalars(self) -> dict[str, float]:
        """For plots."""
        parts = {f"loss/{name}": value for name, value in self.losses.items()}
        names = ("loss", "lr", "grad_norm", "samples_per_s", "waiting", "epoch")
        return parts | {name: getattr(self, name) for name in names}
