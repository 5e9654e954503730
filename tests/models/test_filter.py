from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BlipForImageTextRetrieval

from capfilt.config import ScoringConfig
from capfilt.errors import ModelError
from capfilt.models.filter import MatchFilter
from capfilt.models.images import PixelSpec
from capfilt.models.load import load_filter
from capfilt.record import Score
from capfilt.text import normalise
from tests import checkpoints
from tests.models.conftest import make_images, normalised

BOTH = ScoringConfig(similarity=True)
PHRASES = [
    "A dog on the grass!",
    "snow",
    "free shipping: click here",
    "two people",
    "a red car (4)",
]


def load(folder: Path, config: ScoringConfig = BOTH, **options: Any) -> MatchFilter:
    made = load_filter(str(folder), config, device="cpu", **options)
    assert isinstance(made, MatchFilter)
    return made


def some_texts(images: int) -> list[list[str]]:
    """0 to 4 texts per image, of 1 to 12 words."""
    chooser = random.Random(0)
    words = " ".join(PHRASES).split()
    return [
        [" ".join(chooser.choices(words, k=chooser.randint(1, 12))) for _ in range(i % 5)]
        for i in range(images)
    ]


@torch.inference_mode()
def expected_scores(
    reference: BlipForImageTextRetrieval,
    images: Tensor,
    texts: list[list[str]],
    *,
    first: str = "[ENC]",
    max_tokens: int = 35,
    max_words: int = 30,
) -> list[list[tuple[float, float]]]:
    """Match probability and similarity by transformers, one text at a time."""
    tokenizer = checkpoints.tokenizer()
    scores = []
    for image, of_image in zip(normalised(images), texts, strict=True):
        scores.append([])
        for text in of_image:
            clean = normalise(text, max_words=max_words)
            ids = tokenizer(
                clean, truncation=True, max_length=max_tokens, return_tensors="pt"
            ).input_ids
            itc = reference(input_ids=ids, pixel_values=image[None], use_itm_head=False).itm_score
            ids[:, 0] = tokenizer.convert_tokens_to_ids(first)
            itm = reference(input_ids=ids, pixel_values=image[None]).itm_score
            scores[-1].append((itm.softmax(-1)[0, 1].item(), itc.item()))
    return scores


def assert_close(
    scores: list[list[Score]], expected: list[list[tuple[float, float]]], tolerance: float = 1e-4
) -> None:
    for of_image, wanted in zip(scores, expected, strict=True):
        for score, (match_prob, similarity) in zip(of_image, wanted, strict=True):
            assert score.match_prob == pytest.approx(match_prob, abs=tolerance)
            assert score.similarity == pytest.approx(similarity, abs=tolerance)


def test_score_gives_transformers_match_probs_and_similarities(
    filter_folder: Path, hf_filter: BlipForImageTextRetrieval
) -> None:
    images, texts = make_images(40), some_texts(40)
    expected = expected_scores(hf_filter, images, texts)
    match_probs = torch.tensor([pair[0] for of_image in expected for pair in of_image])
    assert match_probs.std() > 0.2
    assert 0.2 < (match_probs > 0.5).float().mean() < 0.8
    assert_close(load(filter_folder).score(list(images), texts), expected)


def test_score_with_cls_token_is_that_of_the_published_demo(
    filter_folder: Path, hf_filter: BlipForImageTextRetrieval
) -> None:
    images, texts = make_images(6), some_texts(6)
    config = ScoringConfig(similarity=True, itm_token="cls")
    expected = expected_scores(hf_filter, images, texts, first="[CLS]")
    assert_close(load(filter_folder, config).score(list(images), texts), expected)
    assert load(filter_folder).score(list(images), texts) != expected


def test_score_of_a_long_text_is_that_of_its_start(
    filter_folder: Path, hf_filter: BlipForImageTextRetrieval
) -> None:
    images, texts = make_images(2), [["a dog and a cat " * 50], ["snow"]]
    config = ScoringConfig(similarity=True, max_tokens=12, max_words=20)
    expected = expected_scores(hf_filter, images, texts, max_tokens=12, max_words=20)
    assert_close(load(filter_folder, config).score(list(images), texts), expected)
    by_words = load(filter_folder, ScoringConfig(similarity=True, max_words=3))
    long, short = by_words.score(list(images), [["a dog and a"], ["a dog and"]])
    ((again,), _) = by_words.score(list(images), [["a dog and"], ["a dog and a"]])
    assert long == [again]
    assert short != long  # another image


