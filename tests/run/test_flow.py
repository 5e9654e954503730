from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from capfilt.errors import InputError
from capfilt.run.flow import ahead


def test_ahead_keeps_order_and_bounds_how_far_it_runs() -> None:
    produced: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(20):
            produced.append(i)
            yield i

    with ahead(numbers(), depth=2) as items:
        assert next(items) == 0
        time.sleep(0.3)
        assert len(produced) <= 5
        assert list(items) == list(range(1, 20))


def test_ahead_hands_over_the_error_after_what_came_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise InputError("shard 7: truncated")

    with ahead(failing(), depth=2) as items:
        assert next(items) == 1
        with pytest.raises(InputError, match="shard 7"):
            next(items)


def test_ahead_stops_its_thread_when_the_consumer_leaves() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    source = endless()
    with ahead(source, depth=2) as items:
        next(items)
    assert not [t for t in threading.enumerate() if t.name == "read"]
    source.close()
    assert closed.is_set()
