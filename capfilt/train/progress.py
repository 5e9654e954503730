"""What a person sees of a training: a live block on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from capfilt.duration import duration
from capfilt.train.row import Row

PLAIN_INTERVAL_S = 10.0
_SLOW_DATA = 0.1  # share of time that is worth a word


class Progress:
    """Shows steps, epochs, losses by name, lr, samples/s and time left."""

    def __init__(self, *, live: bool) -> None:
        self._shown_at = 0.0
        self._step = 0
        console = Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, row: Row) -> None:
        """Bring the display up to date; a plain line comes every `PLAIN_INTERVAL_S`."""
        if self._live:
            self._live.update(_block(row))
        elif row.step == self._step:
            return
        elif time.monotonic() - self._shown_at >= PLAIN_INTERVAL_S or row.step == row.steps:
            self._step = row.step
            self._shown_at = time.monotonic()
            sys.stderr.write(f"capfilt: {' | '.join(_speed(row) + _quality(row))}\n")
            sys.stderr.flush()


def _speed(row: Row) -> list[str]:
    facts = [
        f"step {row.step:,}/{row.steps:,}",
        f"epoch {row.epoch:.2f}/{row.epochs:.2f}".replace(".00", ""),
        f"{row.samples_per_s:,.1f} samples/s",
        f"{duration(row.left_s)} left",
    ]
    return [*facts, f"waiting for data {row.waiting:.0%}"] if row.waiting > _SLOW_DATA else facts


def _quality(row: Row) -> list[str]:
    facts = [f"{name} {value:.4f}" for name, value in row.losses.items()]
    if len(facts) > 1:
        facts.insert(0, f"loss {row.loss:.4f}")
    return [*facts, f"lr {row.lr:.2e}", f"gradient {row.grad_norm:.2f}"]


def _block(row: Row) -> RenderableType:
    first = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=row.steps, completed=row.step, width=20)
    first.add_row(bar, " · ".join(_speed(row)))
    return Group(first, Text(" · ".join(_quality(row)), style="dim"))