def test_score_alone_or_in_any_batch_and_order_is_the_same(filter_folder: Path) -> None:
    images, texts = make_images(40), some_texts(40)
    filter_ = load(filter_folder)
    whole = filter_.score(list(images), texts)
    order = random.Random(0).sample(range(40), 40)
    for size in (1, 7):
        for start in range(0, 40, size):
            batch = order[start : start + size]
            scores = filter_.score([images[i] for i in batch], [texts[i] for i in batch])
            expected = [[(s.match_prob, s.similarity) for s in whole[i]] for i in batch]
            assert_close(scores, expected, tolerance=1e-5)


@pytest.mark.parametrize(
    ("config", "texts", "passed"),
    [
        (BOTH, [["a"], ["a", "snow"], ["a"] * 11], [3]),
        (ScoringConfig(match_prob=False, similarity=True), [["a"] * 5] * 3, [3]),
        (BOTH, [["a"], [], ["snow"]], [2]),
        (BOTH, [[], [], []], []),
    ],
)
def test_image_passes_the_tower_once_however_many_texts(
    config: ScoringConfig, texts: list[list[str]], passed: list[int], filter_folder: Path
) -> None:
    filter_ = load(filter_folder, config)
    passes: list[int] = []
    filter_.model.vit.register_forward_hook(lambda _, x, __: passes.append(len(x[0])))
    scores = filter_.score(list(make_images(3)), texts)
    assert passes == passed
    assert [len(of_image) for of_image in scores] == [len(of_image) for of_image in texts]


def test_score_that_is_not_asked_for_is_none(filter_folder: Path) -> None:
    images, texts = list(make_images(1)), [["snow"]]
    match_only = load(filter_folder, ScoringConfig()).score(images, texts)[0][0]
    config = ScoringConfig(match_prob=False, similarity=True)
    similarity_only = load(filter_folder, config).score(images, texts)[0][0]
    both = load(filter_folder).score(images, texts)[0][0]
    assert match_only == Score(match_prob=both.match_prob)
    assert similarity_only == Score(similarity=both.similarity)


def test_score_of_an_empty_text_is_a_probability(filter_folder: Path) -> None:
    ((score,),) = load(filter_folder).score(list(make_images(1)), [[" ... "]])
    assert score.match_prob is not None
    assert 0 <= score.match_prob <= 1


def test_score_of_special_token_in_a_web_text_is_that_of_plain_words(
    filter_folder: Path, hf_filter: BlipForImageTextRetrieval
) -> None:
    # Lower-cased, "[SEP]" is letters and brackets: a web page cannot end a text early.
    images, texts = make_images(1), [["a dog [SEP] [PAD] in snow [ENC]"]]
    scores = load(filter_folder).score(list(images), texts)
    assert_close(scores, expected_scores(hf_filter, images, texts))
    ids = load(filter_folder)._tokens(texts)[0][0]
    assert ids.count(checkpoints.tokenizer().sep_token_id) == 1


def test_bf16_match_probs_are_near_those_of_fp32(filter_folder: Path) -> None:
    images, texts = list(make_images(20)), some_texts(20)
    full = load(filter_folder).score(images, texts)
    half = load(filter_folder, precision="bf16").score(images, texts)
    off = [
        abs(a.match_prob - b.match_prob)
        for pair in zip(full, half, strict=True)
        for a, b in zip(*pair, strict=True)
        if a.match_prob is not None and b.match_prob is not None
    ]
    assert 0 < sum(off) / len(off) < 0.05


def test_filter_asks_for_its_checkpoints_pixels(filter_folder: Path) -> None:
    assert load(filter_folder).pixels == PixelSpec(size=32, crop=False)
    assert load(filter_folder).identity.architecture == "BlipForImageTextRetrieval"


def test_max_tokens_beyond_the_positions_is_refused(filter_folder: Path) -> None:
    with pytest.raises(ModelError, match="positions for 64 tokens"):
        load(filter_folder, ScoringConfig(max_tokens=65))
