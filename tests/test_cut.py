from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from capfilt.config import SelectionConfig
from capfilt.cut import (
    CODES,
    REASONS,
    SOURCES,
    CutConfig,
    Rows,
    apply_cutoff,
    apply_mix,
    apply_thresholds,
    check_scores,
    score_of,
    sortable,
)
from capfilt.record import Reason, Score, Source, Text
from capfilt.selection import judge

HUMAN, WEB, SYNTHETIC = Source.HUMAN, Source.WEB, Source.SYNTHETIC


def rows(*texts: tuple[int, Source, float], problems: tuple[int, ...] = ()) -> Rows:
    """Texts as (image, source, score), the score being both; `problems` are empty texts."""
    image, source, score = zip(*texts, strict=True)
    reason = [CODES[Reason.EMPTY_TEXT] if i in problems else 0 for i in range(len(texts))]
    return Rows(
        image=np.array(image),
        source=np.array([SOURCES.index(each) for each in source], dtype=np.uint8),
        match_prob=np.array(score, dtype=np.float32),
        similarity=np.array(score, dtype=np.float32),
        reason=np.array(reason, dtype=np.uint8),
        failed=np.zeros(len(texts), dtype=bool),
    )


def reasons(found: Rows) -> list[Reason | None]:
    return [REASONS[code] for code in found.reason.tolist()]


def random_images(count: int) -> list[list[Text]]:
    """Images of a web text and some captions, with tied scores and empty texts."""
    generator = random.Random(count)
    images = []
    for _ in range(count):
        texts = []
        for index in range(generator.randint(1, 5)):
            source = SYNTHETIC if index else WEB
            if generator.random() < 0.2:
                texts.append(Text(source, max(0, index - 1), "", reason=Reason.EMPTY_TEXT))
                continue
            score = Score(generator.randint(0, 8) / 8, generator.randint(0, 8) / 8)
            texts.append(Text(source, max(0, index - 1), "text", score))
        images.append(texts)
    return images


@pytest.mark.parametrize("least", [None, 0.5])
@pytest.mark.parametrize("k", [None, 1, 2])
def test_cut_agrees_with_the_verdicts_of_a_run(least: float | None, k: int | None) -> None:
    images = random_images(200)
    texts = [(i, text) for i, of_image in enumerate(images) for text in of_image]
    columns = Rows(
        image=np.array([i for i, _ in texts]),
        source=np.array([SOURCES.index(text.source) for _, text in texts], dtype=np.uint8),
        match_prob=np.array([text.score.match_prob for _, text in texts], dtype=np.float32),
        similarity=np.array([text.score.similarity for _, text in texts], dtype=np.float32),
        reason=np.array([CODES[text.reason] for _, text in texts], dtype=np.uint8),
        failed=np.zeros(len(texts), dtype=bool),
    )
    config = CutConfig(min_match_prob=least, top_k=k, by="similarity")
    found = reasons(apply_mix(apply_thresholds(columns, config), config))
    rule = SelectionConfig(min_match_prob=least, top_k=k)
    expected = [text.reason for of_image in images for text in judge(of_image, rule)[0]]
    assert found == expected
    assert len(set(found)) == 1 + 1 + (least is not None) + (k is not None)


def test_thresholds_are_inclusive_and_compare_what_a_run_compares() -> None:
    # float32(0.7) is 0.699999988, which a run, comparing doubles, drops at 0.7.
    texts = rows((0, WEB, 0.7), (0, SYNTHETIC, 0.75), (1, HUMAN, math.nan))
    found = apply_thresholds(texts, CutConfig(min_similarity=0.7))
    assert reasons(found) == [Reason.BELOW_MIN_SIMILARITY, None, None]
    assert reasons(apply_thresholds(texts, CutConfig(min_match_prob=0.75)))[1] is None


