"""What a stage puts together, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from capfilt.data.batch import Batch


class Data(Protocol):
    """Batches of this rank, the same for the same seed, rank, number of ranks and position."""

    @property
    def steps_per_epoch(self) -> float: ...

    @property
    def fingerprint(self) -> str:
        """Of everything that decides a batch."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Examples that could not be read so far, by reason."""

    def batches(self, start: int) -> Iterator[Batch]:
        """From the batch of this number on, for ever."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Training:
    """A model, its data, and what is made of it at the end.

    The model gives losses by name for (batch, step); see `capfilt.train.blip`.
    """

    model: nn.Module
    data: Data
    exports: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)  # by role


_MAPPINGS = ("losses", "left_out", "exports")


@dataclass(frozen=True)
class Summary:
    """What came of a training. Plain data: it travels between processes."""

    stage: str
    out: str
    steps: int
    steps_before: int  # by earlier calls
    epochs: float
    losses: Mapping[str, float]  # of the last step
    seconds: float  # of this call
    images: int  # of this call
    left_out: Mapping[str, int]  # examples of this call that could not be read, by reason
    exports: Mapping[str, str]  # folders by role

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), **{n: dict(vars(self)[n]) for n in _MAPPINGS}}
