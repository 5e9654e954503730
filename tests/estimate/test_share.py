"""Wilson's interval against its own equation, and how often it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from capfilt.estimate.share import Share, share_of


def found(parts: list[tuple[int, int]], seen: float = 0.0, each: float = 1.0) -> Share:
    share = share_of(parts, seen=seen, each=each)
    assert share is not None
    return share


@pytest.mark.parametrize(("hits", "trials"), [(7, 20), (1, 50), (199, 200), (256, 512)])
def test_share_ends_are_as_far_from_the_share_as_chance_allows(hits: int, trials: int) -> None:
    share = found([(hits, trials)])
    assert (share.share, share.of) == (hits / trials, trials)
    for end in (share.low, share.high):  # the equation that Wilson solved
        assert abs(share.share - end) == pytest.approx(
            1.959964 * math.sqrt(end * (1 - end) / trials)
        )


@pytest.mark.parametrize(("hits", "low", "high"), [(0, 0.0, 0.278), (10, 0.722, 1.0)])
def test_share_of_none_or_all_is_not_certain(hits: int, low: float, high: float) -> None:
    share = found([(hits, 10)])
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-3)


def test_share_holds_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    whole = 0.3
    held = 0
    for _ in range(2000):
        parts = [(int(hits), 128) for hits in generator.binomial(128, whole, size=2)]
        share = found(parts)
        held += share.low <= whole <= share.high
    assert 0.94 < held / 2000 < 0.99  # a little wide, since shards differ by chance, too


def test_share_of_shards_that_differ_is_less_certain() -> None:
    alike, unlike = found([(50, 100), (50, 100)]), found([(20, 100), (80, 100)])
    assert alike.share == unlike.share
    assert unlike.low < 0.2 < alike.low
    assert alike.high < 0.8 < unlike.high


def test_share_of_the_whole_is_exact_and_of_most_of_it_nearly() -> None:
    parts = [(30, 100)]
    little, most, whole = (found(parts, seen=seen) for seen in (0.01, 0.9, 1.0))
    assert (whole.low, whole.high) == (0.3, 0.3)
    assert little.high - little.low > 2.5 * (most.high - most.low) > 0


def test_share_of_captions_of_one_image_counts_images() -> None:
    together = found([(300, 1000)], each=10.0)
    alone = found([(30, 100)])
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


def test_share_of_nothing_is_none() -> None:
    assert share_of([], seen=0.0) is None
    assert share_of([(0, 0), (0, 0)], seen=0.5) is None
