"""What a person sees of a run while it works: a live block on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text as Line

from capfilt.duration import duration
from capfilt.logs import about, is_json
from capfilt.record import Source, Verdict
from capfilt.tally import Tally

PLAIN_INTERVAL_S = 10.0

log = logging.getLogger("capfilt")


class Progress:
    """Shows shards, images, images/s, kept share by source, noise ratio, failures and time left.

    The finished shards' counts are kept here; those in flight are given at each `show`.
    """

    def __init__(self, *, shards: int, live: bool, noise_ratio: bool = True) -> None:
        self.tally = Tally()
        self.shards_done = 0
        self.shards_failed = 0
        self.shards = shards  # more, as they arrive
        self._noise_ratio = noise_ratio
        self._started = time.monotonic()
        self._working_since = self._started
        self._shown_at = self._started
        self._most_images = 0
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

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def ended(self) -> int:
        """Shards that are done or given up."""
        return self.shards_done + self.shards_failed

    def show(self, in_flight: Tally) -> None:
        """Bring the display up to date; a plain line comes every `PLAIN_INTERVAL_S`."""
        now = Tally()
        now.merge(self.tally)
        now.merge(in_flight)
        if self._live:
            self._live.update(self._block(now))
        elif time.monotonic() - self._shown_at >= PLAIN_INTERVAL_S:
            self._shown_at = time.monotonic()
            if is_json():
                log.info("progress", extra=about(**self._facts(now)))
            else:
                print(self._line(now), file=sys.stderr, flush=True)

    def _speed(self, now: Tally) -> list[str]:
        # A shard that just ended may be missing from both counts for a moment.
        self._most_images = max(self._most_images, now.read)
        if not self._most_images:
            self._working_since = time.monotonic()  # models are still being loaded
        working_s = time.monotonic() - self._working_since
        ended = self.ended
        left = duration((self.shards - ended) * working_s / ended) if ended else "..."
        return [
            f"{ended:,}/{self.shards:,} shards",
            f"{self._most_images:,} images",
            f"{self._most_images / max(working_s, 1.0):,.1f} images/s",
            f"{left} left",
        ]

    def _quality(self, now: Tally) -> list[str]:
        shares = ((source, now.kept_share(source)) for source in Source)
        facts = [f"{source} {share:.1%} kept" for source, share in shares if share is not None]
        if self._noise_ratio and now.noise_ratio is not None:
            facts.append(f"noise ratio {now.noise_ratio:.1%}")
        facts.append(f"{now.samples[Verdict.FAILED]:,} images failed")
        if self.shards_failed:
            facts.append(f"{self.shards_failed:,} shards failed")
        return facts

    def _facts(self, now: Tally) -> dict[str, Any]:
        return {
            "shards": self.shards,
            "shards_done": self.shards_done,
            "shards_failed": self.shards_failed,
            "seconds": round(self.seconds, 1),
            **now.to_dict(),
        }

    def _line(self, now: Tally) -> str:
        return "capfilt: " + " | ".join(self._speed(now) + self._quality(now))

    def _block(self, now: Tally) -> RenderableType:
        first = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self.shards, completed=self.ended, width=20)
        first.add_row(bar, " · ".join(self._speed(now)))
        return Group(first, Line(" · ".join(self._quality(now)), style="dim"))
