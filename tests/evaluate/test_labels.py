from __future__ import annotations

import random
from itertools import product

import pytest

from capfilt.evaluate.labels import Curve


def scored(seed: int, *, ties: bool) -> tuple[list[float], list[bool]]:
    """Scores that tell a little, with many or no ties."""
    chooser = random.Random(seed)
    labels = [chooser.random() < 0.3 for _ in range(120)]
    labels[:2] = [True, False]
    scores = [chooser.random() + 0.3 * label for label in labels]
    return [round(s, 1) for s in scores] if ties else scores, labels


def plain_auc(scores: list[float], labels: list[bool]) -> float:
    """Every matching pair against every other pair."""
    pairs = list(zip(scores, labels, strict=True))
    duels = [(a > b) + (a == b) / 2 for (a, x), (b, y) in product(pairs, pairs) if x and not y]
    return sum(duels) / len(duels)


def plain_average_precision(scores: list[float], labels: list[bool]) -> float:
    """Mean over matching pairs of the precision of "scores at least what this pair has"."""
    pairs = list(zip(scores, labels, strict=True))
    precisions = []
    for score, label in pairs:
        if label:
            reached = [other for s, other in pairs if s >= score]
            precisions.append(sum(reached) / len(reached))
    return sum(precisions) / len(precisions)


def plain_counts(scores: list[float], labels: list[bool], threshold: float) -> tuple[int, int, int]:
    pairs = list(zip(scores, labels, strict=True))
    true = sum(x and s >= threshold for s, x in pairs)
    return true, sum(s >= threshold for s, _ in pairs), sum(labels)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_curve_areas_are_those_of_the_definitions(seed: int, ties: bool) -> None:
    scores, labels = scored(seed, ties=ties)
    curve = Curve.of(scores, labels)
    assert curve.roc_auc == pytest.approx(plain_auc(scores, labels), abs=1e-12)
    wanted = plain_average_precision(scores, labels)
    assert curve.average_precision == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_roc_auc_is_scipys_rank_statistic(ties: bool) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores, labels = scored(7, ties=ties)
    groups = [[s for s, x in zip(scores, labels, strict=True) if x is y] for y in (True, False)]
    wanted = stats.mannwhitneyu(*groups).statistic / (len(groups[0]) * len(groups[1]))
    assert Curve.of(scores, labels).roc_auc == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_curve_areas_are_sklearns(ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = scored(8, ties=ties)
    curve = Curve.of(scores, labels)
    assert curve.roc_auc == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    wanted = metrics.average_precision_score(labels, scores)
    assert curve.average_precision == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.7, 0.75, 1.2])
def test_at_counts_pairs_at_or_above_the_threshold(threshold: float) -> None:
    scores, labels = scored(1, ties=True)
    true, reached, positives = plain_counts(scores, labels, threshold)
    found = Curve.of(scores, labels).at(threshold)
    assert found.threshold == threshold
    assert found.recall == true / positives
    assert found.precision == pytest.approx(true / reached)
    assert found.f1 == pytest.approx(2 * true / (reached + positives))


def test_at_a_threshold_above_all_scores_has_no_precision() -> None:
    found = Curve.of([0.1, 0.2], [False, True]).at(0.3)
    assert (found.precision, found.recall, found.f1) == (None, 0.0, 0.0)


@pytest.mark.parametrize("ties", [False, True])
def test_best_is_the_score_with_the_highest_f1(ties: bool) -> None:
    scores, labels = scored(3, ties=ties)
    figures = {}
    for score in scores:
        true, reached, positives = plain_counts(scores, labels, score)
        figures[score] = 2 * true / (reached + positives)
    found = Curve.of(scores, labels).best()
    assert found.f1 == pytest.approx(max(figures.values()))
    assert figures[found.threshold] == pytest.approx(found.f1)


def test_best_of_equals_is_the_highest() -> None:
    # F1 at 0.9 is 2 / 3 (1 of 1, of 2); at 0.1 it is 4 / 6 (2 of 4, of 2).
    found = Curve.of([0.9, 0.5, 0.4, 0.1], [True, False, False, True]).best()
    assert (found.threshold, found.f1) == (0.9, pytest.approx(2 / 3))


def test_curve_of_a_constant_score_is_chance() -> None:
    curve = Curve.of([0.5] * 8, [True, *[False] * 7])
    assert (curve.roc_auc, curve.average_precision) == (0.5, 1 / 8)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [True, True], "all the same"),
        ([0.1, 0.2], [False, False], "all the same"),
        ([], [], "all the same"),
        ([0.1, float("nan")], [True, False], "finite"),
        ([0.1], [True, False], "1 scores for 2 labels"),
    ],
)
def test_curve_of_what_has_none_raises(
    scores: list[float], labels: list[bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Curve.of(scores, labels)
