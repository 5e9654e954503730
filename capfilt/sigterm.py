"""SIGTERM, which comes twice: a script hands it on, and who ends a job tells all its processes.

Ray's job server, Airflow and Slurm's scancel each signal the script and the command that it waits
for, so the command hears its own and the script's a moment later. The second may not end what the
first one has begun: shards that are given back, a last checkpoint.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

ECHO_S = 5.0  # in which another one is the same


class Echo:
    """Tells a SIGTERM from the echo of the one before."""

    def __init__(self) -> None:
        self._heard_at: float | None = None

    def is_heard(self) -> bool:
        """To be called at each; whether it is an echo."""
        now = time.monotonic()
        if self._heard_at is not None and now - self._heard_at < ECHO_S:
            return True
        self._heard_at = now
        return False


def as_interrupt() -> None:
    """Take SIGTERM as Ctrl-C from now on, and its echo as nothing. In the main thread."""
    echo = Echo()

    def heard(number: int, frame: FrameType | None) -> None:
        if not echo.is_heard():
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, heard)
