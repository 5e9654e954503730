from __future__ import annotations

import pytest

from capfilt.train.meter import Meter


def test_meter_leaves_the_first_slow_step_out() -> None:
    now = 0.0
    meter = Meter(8, clock=lambda: now)
    meter.start()
    for seconds, waited in ((10.0, 9.0), (2.0, 0.5), (2.0, 0.5)):
        now += seconds
        meter.step(waited)
        if now == 10.0:
            assert meter.samples_per_s == pytest.approx(0.8)
    assert meter.step_s == pytest.approx(2.0)
    assert meter.samples_per_s == pytest.approx(4.0)
    assert meter.waiting == pytest.approx(0.25)
