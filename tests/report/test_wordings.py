from __future__ import annotations

import random
from collections import Counter

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
        of_part.add(pa.array(part))
        total.merge(of_part)
    return total


def test_counts_are_exact_over_parts() -> None:
    every = texts(5000)
    found = counted([every[:1000], every[1000:4000], every[4000:]])
    expected = Counter(every)
    assert found.different() == len(expected) / 5000
    assert found.shared() == sum(n for n in expected.values() if n > 10) / 5000 > 0.1
    best = found.most_frequent(10)
    assert sorted(best.values(), reverse=True) == [n for _, n in expected.most_common(10)]
    named = find_texts([None, *every], best)
    assert {text: best[key] for key, text in named.items()} == {
        text: expected[text] for text in named.values()
    }
    assert len(named) == 10


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
