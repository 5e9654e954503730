"""The learning rate as a pure function of the step.

Source: BLIP's code, `utils.py` (`warmup_lr_schedule`, `step_lr_schedule`, `cosine_lr_schedule`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from capfilt.train.config import ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step."""

    config: ScheduleConfig
    lr: float  # at its highest
    steps_per_epoch: float
    steps: int  # of the whole training

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0.

        The decay goes down once per epoch, or at each step where the config says so. During the
        warm-up the rate is on the line from `warmup_lr` to `lr`, or on the decay where that is
        lower (warm-ups longer than an epoch).
        """
        decayed = self._decayed(step)
        if step >= self.config.warmup_steps:
            return decayed
        low = self.config.warmup_lr
        return min(decayed, low + (self.lr - low) * step / self.config.warmup_steps)

    def _decayed(self, step: int) -> float:
        # A step that begins an epoch may come out a last digit below it.
        epoch = math.floor(step / self.steps_per_epoch + 1e-9)
        if self.config.decay == "factor":
            return max(self.config.min_lr, self.lr * self.config.factor**epoch)
        if self.config.decay == "cosine":
            done = epoch / (self.steps / self.steps_per_epoch)
        else:
            done = step / self.steps
        wave = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.config.min_lr + (self.lr - self.config.min_lr) * wave
