from __future__ import annotations

import pytest

from capfilt.duration import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (185, "3m 05s"), (3599.6, "1h 00m"), (7800, "2h 10m")],
)
def test_duration_reads_as_people_write(seconds: float, text: str) -> None:
    assert duration(seconds) == text
