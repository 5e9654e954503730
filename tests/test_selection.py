from __future__ import annotations

import math
import random

import pytest

from capfilt.config import SelectionConfig
from capfilt.record import Reason, Score, Source, Text, Verdict
from capfilt.selection import judge


def texts(*scores: float | None, problem: Reason | None = None) -> list[Text]:
    """A web text, then synthetic ones; `None` stands for a text that was not scored."""
    return [
        Text(
            Source.WEB if i == 0 else Source.SYNTHETIC,
            max(0, i - 1),
            f"text {i}",
            Score(match_prob=s, similarity=s),
            reason=problem if s is None else None,
        )
        for i, s in enumerate(scores)
    ]


def test_judge_threshold_is_inclusive() -> None:
    judged, kept = judge(texts(0.5, 0.4999), SelectionConfig(min_match_prob=0.5))
    assert [t.verdict for t in judged] == [Verdict.KEPT, Verdict.DROPPED]
    assert judged[1].reason is Reason.BELOW_MIN_MATCH_PROB
    assert kept == judged[:1]


def test_judge_problem_text_is_dropped_for_its_own_reason() -> None:
    judged, kept = judge(
        texts(None, 0.9, problem=Reason.EMPTY_TEXT), SelectionConfig(min_match_prob=0.5)
    )
    assert judged[0].verdict is Verdict.DROPPED
    assert judged[0].reason is Reason.EMPTY_TEXT
    assert kept == (judged[1],)


def test_judge_top_k_keeps_the_most_similar_best_first_and_the_earlier_of_equals() -> None:
    rule = SelectionConfig(min_match_prob=None, top_k=2)
    judged, kept = judge(texts(0.1, 0.7, 0.9, 0.7), rule)
    assert [t.content for t in kept] == ["text 2", "text 1"]
    assert [t.verdict for t in judged] == [
        Verdict.DROPPED,
        Verdict.KEPT,
        Verdict.KEPT,
        Verdict.DROPPED,
    ]
    assert judged[0].reason is Reason.NOT_IN_TOP_K


def test_judge_rules_hold_together() -> None:
    rule = SelectionConfig(min_match_prob=0.5, top_k=1)
    judged, kept = judge(texts(0.4, 0.6, 0.7), rule)
    assert [t.reason for t in judged] == [Reason.BELOW_MIN_MATCH_PROB, Reason.NOT_IN_TOP_K, None]
    assert [t.content for t in kept] == ["text 2"]


def test_judge_without_rules_keeps_all() -> None:
    judged, kept = judge(texts(None, None), SelectionConfig(min_match_prob=None))
    assert kept == judged
    assert all(t.verdict is Verdict.KEPT for t in judged)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_judge_missing_score_is_an_error_not_a_verdict(missing: float | None) -> None:
    with pytest.raises(ValueError, match="match_prob"):
        judge(texts(missing), SelectionConfig(min_match_prob=0.5))


def test_judge_agrees_with_the_rule_read_literally() -> None:
    """Every text above the threshold, then the k best of those: written as sets."""
    random.seed(0)
    for _ in range(300):
        scores = [round(random.random(), 1) for _ in range(random.randint(1, 6))]
        k = random.randint(1, 4)
        _, kept = judge(texts(*scores), SelectionConfig(min_match_prob=0.5, top_k=k))
        able = [i for i, s in enumerate(scores) if s >= 0.5]
        best = sorted(able, key=lambda i: (-scores[i], i))[:k]
        assert [t.content for t in kept] == [f"text {i}" for i in best]
