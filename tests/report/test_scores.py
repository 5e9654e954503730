from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from capfilt.cut import SOURCES, Rows, ScoreName
from capfilt.record import Source
from capfilt.report.scores import Scores

WEB, SYNTHETIC = SOURCES.index(Source.WEB), SOURCES.index(Source.SYNTHETIC)


def rows_with(similarity: npt.NDArray[np.float64], per_image: int = 2) -> Rows:
    """Texts, the first of an image from the web; half of them have a match probability."""
    count = len(similarity)
    return Rows(
        image=np.arange(count) // per_image,
        source=np.where(np.arange(count) % per_image == 0, WEB, SYNTHETIC).astype(np.uint8),
        match_prob=np.where(np.arange(count) < count // 2, 0.5, np.nan).astype(np.float32),
        similarity=similarity.astype(np.float32),
        reason=np.zeros(count, np.uint8),
        failed=np.zeros(count, bool),
    )


def scores_of(rows: Rows, name: ScoreName = "similarity") -> Scores:
    found = Scores.of(rows, name)
    assert found is not None
    return found


def test_similarities_have_thresholds_where_they_lie() -> None:
    """Those of CLIP lie in a tenth of where a cosine may, and 0.28 is not the same as 0.3."""
    similarity = np.random.default_rng(0).normal(0.25, 0.05, 20_000)
    similarity[:3] = (-0.9, 0.95, 1.0)
    rows = rows_with(similarity)
    scores = scores_of(rows)
    grid = scores.grid(100)
    edges = scores.edges[grid]
    assert 60 <= len(edges) <= 101
    assert np.quantile(similarity, 0.001) - 0.02 < edges[0] < edges[-1] < 0.45
    assert {0.28, 0.285, 0.29, 0.3} <= set(edges.tolist())
    texts, images = scores.texts_from(), scores.images_from()
    best = rows.similarity.astype(np.float64).reshape(-1, 2).max(axis=1)
    for place, edge in zip(grid, edges, strict=True):
        for code in (WEB, SYNTHETIC):
            mine = rows.similarity[rows.source == code].astype(np.float64)
            assert texts[code, place] == (mine >= edge).sum()
        assert images[place] == (best >= edge).sum()


def test_steps_hold_all_texts() -> None:
    similarity = np.random.default_rng(1).normal(0.25, 0.05, 5000)
    similarity[:4] = (-1.0, 0.9, 1.0, 1.0000001)  # a cosine of float32 may be above 1
    rows = rows_with(similarity)
    scores = scores_of(rows)
    grid = scores.grid(50)
    edges = scores.edges[grid]
    assert 25 <= len(edges) - 1 <= 50
    counts = scores.between(grid)
    inner = np.concatenate([[-np.inf], edges[1:-1], [np.inf]])
    for code in (WEB, SYNTHETIC):
        mine = rows.similarity[rows.source == code].astype(np.float64)
        assert counts[code].tolist() == np.histogram(mine, inner)[0].tolist()


def test_counts_add_up_and_leave_out_what_was_not_scored() -> None:
    rows = rows_with(np.full(100, np.nan))
    assert Scores.of(rows, "similarity") is None
    both = scores_of(rows, "match_prob") + scores_of(rows, "match_prob")
    assert both.texts.sum() == 100
    assert both.images.sum() == 50
    assert both.images_from()[both.edges == 0.5] == 50
    assert both.images_from()[both.edges == 0.501] == 0


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.3, 1.0])
def test_one_score_alone_has_a_step(value: float) -> None:
    scores = scores_of(rows_with(np.full(10, value)))
    grid = scores.grid(50)
    assert len(grid) >= 2
    assert scores.between(grid).sum() == 10


def test_a_source_of_few_texts_is_seen() -> None:
    similarity = np.full(40_000, 0.2)
    similarity[1] = 0.8
    rows = rows_with(similarity, per_image=20_000)  # two web texts
    rows.similarity[[0, 20_000]] = 0.75
    assert scores_of(rows).edges[scores_of(rows).grid(50)][-1] > 0.75
