from __future__ import annotations

import logging

import pytest

from capfilt.bootstrap.agenda import Agenda


def test_parts_are_done_once_in_their_order_and_told_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("capfilt.bootstrap.agenda.time.monotonic", lambda: now)
    done = []

    def part(name: str, seconds: float, *, is_new: bool = True) -> bool:
        nonlocal now
        done.append(name)
        now += seconds
        return is_new

    agenda = Agenda()
    agenda.add("old", lambda: part("old", 1.0, is_new=False), kind="long")
    agenda.add("a", lambda: part("a", 100.0), kind="long")
    agenda.add("b", lambda: part("b", 10.0), kind="short")
    agenda.add("a", lambda: part("again", 7.0), kind="long")
    agenda.add("c", lambda: part("c", 200.0), kind="long")
    agenda.add("note", lambda: part("note", 0.0))
    agenda.add("d", lambda: part("d", 1.0), kind="long")
    with caplog.at_level(logging.INFO, logger="capfilt"):
        agenda.work()
    assert done == ["old", "a", "b", "c", "note", "d"]
    assert [record.getMessage() for record in caplog.records] == [
        "part 1 of 6: old",
        "part 2 of 6: a",
        "part 3 of 6: b (more than 3m 20s left)",
        "part 4 of 6: c (3m 20s left)",
        "part 5 of 6: note (2m 30s left)",
        "part 6 of 6: d (2m 30s left)",
    ]
