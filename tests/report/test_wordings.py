from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from capfilt.report import wordings
from capfilt.report.wordings import Wordings, find_texts


def texts(count: int) -> list[str]:
    """Some texts come often, most once."""
    generator = random.Random(count)
    return [f"text {int(generator.paretovariate(0.3)) % 10**7}" for _ in range(count)]


def counted(parts: list[list[str]]) -> Wordings:
    total = Wordings()
    for part in parts:
        of_part = Wordings()
        of_part.add(pa.array(part), np.arange(len(part)))
        total.merge(of_part)
    return total


def test_an_image_counts_once_however_often_it_has_a_text() -> None:
    """Six times in each of two images is no caption of more than ten images."""
    found = Wordings()
    found.add(pa.array([*["a dog"] * 6, "a cat"] * 2), np.repeat([3, 8], 7))
    assert found.shared() == 0
    assert found.most_frequent(5) == {hash("a dog"): 2, hash("a cat"): 2}
    found.add(pa.array(["a dog"] * 18), np.repeat(np.arange(9), 2))
    assert found.shared() == 11 / 13


def test_counts_are_exact_over_parts() -> None:
    every = texts(5000)
    found = counted([every[:1000], every[1000:4000], every[4000:]])
    expected = Counter(every)
    assert found.different() == len(expected) / 5000
    assert found.shared() == sum(n for n in expected.values() if n > 10) / 5000 > 0.1
    best = found.most_frequent(10)
    counts = sorted(best.values(), reverse=True)
    assert counts[:10] == [n for _, n in expected.most_common(10)]
    assert set(counts[9:]) == {counts[9]}  # all that come as often as the tenth
    named = find_texts([None, *every], best)
    assert {text: best[key] for key, text in named.items()} == {
        text: expected[text] for text in named.values()
    }
    assert len(named) == sum(n >= counts[9] for n in expected.values()) >= 10


def test_most_frequent_takes_no_draw_among_too_many_that_come_as_often() -> None:
    twice = [f"text {number}" for number in range(2000)] * 2
    found = counted([[*twice, "a dog", "a dog", "a dog"]])
    assert list(found.most_frequent(10).values()) == [3]


def test_too_many_texts_are_sampled_fairly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordings, "MOST_TEXTS", 4000)
    every = texts(60_000)
    found = counted([every[i : i + 5000] for i in range(0, 60_000, 5000)])
    found.settle()
    assert len(found.hashes) <= 4000
    assert found.share < 1
    expected = Counter(every)
    kept = {text: n for text, n in expected.items() if hash(text) % round(1 / found.share) == 0}
    assert sorted(found.counts.tolist()) == sorted(kept.values())
