from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from capfilt.evaluate.caption_metrics import bleu, cider, tokens

COCO = Path(__file__).resolve().parents[2].parent / "shared/data/coco_captions_text"
GRASS = "a dog runs on the grass", "the dog is on green grass", "a dog on grass"
BLEU = [0.5882938098718371, 0.37328069040439277, 0.24296318755822618, 0.15761263994641359]
CIDER = 0.7340970982919063  # both: see the last tests
SNOW = "two people ski in the snow", "people with skis on a snowy hill"


def split(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [  # as Stanford's PTBTokenizer 3.4.1 of COCO's evaluation gave them
        ("A man's T-shirt isn't red.", "a man 's t-shirt is n't red"),
        ('A sign says "STOP", they\'re late...', "a sign says stop they 're late"),
        ("He cannot see a 7:30 train - or 1/2!", "he can not see a 7:30 train or 1/2"),
        ("Dogs (brown) on St. John in the U.S.", "dogs -lrb- brown -rrb- on st. john in the u.s."),
        ("black & white;  it costs $5", "black & white it costs $ 5"),
        ("  ", ""),
    ],
)
def test_tokens_are_those_of_cocos_evaluation(caption: str, wanted: str) -> None:
    assert tokens(caption) == wanted.split()


def test_bleu_of_hand_counted_captions() -> None:
    # Image 1: 5 words; unigrams a, dog, on, grass of "a a dog on grass" match (a once: clipped);
    # bigrams "a dog", "dog on", "on grass"; trigrams "a dog on", "dog on grass"; "a dog on grass".
    # Image 2: 3 words, all unigrams; bigrams "two people", not "people snow".
    candidates = split("a a dog on grass", "two people snow")
    references = [split(*GRASS), split(*SNOW)]
    # Nearest lengths: 4 and 6 words are equally near to 5, so 4; 6 words for 3.
    brevity = math.exp(1 - (4 + 6) / (5 + 3))
    precisions = [7 / 8, 4 / 6, 2 / 4, 1 / 2]
    wanted = [brevity * math.prod(precisions[:n]) ** (1 / n) for n in (1, 2, 3, 4)]
    assert bleu(candidates, references) == pytest.approx(wanted, abs=1e-12)


def test_bleu_of_perfect_captions_is_1_and_of_strange_or_empty_ones_0() -> None:
    references = [split(*GRASS), split(*SNOW)]
    assert bleu([references[0][1], references[1][1]], references) == pytest.approx([1.0] * 4)
    assert bleu(split("x y", "z"), references) == [0.0] * 4
    assert bleu([[], []], references) == [0.0] * 4


def test_bleu_without_a_common_4_gram_is_0_but_its_lower_orders_are_not() -> None:
    figures = bleu(split("a dog"), [split("a dog")])
    assert figures == [1.0, 1.0, 0.0, 0.0]


def test_cider_of_hand_counted_captions() -> None:
    # Of two images a word in one has weight log 2, in both 0: "the" counts nothing, so cosines are
    # over the others. "the dog" has 1 unigram and 1 bigram of the reference's 2 and 2.
    candidates, references = (
        split("the dog", "the snow"),
        [split("the dog runs"), split("the snow")],
    )
    first = (1 / math.sqrt(2) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    second = (1 + 1) / 4
    assert cider(candidates, references) == pytest.approx(10 * (first + second) / 2, abs=1e-12)


def test_cider_clips_repetition_and_averages_references() -> None:
    candidates = split("dog dog dog", "snow")
    references = [split("dog", "cat"), split("snow")]
    # min(3, 1) * 1 / (3 * 1) for unigrams; the other orders have nothing in common.
    first = (1 / 3) / 4 * math.exp(-4 / 72) / 2
    assert cider(candidates, references) == pytest.approx(10 * (first + 1 / 4) / 2, abs=1e-12)


def test_cider_of_one_image_is_0() -> None:
    assert cider(split("a dog"), [split("a dog")]) == 0.0


def coco_captions() -> tuple[list[list[str]], list[list[list[str]]]]:
    """Of each image one human caption, many of them spoilt, and the others as references."""
    tree = json.loads((COCO / "captions_val2017.json").read_text())
    by_image: dict[int, list[str]] = {}
    for annotation in tree["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation["caption"])
    chooser, candidates = random.Random(0), []
    for i, captions in enumerate(by_image.values()):
        words = tokens(captions[0])
        cut = words[: chooser.randint(0, len(words))]
        candidates.append(words if i >= 2000 else cut if i % 3 else words[::-1])
    return candidates, [[tokens(c) for c in captions[1:]] for captions in by_image.values()]


@pytest.mark.skipif(not COCO.is_dir(), reason="needs COCO's captions, not part of the repository")
def test_figures_of_cocos_captions_are_those_of_cocos_scorers() -> None:
    candidates, references = coco_captions()
    # By pycocoevalcap 1.2 from the same tokens.
    assert bleu(candidates, references) == pytest.approx(BLEU, abs=1e-9)
    assert cider(candidates, references) == pytest.approx(CIDER, abs=1e-9)


@pytest.mark.skipif(not COCO.is_dir(), reason="needs COCO's captions, not part of the repository")
def test_figures_of_cocos_captions_are_those_of_the_installed_scorers() -> None:
    candidates, references = coco_captions()
    scorers: Any = pytest.importorskip("pycocoevalcap.bleu.bleu")
    cider_scorers: Any = pytest.importorskip("pycocoevalcap.cider.cider")
    truth = {i: [" ".join(r) for r in of_image] for i, of_image in enumerate(references)}
    made = {i: [" ".join(candidate)] for i, candidate in enumerate(candidates)}
    wanted, _ = scorers.Bleu(4).compute_score(truth, made, verbose=0)
    assert bleu(candidates, references) == pytest.approx(wanted, abs=1e-9)
    assert cider(candidates, references) == pytest.approx(
        cider_scorers.Cider().compute_score(truth, made)[0], abs=1e-9
    )
