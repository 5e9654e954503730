from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BlipForConditionalGeneration

from capfilt.config import CaptionConfig, ComputeConfig
from capfilt.evaluate.caption_metrics import bleu, cider
from capfilt.evaluate.captions import Captions, evaluate_captions
from capfilt.evaluate.pairs import Captioned
from capfilt.evaluate.pictures import Pictures
from capfilt.models.load import load_captioner
from tests import checkpoints
from tests.evaluate.conftest import PICTURES
from tests.models.conftest import make_images, normalised

BEAMS = CaptionConfig(method="beam", num_beams=3, max_length=20)


@pytest.fixture(scope="module")
def expected(hf_captioner: BlipForConditionalGeneration) -> dict[str, str]:
    """Captions by transformers' beam search, one image at a time."""
    names = checkpoints.tokenizer()
    prompt = names("a picture of ", add_special_tokens=False, return_tensors="pt").input_ids
    written = {}
    for i, image in enumerate(normalised(make_images(PICTURES))):
        with torch.inference_mode():
            ids = hf_captioner.generate(
                pixel_values=image[None],
                # transformers takes a prompt with [CLS] and [SEP] around it.
                input_ids=torch.cat([torch.tensor([[2]]), prompt, torch.tensor([[3]])], dim=1),
                num_beams=3, max_length=20, min_length=5,
            )  # fmt: skip
        text = names.decode(ids[0], skip_special_tokens=True)
        written[f"{i}.png"] = text.removeprefix("a picture of").strip()
    return written


def references(expected: dict[str, str]) -> list[Captioned]:
    """Of each image its caption cut short, and those of its neighbours."""
    texts = list(expected.values())
    return [
        Captioned(path, (f"{text.rsplit(' ', 2)[0]}.", texts[i - 1].upper(), "a dog"))
        for i, (path, text) in enumerate(expected.items())
    ]


def found(folder: Path, pictures: Path, pairs: list[Captioned], *, batch: int = 5) -> Captions:
    captioner = load_captioner(str(folder), BEAMS, seed=0, device="cpu")
    place = Pictures(str(pictures), compute=ComputeConfig(batch_size=batch))
    return evaluate_captions(captioner, pairs, place)


def test_captions_are_transformers_and_figures_are_of_them(
    captioner_folder: Path, pictures: Path, expected: dict[str, str]
) -> None:
    pairs = references(expected)
    made = found(captioner_folder, pictures, pairs)
    assert made.written == expected
    assert len(set(expected.values())) > PICTURES / 2
    words = [text.lower().split() for text in expected.values()]
    human = [[t.lower().rstrip(".").split() for t in pair.captions] for pair in pairs]
    assert made.bleu == pytest.approx(bleu(words, human))
    assert made.cider == pytest.approx(cider(words, human))
    assert 0.1 < made.bleu[3] < made.bleu[0] < 1
    assert made.cider > 0.5
    assert (made.images, made.references) == (PICTURES, 3 * PICTURES)


def test_batches_change_nothing_and_the_json_has_named_figures(
    captioner_folder: Path, pictures: Path, expected: dict[str, str]
) -> None:
    pairs = references(expected)
    made = found(captioner_folder, pictures, pairs, batch=1)
    tree = made.to_dict()
    again = found(captioner_folder, pictures, pairs, batch=64).to_dict()
    for figures in (tree, again):
        assert figures.pop("seconds") > 0
    assert tree == again
    assert [tree[f"bleu{n}"] for n in (1, 2, 3, 4)] == list(made.bleu)
    assert tree["captioner"]["architecture"] == "BlipForConditionalGeneration"
    assert made.rows()[0] == {"image": "0.png", "caption": expected["0.png"]}
