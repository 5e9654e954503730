"""What a person sees of a run while it works: a live block on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text as Line

from capfilt.record import Source, Verdict
from capfilt.tally import Tally

PLAIN_INTERVAL_S = 10.0


class Progress:
    """Shows shards, images, images/s, kept share by source, noise ratio, failures and time left.

    The finished shards' counts are kept here; those in flight are given at each `show`.
    """

    def __init__(self, *, shards: int, live: bool | None = None) -> None:
        self.tally = Tally()
        self.shards_done = 0
        self.shards_failed = 0
        self._shards = shards
        self._started = time.monotonic()
        self._shown_at = self._started
        self._most_images = 0
        is_terminal = sys.stderr.isatty() and sys.stdout.isatty()
        console = Console(stderr=True)
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True)
            if (is_terminal if live is None else live)
            else None
        )

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

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def show(self, in_flight: Tally) -> None:
        """Bring the display up to date; a plain line comes every `PLAIN_INTERVAL_S`."""
        now = Tally()
        now.merge(self.tally)
        now.merge(in_flight)
        if self._live:
            self._live.update(self._block(now))
        elif time.monotonic() - self._shown_at >= PLAIN_INTERVAL_S:
            self._shown_at = time.monotonic()
            print(self._line(now), file=sys.stderr, flush=True)

    def _facts(self, now: Tally) -> dict[str, str]:
        # A shard that just ended may be missing from both counts for a moment.
        self._most_images = max(self._most_images, now.read)
        ended = self.shards_done + self.shards_failed
        left = (self._shards - ended) * self.seconds / ended if ended else None
        facts = {
            "shards": f"{ended:,}/{self._shards:,}",
            "images": f"{self._most_images:,}",
            "images/s": f"{self._most_images / max(self.seconds, 1e-9):,.1f}",
        }
        for source in Source:
            share = now.kept_share(source)
            if share is not None:
                facts[f"{source} kept"] = f"{share:.1%}"
        if now.noise_ratio is not None:
            facts["noise ratio"] = f"{now.noise_ratio:.1%}"
        failed = now.samples[Verdict.FAILED]
        facts["failed"] = f"{failed:,} images, {self.shards_failed:,} shards"
        facts["time left"] = "..." if left is None else duration(left)
        return facts

    def _line(self, now: Tally) -> str:
        return "capfilt: " + " | ".join(f"{name} {v}" for name, v in self._facts(now).items())

    def _block(self, now: Tally) -> RenderableType:
        facts = self._facts(now)
        table = Table.grid(padding=(0, 3))
        names, values = list(facts), list(facts.values())
        table.add_row(*(Line(name, style="dim") for name in names))
        table.add_row(*values)
        ended = self.shards_done + self.shards_failed
        return Group(ProgressBar(total=self._shards, completed=ended, width=72), table)


def duration(seconds: float) -> str:
    """Seconds as people write them: "42s", "3m 05s", "2h 10m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
