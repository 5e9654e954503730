"""Two ways to overlap the steps of a pipeline, both in order and with a bound on what waits."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_END: Any = object()


def in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, most: int
) -> Iterator[Result]:
    """Apply a function in a pool, giving results in the order of the items.

    Args:
        pool: Where the function runs.
        function: What to apply.
        items: Taken one by one, as results are consumed.
        most: How many items are submitted and not consumed yet, at most.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def ahead(
    items: Iterable[Item], *, depth: int, timeout_s: float | None = None
) -> Iterator[Iterator[Item]]:
    """Run an iterable in a thread of its own, at most `depth` items ahead of its consumer.

    An exception of the iterable is raised at the consumer; leaving the context stops the thread.

    Raises:
        TimeoutError: At the consumer, which has waited `timeout_s` for an item. The thread is left
            to itself.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()
    hangs = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - handed over, not swallowed
            put(_END, error)

    def consume() -> Iterator[Item]:
        while True:
            try:
                item, error = ready.get(timeout=timeout_s)
            except queue.Empty:
                hangs.set()
                raise TimeoutError from None
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = threading.Thread(target=produce, name="read", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        if not hangs.is_set():
            thread.join()
