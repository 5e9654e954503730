from dataclasses import replace

import pytest

from capfilt.demo.truth import CAPTION_FALSE, CAPTION_TRUE, Found, Judged


def text(kind: str, match_prob: float | None, *, is_kept: bool, file: str = "0.jpg") -> Judged:
    return Judged(file, kind, match_prob, is_kept)


TEXTS = [
    text("true", 0.9, is_kept=True),
    text("true", 0.4, is_kept=False, file="1.jpg"),
    text("lie", 0.6, is_kept=True, file="2.jpg"),
    text("lie", 0.3, is_kept=False, file="3.jpg"),
    text("junk", 0.1, is_kept=False, file="4.jpg"),
    text("empty", None, is_kept=False, file="5.jpg"),
    text(CAPTION_TRUE, 0.8, is_kept=True),
    text(CAPTION_TRUE, 0.7, is_kept=True, file="1.jpg"),
    text(CAPTION_FALSE, 0.2, is_kept=False, file="2.jpg"),
    text(CAPTION_FALSE, 0.55, is_kept=True, file="3.jpg"),
]


def test_figures_are_those_counted_by_hand() -> None:
    found = Found.of(TEXTS)
    assert found.images == 6
    assert found.texts["lie"] == 2
    assert found.kept["lie"] == 1
    assert found.filter_precision == pytest.approx(3 / 5)
    assert found.filter_recall == pytest.approx(3 / 4)
    assert found.noise_ratio == pytest.approx(1 / 4)
    assert found.captions_written_true == pytest.approx(2 / 4)
    assert found.captions_kept_true == pytest.approx(2 / 3)
    assert found.itm_auc_hard_lies == pytest.approx(3 / 4)  # 0.4 < 0.6 is the one pair in four
    assert found.itm_auc == pytest.approx(5 / 6)  # and junk below both


def test_figures_of_a_run_that_keeps_nothing_are_zeros() -> None:
    found = Found.of([replace(row, is_kept=False) for row in TEXTS])
    assert (found.filter_precision, found.filter_recall, found.captions_kept_true) == (0, 0, 0)
    assert found.noise_ratio == 1


def test_figures_of_few_pictures_have_no_auc_where_there_is_nothing_to_compare() -> None:
    found = Found.of([row for row in TEXTS if row.kind != "lie"])
    assert (found.itm_auc, found.itm_auc_hard_lies) == (1, None)  # of 0.9 and 0.4 against 0.1
    found = Found.of([row for row in TEXTS if row.kind != "true"])
    assert (found.itm_auc, found.itm_auc_hard_lies) == (None, None)
    assert found.filter_precision == pytest.approx(2 / 4)
