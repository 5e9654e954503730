"""The wish to stop: Ctrl-C, SIGTERM, or a file for processes that signals do not reach."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from capfilt.sigterm import Echo

FILE = ".stop"
_LOOK_EVERY_S = 1.0


class Stop:
    """Takes the first signal as a wish, to be granted after the step; a second ends at once.

    The echo of a SIGTERM is no second one (`capfilt.sigterm`).
    """

    def __init__(self, out: Path) -> None:
        self._file = out / FILE
        self._looked_at = 0.0
        self._wanted = False
        self._before: dict[int, Any] = {}
        self._echo = Echo()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def wanted(self) -> bool:
        if not self._wanted and time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            self._wanted = self._file.exists()
        return self._wanted

    def pass_on(self) -> None:
        """Tell the processes that look for the file."""
        self._file.touch()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and self._echo.is_heard():
            return
        if self._wanted:
            raise KeyboardInterrupt
        self._wanted = True
