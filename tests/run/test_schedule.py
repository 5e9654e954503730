"""Who takes which shard when, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from capfilt.errors import InputError, ModelError
from capfilt.run.engine import GaveUp, Work
from capfilt.run.schedule import Schedule, largest_first
from capfilt.shard import Form, InputShard


def work(name: str, size_bytes: int = 100, expected: int | None = None) -> Work:
    url = f"/web/{name}.tar"
    return Work(InputShard(name, Form.TAR, url, size_bytes, "mtime:1", expected=expected))


class Played(Schedule):
    """A schedule with a clock to move, and what it has handed out in short."""

    def __init__(self, works: Iterable[Work | None], workers: Iterable[int] = ()) -> None:
        self.now_s = 0.0
        super().__init__(works, max_attempts=3, clock=lambda: self.now_s)
        for worker in workers:
            self.join(worker)

    def done(self, worker: int, shard_id: str) -> list[int]:
        """Of as many images as it has bytes, or else should have."""
        shard = self._members[worker].tries[shard_id].work.shard
        self.progress(worker, shard_id, shard.expected or shard.size_bytes)
        return super().done(worker, shard_id)

    def given(self) -> list[tuple[int, str]]:
        return [(each.worker, each.work.shard.id) for each in self.assign()]

    def copies(self) -> list[tuple[int, str, int | None]]:
        return [(each.worker, each.work.shard.id, each.rival) for each in self.assign()]


def test_assign_gives_each_worker_one_before_any_gets_two() -> None:
    schedule = Played([work(name) for name in "abcdefg"], [1, 2])
    assert schedule.given() == [(1, "a"), (2, "b"), (1, "c"), (2, "d")]
    assert schedule.given() == []
    assert schedule.waiting == 3


def test_assign_gives_the_last_shards_to_idle_workers_alone() -> None:
    schedule = Played([work(name) for name in "abcde"], [1, 2])
    assert schedule.given() == [(1, "a"), (2, "b"), (1, "c"), (2, "d")]
    schedule.done(1, "a")
    assert schedule.given() == []  # 1 has c, and somebody may be idle before c is done
    schedule.done(2, "b")
    schedule.done(2, "d")
    assert schedule.given() == [(2, "e")]


def test_assign_while_more_may_arrive_fills_every_worker() -> None:
    schedule = Played(iter([work("a"), work("b"), None, work("c"), None]), [1])
    assert schedule.given() == [(1, "a"), (1, "b")]
    assert schedule.given() == []
    schedule.done(1, "a")
    assert schedule.given() == [(1, "c")]
    schedule.done(1, "b")
    schedule.done(1, "c")
    assert schedule.given() == []
    assert schedule.is_finished


def test_is_finished_only_when_nothing_can_arrive() -> None:
    schedule = Played(iter([None, None]), [1])
    assert schedule.given() == []
    assert not schedule.is_finished
    assert schedule.given() == []
    assert not schedule.is_finished
    assert schedule.given() == []
    assert schedule.is_finished


def test_copies_of_what_a_slow_worker_holds_go_to_idle_ones() -> None:
    schedule = Played(iter([*map(work, "abcd"), None]), [1, 2])
    assert schedule.given() == [(1, "a"), (2, "b"), (1, "c"), (2, "d")]
    schedule.now_s = 10.0
    schedule.done(1, "a")
    schedule.now_s = 20.0
    schedule.done(1, "c")  # 10 s a shard; 2 has had 20 s for two
    schedule.progress(2, "b", 80)
    schedule.progress(2, "d", 80)
    assert schedule.copies() == []
    schedule.now_s = 60.0
    schedule.progress(2, "b", 81)
    schedule.progress(2, "d", 82)
    assert schedule.copies() == [(1, "b", 2)]
    schedule.now_s = 70.0
    assert schedule.done(1, "b") == [2]
    schedule.withdrawn(2, "b")
    assert schedule.copies() == [(1, "d", 2)]
    assert not schedule.is_finished
    assert schedule.done(2, "d") == [1]  # the other way round
    assert schedule.is_finished


@pytest.mark.parametrize(
    ("images", "expected", "is_copied"),
    [
        (50, None, False),  # half of it in half of its time
        (10, None, True),  # it will take 50 s at this speed
        (50, 1000, True),  # more images than its size tells
        (10, 20, False),
    ],
)
def test_try_that_comes_slowly_on_is_copied_long_before_its_time_is_over(
    images: int, expected: int | None, is_copied: bool
) -> None:
    schedule = Played(iter([work("a"), work("b", expected=expected), None]), [1])
    assert schedule.given() == [(1, "a"), (1, "b")]
    schedule.withdrawn(1, "b")
    schedule.now_s = 10.0
    schedule.done(1, "a")
    schedule.join(2)
    assert schedule.given() == [(1, "b")]
    schedule.now_s = 15.0
    schedule.progress(1, "b", images)
    assert schedule.copies() == ([(2, "b", 1)] if is_copied else [])


def test_copies_begin_at_once_where_a_worker_is_known_to_be_slow() -> None:
    schedule = Played(map(work, "abcde"), [1, 2])
    assert schedule.given() == [(1, "a"), (2, "b"), (1, "c"), (2, "d")]
    schedule.now_s = 10.0
    schedule.done(1, "a")  # 10 s a shard at 1
    schedule.now_s = 40.0
    schedule.done(2, "b")
    schedule.done(2, "d")  # 20 s a shard at 2
    schedule.progress(1, "c", 97)
    assert schedule.given() == [(2, "e")]
    schedule.now_s = 41.0
    schedule.done(1, "c")
    schedule.now_s = 42.0
    assert schedule.given() == []  # 18 s at 2, and 20 s at 1: its 41 s were of two shards
    assert schedule.done(2, "e") == []
    assert schedule.is_finished


def test_copies_of_equal_workers_are_not_made() -> None:
    schedule = Played(iter([*map(work, "abcd"), None]), [1, 2])
    schedule.given()
    for second, (worker, shard) in enumerate([(1, "a"), (2, "b"), (1, "c")]):
        schedule.now_s = 10.0 + second
        schedule.done(worker, shard)
        if shard == "c":
            schedule.progress(2, "d", 80)
        assert schedule.copies() == []


def test_copy_is_the_only_one() -> None:
    schedule = Played([work("a"), work("b"), work("c")], [1, 2, 3])
    schedule.given()
    schedule.now_s = 10.0
    schedule.done(1, "a")
    schedule.done(2, "b")
    schedule.now_s = 100.0
    assert len(schedule.copies()) == 1
    schedule.now_s = 1000.0
    assert schedule.copies() == []


def with_a_copy() -> Played:
    """Shard b at worker 2, with a copy at worker 1."""
    schedule = Played([work("a"), work("b")], [1, 2])
    schedule.given()
    schedule.now_s = 10.0
    schedule.done(1, "a")
    schedule.now_s = 100.0
    assert schedule.copies() == [(1, "b", 2)]
    return schedule


def test_failed_try_with_another_under_way_is_no_try() -> None:
    schedule = with_a_copy()
    for _ in range(5):
        assert schedule.failed(1, "b", InputError("cut")) is None
        assert schedule.copies() == [(1, "b", 2)]
    assert schedule.failed(1, "b", InputError("cut")) is None
    assert schedule.failed(2, "b", InputError("cut")) is None
    assert schedule.given() == [(1, "b")]
    assert schedule.failed(1, "b", InputError("cut")) is None
    assert schedule.given() == [(1, "b")]
    assert schedule.failed(1, "b", InputError("cut")) == GaveUp(work("b").shard, 3, "cut")
    assert schedule.is_finished


def test_died_winner_leaves_its_shard_to_the_copy() -> None:
    schedule = with_a_copy()
    assert schedule.died(2) is None
    assert schedule.waiting == 0
    schedule.withdrawn(1, "b")  # it was told that 2 is publishing
    assert schedule.given() == [(1, "b")]
    assert schedule.done(1, "b") == []
    assert schedule.is_finished


def test_lost_try_ends_without_a_trace() -> None:
    schedule = with_a_copy()
    assert schedule.done(1, "b") == [2]
    assert schedule.is_finished
    assert schedule.held_by(2) == ["b"]
    assert schedule.failed(2, "b", ModelError("any")) is None
    assert schedule.is_finished
    assert schedule.held_by(2) == []


def test_died_with_two_shards_makes_suspects_that_run_alone() -> None:
    schedule = Played([work(name) for name in "abcdefgh"], [1, 2])
    schedule.given()
    assert schedule.held_by(2) == ["b", "d"]
    assert schedule.died(2) is None
    schedule.join(3)
    assert schedule.given() == [(3, "b")]  # not another beside it
    schedule.done(1, "a")
    assert schedule.given() == []  # 1 is to take the other suspect
    schedule.done(1, "c")
    assert schedule.given() == [(1, "d")]
    schedule.done(1, "d")
    assert schedule.given() == [(1, "e"), (1, "f")]
    assert schedule.held_by(3) == ["b"]


def test_died_with_one_shard_counts_as_its_try() -> None:
    schedule = Played([work("a"), work("b")])
    for worker in (1, 2):
        schedule.join(worker)
        given = schedule.given()
        assert given[0] == (worker, "a")
        if len(given) == 2:
            schedule.done(worker, "b")
        assert schedule.died(worker) is None
    schedule.join(3)
    assert schedule.given() == [(3, "a")]
    gave_up = schedule.died(3)
    assert gave_up is not None
    assert (gave_up.shard.id, gave_up.attempts) == ("a", 3)
    assert "died while it held this shard alone" in gave_up.error


def test_dismissed_worker_gives_its_shards_back_without_blame() -> None:
    schedule = Played([work(name) for name in "abc"], [1])
    assert schedule.given() == [(1, "a"), (1, "b")]
    schedule.dismiss(1)
    schedule.join(2)
    assert schedule.given() == [(2, "b"), (2, "a")]


def test_failure_that_all_would_meet_ends_the_run() -> None:
    schedule = Played([work("a")], [1])
    schedule.given()
    with pytest.raises(ModelError, match="other weights"):
        schedule.failed(1, "a", ModelError("other weights"))


def test_largest_first_is_the_same_order_for_every_listing() -> None:
    works = [work("a", 1), work("b", 3), work("c", 3), work("d", 2)]
    assert [w.shard.id for w in largest_first(works)] == ["b", "c", "d", "a"]
    assert largest_first(works[::-1]) == largest_first(works)
