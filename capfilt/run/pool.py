"""The loop of an engine whose shards are calls in a pool of threads or processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait

from capfilt.io.commits import Commit
from capfilt.run.engine import Done, Inbox, Outcome, Work, settle


def work_through(
    works: Iterable[Work | None],
    submit: Callable[[Work], Future[Commit]],
    *,
    in_flight: int,
    max_attempts: int,
) -> Iterator[Outcome | None]:
    """Process every shard; one that raises goes to the end of the queue.

    What has not begun is cancelled where the consumer goes or an error ends the run.

    Args:
        works: Shards as they arrive (`Inbox`).
        submit: Hands a shard to the pool.
        in_flight: How many shards the pool has at once, at most.
        max_attempts: Tries of a shard.
    """
    inbox, queue = Inbox(works), deque[Work]()
    running: dict[Future[Commit], Work] = {}
    try:
        queue.extend(inbox.take())
        while queue or running or inbox.is_open:
            while queue and len(running) < in_flight:
                work = queue.popleft()
                running[submit(work)] = work
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            if not done:
                time.sleep(0.0 if running else 1.0)  # it waits for none of none
                yield None
            for future in done:
                work = running.pop(future)
                error = future.exception()
                if error is None:
                    yield Done(future.result())
                    continue
                outcome = settle(work, error, max_attempts=max_attempts)
                if isinstance(outcome, Work):
                    queue.append(outcome)
                else:
                    yield outcome
            queue.extend(inbox.take())
    finally:
        for future in running:
            future.cancel()
