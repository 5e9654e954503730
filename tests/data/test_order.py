from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from capfilt.data.order import SECTIONS, WINDOW, Order, Stock, Window

Key = tuple[int, int, int, int]  # dataset, strand, example, cycle


def stock(*lengths: int, weight: str = "1", grain: int = 16) -> Stock:
    return Stock(np.array(lengths, np.int64), Fraction(weight), grain)


def contents(window: Window) -> list[Key]:
    keys = [(s.dataset, s.strand, i, s.cycle) for s in window.spans for i in range(s.start, s.stop)]
    assert len(window.order) == len(keys)
    return [keys[i] for i in window.order]


def step_keys(order: Order, step: int) -> list[Key]:
    """The examples of a rank's batch, found from nothing but the step."""
    place = order.place(step)
    if place is None:
        return contents(order.across_epochs(step))
    windows = order.windows(place.epoch, place.section)
    keys = [key for window in windows for key in contents(window)]
    return keys[place.start : place.start + order.batch_size]


def seen(stocks: tuple[Stock, ...], world: int, batch_size: int, steps: int) -> list[Key]:
    return [
        key
        for rank in range(world)
        for step in range(steps)
        for key in step_keys(Order(stocks, 5, rank, world, batch_size), step)
    ]


@pytest.mark.parametrize(("world", "batch_size"), [(1, 1), (1, 8), (2, 5), (3, 40), (4, 300)])
def test_steps_show_every_example_once_in_each_epoch(world: int, batch_size: int) -> None:
    stocks = (stock(100, 0, 37, 64), stock(3, grain=100))
    # So many steps that whole epochs come out even.
    steps = 204 // np.gcd(204, world * batch_size)
    keys = seen(stocks, world, batch_size, int(steps))
    assert len(keys) == len(set(keys)) == steps * world * batch_size
    for dataset, size in enumerate((201, 3)):
        cycles = Counter(cycle for d, _, _, cycle in keys if d == dataset)
        assert cycles == dict.fromkeys(range(len(keys) // 204), size)


def test_steps_within_an_epoch_come_before_all_of_the_next() -> None:
    keys = seen((stock(90, 30),), 2, 10, 6)
    assert sorted(keys) == [(0, s, i, 0) for s, n in ((0, 90), (1, 30)) for i in range(n)]


def test_a_tail_that_fills_no_step_begins_the_next_epoch() -> None:
    order = Order((stock(25),), 0, 0, 1, 10)
    assert order.place(1) is not None
    assert order.place(2) is None
    assert Counter(key[3] for key in step_keys(order, 2)) == {0: 5, 1: 5}


def test_a_weight_of_a_fifth_shows_each_example_once_in_five_epochs() -> None:
    fifth, once = stock(70, 33, weight="0.2"), stock(20)
    order = Order((fifth, once), 0, 0, 1, 1)
    epochs = [order.seen_before(e + 1) - order.seen_before(e) for e in range(5)]
    assert sum(epochs) == 103 + 5 * 20
    assert set(epochs) <= {40, 41}
    keys = seen((fifth, once), 1, 1, sum(epochs))
    assert len({key for key in keys if key[0] == 0 and key[3] == 0}) == 103
    assert Counter(key[3] for key in keys if key[0] == 1) == dict.fromkeys(range(5), 20)


def test_a_cycle_of_several_epochs_is_cut_in_one_way() -> None:
    """Its epochs show 6,143 and 6,144 examples, on either side of a longer piece."""
    stocks = (stock(*[1000] * 30, 719, weight="0.2"),)
    order = Order(stocks, 0, 0, 1, 30719)
    keys = step_keys(order, 0)
    assert len(set(keys)) == 30719
    assert {key[3] for key in keys} == {0}


def test_a_weight_of_two_shows_each_example_twice_an_epoch() -> None:
    keys = seen((stock(30, weight="2"),), 1, 4, 15)
    assert Counter(key[:3] for key in keys) == {(0, 0, i): 2 for i in range(30)}


def test_epochs_and_seeds_differ_in_order() -> None:
    order = Order((stock(400),), 0, 0, 1, 400)
    other = Order((stock(400),), 1, 0, 1, 400)
    first, second, third = (
        [key[2] for key in step_keys(o, s)] for o, s in ((order, 0), (order, 1), (other, 0))
    )
    assert sorted(first) == sorted(second) == sorted(third)
    assert first != second
    assert first != third


def test_windows_mix_datasets_and_shards_and_are_bounded() -> None:
    stocks = (stock(*[10_000] * 40), stock(*[1000] * 100))
    order = Order(stocks, 0, 0, 1, 50)
    windows = list(order.windows(0, 3))
    sizes = [len(window.order) for window in windows]
    assert max(sizes) <= WINDOW + WINDOW // 16
    assert sum(sizes) == len(range(3, 10_000, SECTIONS)) * 50
    assert len({span.strand for span in windows[0].spans}) >= 8
    shares = [sum(s.size for s in w.spans if s.dataset == 1) / len(w.order) for w in windows]
    assert 0.1 < np.mean(shares) < 0.3


def test_shards_are_read_from_their_start_to_their_end_where_there_are_many() -> None:
    order = Order((stock(*[1000] * 400),), 0, 0, 1, 50)
    spans = [span for window in order.windows(0, 0) for span in window.spans]
    assert sum(span.start == 0 for span in spans) >= 400 // SECTIONS - 1
    for strand in {span.strand for span in spans}:
        starts = [span.start for span in spans if span.strand == strand]
        assert starts == sorted(starts)


def test_a_row_group_is_read_by_one_window() -> None:
    order = Order((stock(*[1280] * 20, grain=128),), 0, 0, 1, 32)
    spans = [
        span for section in range(SECTIONS) for w in order.windows(0, section) for span in w.spans
    ]
    groups = Counter((s.strand, s.start // 128) for s in spans)
    # A section may begin or end within a group.
    assert sum(n > 1 for n in groups.values()) <= SECTIONS


def test_a_far_step_is_found_without_those_before() -> None:
    order = Order((stock(*[10_000] * 1000, weight="0.2"),), 0, 7, 8, 64)
    place = order.place(10_000_000)
    assert place is not None
    assert place.epoch == 10_000_000 * 512 // 2_000_000
    assert order.steps_per_epoch == 2_000_000 / 512
