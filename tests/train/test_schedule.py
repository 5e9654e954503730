from __future__ import annotations

import math

import pytest

from capfilt.train.config import ScheduleConfig
from capfilt.train.schedule import Schedule


def test_schedule_of_pretraining_is_the_codes() -> None:
    schedule = Schedule(ScheduleConfig(), lr=3e-4, steps_per_epoch=5000, steps=100_000)
    assert schedule.at(0) == 1e-6
    assert schedule.at(1500) == pytest.approx((1e-6 + 3e-4) / 2)
    assert schedule.at(3000) == schedule.at(4999) == 3e-4
    assert schedule.at(5000) == pytest.approx(3e-4 * 0.9)
    assert schedule.at(99_999) == pytest.approx(3e-4 * 0.9**19)


def test_schedule_by_factor_stops_at_its_lowest() -> None:
    schedule = Schedule(ScheduleConfig(warmup_steps=0), lr=3e-4, steps_per_epoch=1, steps=100)
    assert schedule.at(99) == 1e-6


def test_schedule_cosine_changes_once_per_epoch() -> None:
    config = ScheduleConfig(decay="cosine", min_lr=0.0, warmup_steps=0)
    schedule = Schedule(config, lr=1e-5, steps_per_epoch=10.0, steps=50)
    expected = [1e-5 * 0.5 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5)]
    assert [schedule.at(10 * epoch) for epoch in range(5)] == pytest.approx(expected)
    assert schedule.at(19) == schedule.at(10)


def test_schedule_cosine_by_step_falls_within_an_epoch() -> None:
    """Of BLIP-2's second stage over 129 million images: 80,000 steps are 1.2 epochs."""
    config = ScheduleConfig(decay="cosine_by_step", min_lr=5e-5, warmup_steps=2000, warmup_lr=1e-6)
    schedule = Schedule(config, lr=1e-4, steps_per_epoch=129e6 / 1920, steps=80_000)
    assert schedule.at(1000) == pytest.approx((1e-6 + 1e-4) / 2)
    for step in (2000, 20_000, 67_187, 67_188, 79_999):
        wave = (1 + math.cos(math.pi * step / 80_000)) / 2
        assert schedule.at(step) == pytest.approx(5e-5 + (1e-4 - 5e-5) * wave)
    assert schedule.at(40_000) == pytest.approx(7.5e-5)


def test_schedule_epochs_of_a_fraction_of_a_step_begin_where_they_end() -> None:
    config = ScheduleConfig(warmup_steps=0)
    for steps in range(1, 500):  # of seven epochs; 29 / (29 / 7) is below 7
        schedule = Schedule(config, lr=1.0, steps_per_epoch=steps / 7, steps=7 * steps)
        assert schedule.at(steps) == pytest.approx(0.9**7)


def test_schedule_warm_up_longer_than_an_epoch_stays_below_the_decay() -> None:
    config = ScheduleConfig(factor=0.1, warmup_steps=20, warmup_lr=0.0)
    schedule = Schedule(config, lr=1.0, steps_per_epoch=10, steps=100)
    assert schedule.at(9) == pytest.approx(0.45)
    assert schedule.at(15) == pytest.approx(0.1)
