"""Time as people read it."""

from __future__ import annotations

import re

from capfilt.errors import ConfigError

_PARTS = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def duration(seconds: float) -> str:
    """Seconds as people write them: "42s", "3m 05s", "2h 10m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def seconds(text: str) -> float:
    """What "90s", "30m" or "1h30m" means.

    Raises:
        ConfigError: It is not written so.
    """
    found = _PARTS.fullmatch(text)
    if not text or found is None:
        raise ConfigError(f"{text!r} is no time: write it as 90s, 30m or 1h30m")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + rest
