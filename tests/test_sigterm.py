"""A SIGTERM and its echo."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt import sigterm
from capfilt.train.stop import Stop


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_echo_does_not_interrupt_what_follows_an_interrupt() -> None:
    sigterm.as_interrupt()
    with pytest.raises(KeyboardInterrupt):
        tell()
    tell()


def test_sigterm_long_after_another_interrupts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sigterm, "ECHO_S", 0.0)
    sigterm.as_interrupt()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tell()


def test_training_is_stopped_after_its_step_though_it_is_told_twice(tmp_path: Path) -> None:
    with Stop(tmp_path) as stop:
        tell()
        tell()
        assert stop.wanted


def test_training_ends_at_once_when_a_person_insists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stop(tmp_path):
        tell()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(sigterm, "ECHO_S", 0.0)
    with Stop(tmp_path):
        tell()
        with pytest.raises(KeyboardInterrupt):
            tell()
