from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BlipForImageTextRetrieval

from capfilt.config import ComputeConfig, ScoringConfig
from capfilt.errors import ModelError
from capfilt.evaluate import filter_quality
from capfilt.evaluate.filter_quality import Quality, evaluate_filter, score_pairs
from capfilt.evaluate.pairs import Labelled
from capfilt.evaluate.pictures import Pictures
from capfilt.models.load import load_filter
from tests.evaluate.conftest import PICTURES
from tests.models.conftest import make_images
from tests.models.test_filter import expected_scores

BOTH = ScoringConfig(similarity=True)
TEXTS = ["A dog on the grass!", "snow", "free shipping: click here", "two people", "a red car (4)"]


def some_pairs() -> list[Labelled]:
    """Pairs in no order, of images with one to five texts, some of them twice."""
    chooser = random.Random(0)
    pairs = [
        Labelled(f"{i}.png", text, chooser.random() < 0.4)
        for i in range(PICTURES)
        for text in TEXTS[: 1 + i % 5]
    ]
    chooser.shuffle(pairs)
    return [*pairs, *pairs[:3]]


def plain(scores: list[float], pairs: list[Labelled], threshold: float) -> dict[str, float]:
    """Figures by the definitions, pair by pair."""
    both = list(zip(scores, (pair.matches for pair in pairs), strict=True))
    good, bad = ([s for s, matches in both if matches is kind] for kind in (True, False))
    true, reached = sum(s >= threshold for s in good), sum(s >= threshold for s, _ in both)
    return {
        "roc_auc": sum((a > b) + (a == b) / 2 for a in good for b in bad) / len(good) / len(bad),
        "average_precision": sum(
            sum(s >= a for s in good) / sum(s >= a for s, _ in both) for a in good
        ) / len(good),
        "precision": true / reached,
        "recall": true / len(good),
        "best_f1": max(
            2 * sum(a >= t for a in good) / (sum(s >= t for s, _ in both) + len(good))
            for t in scores
        ),
    }  # fmt: skip


def figures(quality: Quality | None) -> dict[str, float | None]:
    assert quality is not None
    assert quality.at_threshold is not None
    return {
        "roc_auc": quality.roc_auc,
        "average_precision": quality.average_precision,
        "precision": quality.at_threshold.precision,
        "recall": quality.at_threshold.recall,
        "best_f1": quality.best.f1,
    }


def test_figures_are_those_of_transformers_scores(
    filter_folder: Path, pictures: Path, hf_filter: BlipForImageTextRetrieval
) -> None:
    pairs = some_pairs()
    by_image = [[p.caption for p in pairs if p.image == f"{i}.png"] for i in range(PICTURES)]
    scored = iter(expected_scores(hf_filter, make_images(PICTURES), by_image))
    scores = {
        (f"{i}.png", text): score
        for i, (texts, of_image) in enumerate(zip(by_image, scored, strict=True))
        for text, score in zip(texts, of_image, strict=True)
    }
    match_probs, similarities = zip(*(scores[p.image, p.caption] for p in pairs), strict=True)
    filter_ = load_filter(str(filter_folder), BOTH, device="cpu")
    made = evaluate_filter(filter_, pairs, Pictures(str(pictures)), threshold=0.5)
    assert made.match_prob is not None
    assert made.similarity is not None
    wanted = plain(list(match_probs), pairs, 0.5)
    assert figures(made.match_prob) == pytest.approx(wanted, abs=1e-9)
    assert 0 < wanted["recall"] < 1
    assert made.similarity.at_threshold is None
    best = made.similarity.best
    shown = replace(made.similarity, at_threshold=best)
    wanted = plain(list(similarities), pairs, best.threshold - 1e-5)  # scores to the last digit
    assert figures(shown) == pytest.approx(wanted, abs=1e-9)
    assert (made.pairs, made.images) == (len(pairs), PICTURES)
    assert made.matching == sum(pair.matches for pair in pairs)


def test_scores_come_in_the_order_of_the_pairs_however_they_are_grouped(
    filter_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filter_ = load_filter(str(filter_folder), BOTH, device="cpu")
    pairs = [(pair.image, pair.caption) for pair in some_pairs()]
    wanted = [score_pairs(filter_, [pair], Pictures(str(pictures)))[0] for pair in pairs]
    for texts, batch in ((2, 5), (1, 64), (32, 1)):
        monkeypatch.setattr(filter_quality, "TEXTS_PER_IMAGE", texts)
        place = Pictures(str(pictures), compute=ComputeConfig(batch_size=batch))
        for score, alone in zip(score_pairs(filter_, pairs, place), wanted, strict=True):
            assert score.match_prob == pytest.approx(alone.match_prob, abs=1e-5)
            assert score.similarity == pytest.approx(alone.similarity, abs=1e-5)


def test_a_clip_filter_has_similarity_alone(clip_folder: Path, pictures: Path) -> None:
    config = ScoringConfig(match_prob=False, similarity=True)
    filter_ = load_filter(str(clip_folder), config, device="cpu")
    made = evaluate_filter(filter_, some_pairs(), Pictures(str(pictures)), threshold=None)
    assert made.match_prob is None
    assert made.similarity is not None
    assert 0 < made.similarity.roc_auc < 1


def test_a_filter_that_gives_no_numbers_is_refused(filter_folder: Path, pictures: Path) -> None:
    filter_ = load_filter(str(filter_folder), BOTH, device="cpu")
    with torch.no_grad():
        filter_.model.vit.class_token.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="a score is not a finite number"):
        evaluate_filter(filter_, some_pairs(), Pictures(str(pictures)), threshold=0.5)
