"""Which worker takes which shard next, and which shard is tried twice at once. Pure.

No Ray, and the clock is given: the driver of `capfilt.run.cluster` asks it, and so does a
simulation of many more workers than a test can start (`benchmarks/scale.py`).

- A worker holds two shards, so that reading and publishing overlap with its models; the last of a
  run go out one by one, since a shard that waits behind another could be at an idle worker.
- With those go copies of the shards that are at a worker so slow, or so late, that a copy at
  another should be done long before. Who is first publishes; the other's try is lost.
- When a worker dies with two shards it is unknown which one killed it, so both become suspects and
  run alone, and only the death of a worker that held a single shard counts as a try of that shard.

A shard's work is told by its size in bytes, a worker's pace by what it has done, and how long a try
will still take by that and by how far it has come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from capfilt.errors import CapfiltError
from capfilt.run.engine import GaveUp, Inbox, Work, settle

IN_FLIGHT = 2  # shards per worker: one in the models, one being read or published
# How much longer than its copy a try must be expected to take. In the simulation this does better
# than 1.5 times, and than every try for which somebody is idle.
WORTH_A_COPY = 1.25
PRIOR = 0.5  # of a shard: when this much is done, a try's own speed counts as much as what is usual


class WorkerDiedError(CapfiltError):
    """A worker's process ended while it held one shard alone."""

    def __init__(self, shard_id: str) -> None:
        super().__init__(
            f"shard {shard_id}: the worker's process died while it held this shard alone"
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """A shard for a worker; `rival` is the worker whose try of it this one may overtake."""

    worker: int
    work: Work
    rival: int | None = None


@dataclass(slots=True)
class _Try:
    work: Work
    worker: int
    images: int = 0  # that are done, as far as is known
    served_s: float = 0.0  # of its worker's time, which those that it holds share
    is_lost: bool = False  # another's was first; it ends without a result
    is_publishing: bool = False  # too late for another

    @property
    def size(self) -> int:
        return max(1, self.work.shard.size_bytes)


@dataclass(slots=True)
class _Member:
    """A worker, by what it holds and what it has done."""

    counted_until_s: float
    tries: dict[str, _Try] = field(default_factory=dict)  # by shard
    busy_s: float = 0.0
    done_bytes: int = 0

    def count(self, now_s: float) -> None:
        """Bring the times up to date, before anything changes."""
        passed_s = now_s - self.counted_until_s
        self.counted_until_s = now_s
        for held in self.tries.values():
            held.served_s += passed_s / len(self.tries)
        self.busy_s += passed_s if self.tries else 0.0


class Schedule:
    """The shards that wait, and those that workers are at."""

    def __init__(
        self, works: Iterable[Work | None], *, max_attempts: int, clock: Callable[[], float]
    ) -> None:
        """Begin.

        Args:
            works: What is to be done, in this order; a None means that the next arrive later.
            max_attempts: How often a shard may fail.
            clock: Seconds; never goes back.
        """
        self._clock = clock
        self._inbox = Inbox(works)
        self._max_attempts = max_attempts
        self._queue: deque[Work] = deque()
        self._suspects: deque[Work] = deque()  # go to a worker that holds nothing else
        self._members: dict[int, _Member] = {}
        self._tries: dict[str, list[_Try]] = {}  # those in flight that are not lost, by shard
        self._done_images = self._done_bytes = 0

    @property
    def waiting(self) -> int:
        """Shards that are there and no worker holds."""
        return len(self._queue) + len(self._suspects)

    @property
    def is_finished(self) -> bool:
        """Nothing is left to do, to wait for, or to arrive."""
        return not (self._inbox.is_open or self.waiting or self._tries)

    def held_by(self, worker: int) -> list[str]:
        """The ids of the shards that a worker is at, lost ones included."""
        return list(self._members[worker].tries)

    def join(self, worker: int) -> None:
        """A worker is ready; its number was never used before."""
        self._members[worker] = _Member(self._clock())

    def assign(self) -> Iterator[Assignment]:
        """What to hand out now. Each assignment counts as begun when it is taken."""
        self._queue.extend(self._inbox.take())
        if not (self._inbox.is_open or self._suspects or self._has_plenty()):
            yield from self._copies()  # before the last shards, which are the smallest
        for worker in self._idle():
            if self._suspects:
                yield self._begin(worker, self._suspects.popleft())
            elif self._queue:
                yield self._begin(worker, self._queue.popleft())
        for worker in self._with_room() if self._has_plenty() else ():
            if self._has_plenty():
                yield self._begin(worker, self._queue.popleft())

    def progress(self, worker: int, shard_id: str, images: int) -> None:
        """How many images of a shard that it holds a worker has done by now; or has it no more."""
        held = self._members[worker].tries.get(shard_id)
        if held is not None:
            held.images = images

    def done(self, worker: int, shard_id: str) -> list[int]:
        """A worker has committed a shard, and its last `progress` was of all its images.

        Returns:
            The workers whose tries of it are lost with this, to be told so.
        """
        member = self._members[worker]
        won = member.tries[shard_id]
        member.done_bytes += won.size
        self._done_bytes += won.size
        self._done_images += won.images
        self._end(won)
        lost = self._tries.pop(shard_id, [])
        for other in lost:
            other.is_lost = True
        return [other.worker for other in lost]

    def failed(self, worker: int, shard_id: str, error: Exception) -> GaveUp | None:
        """A try has ended in an error: another follows, unless it was the last.

        Raises:
            ConfigError, ModelError: These would fail every shard alike, so the run ends.
        """
        ended = self._members[worker].tries[shard_id]
        return self._settle(ended.work, error) if self._end(ended) else None

    def withdrawn(self, worker: int, shard_id: str) -> None:
        """A try has ended without a result and without blame; that of a lost one does."""
        ended = self._members[worker].tries[shard_id]
        if self._end(ended):
            self._queue.appendleft(ended.work)

    def wants(self, copy: Assignment) -> bool:
        """Whether a copy is still to be made: its worker lives, and the shard is not done."""
        member = self._members.get(copy.worker)
        held = None if member is None else member.tries.get(copy.work.shard.id)
        return held is not None and not held.is_lost

    def too_late(self, copy: Assignment) -> None:
        """A copy is not made, because the worker which has the shard publishes it or is gone."""
        shard_id = copy.work.shard.id
        member = self._members.get(copy.worker)
        if member is None or shard_id not in member.tries:
            return
        for held in self._tries.get(shard_id, ()):
            held.is_publishing = True
        self.withdrawn(copy.worker, shard_id)

    def is_done(self, worker: int, shard_id: str) -> bool:
        """Whether a shard that a worker is at was done by another."""
        member = self._members.get(worker)
        return member is not None and shard_id in member.tries and member.tries[shard_id].is_lost

    def dismiss(self, worker: int) -> None:
        """A worker goes that is not to blame for the shards which it still holds."""
        for shard_id in self.held_by(worker):
            self.withdrawn(worker, shard_id)
        del self._members[worker]

    def died(self, worker: int) -> GaveUp | None:
        """A worker's process has ended: see to the shards that it held."""
        held = list(self._members[worker].tries.values())
        orphans = [replace(ended.work, suspect=True) for ended in held if self._end(ended)]
        del self._members[worker]
        if len(held) == 1 and orphans:
            return self._settle(orphans[0], WorkerDiedError(orphans[0].shard.id))
        self._suspects.extend(orphans)
        return None

    def _idle(self) -> list[int]:
        return [worker for worker, member in self._members.items() if not member.tries]

    def _with_room(self) -> list[int]:
        """Workers that can take a second shard; some must become idle, for suspects."""
        found = [worker for worker, member in self._members.items() if _takes_more(member)]
        return found[len(self._suspects) :]

    def _has_plenty(self) -> bool:
        """Whether a worker may hold a shard that waits for its models."""
        enough = self._inbox.is_open or len(self._queue) >= len(self._members)
        return bool(self._queue) and enough

    def _begin(self, worker: int, work: Work, rival: int | None = None) -> Assignment:
        member = self._members[worker]
        member.count(self._clock())
        member.tries[work.shard.id] = begun = _Try(work, worker)
        self._tries.setdefault(work.shard.id, []).append(begun)
        return Assignment(worker, work, rival)

    def _end(self, ended: _Try) -> bool:
        """Forget a try; whether nobody is at its shard now, though it is not done."""
        shard_id, member = ended.work.shard.id, self._members[ended.worker]
        member.count(self._clock())
        del member.tries[shard_id]
        if ended.is_lost:
            return False
        others = self._tries[shard_id]
        others.remove(ended)
        if not others:
            del self._tries[shard_id]
        return not others

    def _settle(self, work: Work, error: Exception) -> GaveUp | None:
        outcome = settle(work, error, max_attempts=self._max_attempts)
        if isinstance(outcome, GaveUp):
            return outcome
        (self._suspects if outcome.suspect else self._queue).append(outcome)
        return None

    def _copies(self) -> Iterator[Assignment]:
        """Copies of the shards that would take longest, for the fastest of the idle workers."""
        pace = self._pace()
        idle = self._idle()
        if pace is None or not idle:
            return
        for member in self._members.values():
            member.count(self._clock())
        alone = [tries[0] for tries in self._tries.values() if len(tries) == 1]
        alone = [each for each in alone if not (each.work.suspect or each.is_publishing)]
        late = [(self._remaining_s(each, pace), each) for each in alone]
        late.sort(key=lambda item: item[0], reverse=True)
        idle.sort(key=lambda worker: self._pace_of(worker, pace))
        for worker, (remaining_s, begun) in zip(idle, late, strict=False):
            if remaining_s > WORTH_A_COPY * self._pace_of(worker, pace) * begun.size:
                yield self._begin(worker, begun.work, rival=begun.worker)

    def _remaining_s(self, begun: _Try, pace: float) -> float:
        """How long a try will take from now on, by what is usual and what it has done in its time.

        One that has come far and comes no further: as long as it is late already.
        """
        done = self._share_done(begun)
        usual_s = self._pace_of(begun.worker, pace) * begun.size
        seconds_per_share = (begun.served_s + PRIOR * usual_s) / (done + PRIOR)
        sharing = len(self._members[begun.worker].tries)
        return max(sharing * (1 - done) * seconds_per_share, begun.served_s - usual_s)

    def _share_done(self, begun: _Try) -> float:
        """Of a shard's images; how many it has may be known, else its size tells."""
        of_its_size = begun.size * self._done_images / max(1, self._done_bytes)
        return min(1.0, begun.images / max(1.0, begun.work.shard.expected or of_its_size))

    def _pace(self) -> float | None:
        """Seconds a byte takes a worker that has done any, over all; None when none has."""
        known = [member for member in self._members.values() if member.done_bytes]
        done_bytes = sum(member.done_bytes for member in known)
        return sum(member.busy_s for member in known) / done_bytes if known else None

    def _pace_of(self, worker: int, usual: float) -> float:
        member = self._members[worker]
        return member.busy_s / member.done_bytes if member.done_bytes else usual


def largest_first(works: Iterable[Work]) -> list[Work]:
    """The order in which workers come to their ends at nearly the same time."""
    by_id = sorted(works, key=lambda work: work.shard.id)
    by_id.sort(key=lambda work: work.shard.size_bytes, reverse=True)  # equal ones stay in order
    return by_id


def _takes_more(member: _Member) -> bool:
    if len(member.tries) != IN_FLIGHT - 1:
        return False
    return not any(held.work.suspect for held in member.tries.values())
