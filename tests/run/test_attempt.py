from __future__ import annotations

import pytest

from capfilt.run.attempt import Attempt, OvertakenError


def test_attempt_alone_publishes() -> None:
    Attempt().begin_publishing()


def test_attempt_contested_publishes_only_where_it_is_the_first_to_ask() -> None:
    asked: list[str] = []

    def claim(who: str) -> bool:
        asked.append(who)
        return asked[0] == who

    first, second = Attempt(), Attempt(lambda: claim("second"))
    assert first.contest(lambda: claim("first"))
    second.begin_publishing()
    with pytest.raises(OvertakenError):
        first.begin_publishing()
    assert asked == ["second", "first"]


def test_attempt_that_publishes_can_not_be_contested_any_more() -> None:
    attempt = Attempt()
    attempt.begin_publishing()
    assert not attempt.contest(lambda: False)


def test_attempt_given_up_ends_at_its_next_check() -> None:
    attempt = Attempt()
    attempt.check()
    attempt.give_up()
    with pytest.raises(OvertakenError):
        attempt.check()
    with pytest.raises(OvertakenError):
        attempt.begin_publishing()