def test_web_first_takes_captions_only_where_the_web_text_fails() -> None:
    texts = rows((0, WEB, 0.9), (0, SYNTHETIC, 0.8), (1, WEB, 0.1), (1, SYNTHETIC, 0.7))
    config = CutConfig(min_match_prob=0.5, mix="web-first")
    found = apply_mix(apply_thresholds(texts, config), config)
    assert reasons(found) == [None, Reason.NOT_IN_MIX, Reason.BELOW_MIN_MATCH_PROB, None]
    other = apply_mix(texts, CutConfig(mix="synthetic-first"))
    assert reasons(other) == [Reason.NOT_IN_MIX, None, Reason.NOT_IN_MIX, None]


def test_best_keeps_one_text_an_image_and_every_human_caption() -> None:
    texts = rows((0, WEB, 0.5), (0, SYNTHETIC, 0.5), (0, SYNTHETIC, 0.4), (1, HUMAN, 0.0))
    found = apply_mix(texts, CutConfig(mix="best"))
    assert reasons(found) == [None, Reason.NOT_IN_MIX, Reason.NOT_IN_MIX, None]


def test_missing_score_is_an_error_unless_the_text_is_out_or_human() -> None:
    texts = rows((0, WEB, math.nan), (0, SYNTHETIC, 0.5), (1, HUMAN, math.nan), problems=(0,))
    check_scores(texts, CutConfig(min_match_prob=0.5))
    with pytest.raises(ValueError, match="match_prob"):
        check_scores(replace(texts, reason=texts.reason * 0), CutConfig(min_match_prob=0.5))


def test_sortable_sorts_as_the_scores_do() -> None:
    scores = np.array([-1, -0.5, -1e-30, -0.0, 0.0, 1e-30, 0.25, 1], dtype=np.float32)
    found = sortable(scores).tolist()
    assert found == sorted(found)
    assert found[3] == found[4]
    assert len(set(found)) == 7


def test_cutoff_keeps_the_first_of_equal_texts() -> None:
    texts = rows((0, WEB, 0.5), (0, SYNTHETIC, 0.6), (1, WEB, 0.5), (2, WEB, 0.5), (3, WEB, 0.4))
    cutoff = int(sortable(np.array([0.5], dtype=np.float32))[0])
    found = apply_cutoff(texts, "match_prob", cutoff, 2)
    below = Reason.BELOW_KEPT_FRACTION
    assert reasons(found) == [None, None, None, below, below]


def test_score_of_is_the_inverse_of_sortable() -> None:
    scores = np.array([-1, -0.25, 0, 0.1, 0.30000001, 1, math.inf], dtype=np.float32)
    assert [score_of(int(number)) for number in sortable(scores)] == scores.tolist()


def test_anew_forgets_decisions_and_keeps_facts() -> None:
    texts = rows((0, WEB, 0.5), (0, SYNTHETIC, 0.6), problems=(0,))
    dropped = apply_thresholds(texts, CutConfig(min_match_prob=0.9))
    assert reasons(dropped) == [Reason.EMPTY_TEXT, Reason.BELOW_MIN_MATCH_PROB]
    assert reasons(dropped.anew(of_kept=False)) == [Reason.EMPTY_TEXT, None]


def test_anew_keeps_what_was_decided_on_images() -> None:
    below, held = Reason.BELOW_MIN_MATCH_PROB, Reason.EVALUATION_IMAGE
    texts = rows((0, WEB, 0.1), (0, SYNTHETIC, 0.6), (1, WEB, 0.1), (2, WEB, 0.1), (2, WEB, 0.6))
    dropped = apply_thresholds(texts, CutConfig(min_match_prob=0.5))
    dropped = dropped.drop(dropped.image == 0, held)
    assert reasons(dropped) == [below, held, below, below, None]
    assert reasons(dropped.anew(of_kept=False)) == [below, held, None, None, None]
    assert reasons(dropped.anew(of_kept=True)) == [below, held, below, None, None]


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_match_prob", 1.1), ("min_similarity", -2), ("keep_fraction", 0), ("top_k", 0)],
)
def test_config_out_of_range_names_the_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        CutConfig(**{field: value})
