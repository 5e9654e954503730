"""Both stages of BLIP-2 learn what they are for: on new pictures of two colours."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.data.batch import Batch
from capfilt.evaluate.labels import Curve
from capfilt.models.blip2_load import load_language_tokenizer
from capfilt.models.load import load_captioner, load_filter
from capfilt.train.blip2_generate import Blip2Generate, GenerateConfig
from capfilt.train.towers import DropConfig
from tests.train.small_blip2 import TOKENIZER, make_model, vocabulary
from tests.train.small_language import make_language

log = logging.getLogger(__name__)

COLOURS = {  # in words that both vocabularies have
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "snow": (240, 240, 240),
    "street": (20, 20, 20),
}  # fmt: skip
PAIRS = [(a, b) for a in COLOURS for b in COLOURS]
TEXTS = [f"a {a} dog on a {b} bus" for a, b in PAIRS]
UNSEEN = [4, 7, 11, 15, 23]  # combinations that training never has
SEEN = [i for i in range(len(PAIRS)) if i not in UNSEEN]


def draw(number: int, rng: random.Random) -> Tensor:
    """The left half in one colour, the right one in the other, both a little off, with noise."""
    image = torch.empty(3, 32, 32)
    for half, name in enumerate(PAIRS[number]):
        colour = torch.tensor(COLOURS[name]) + torch.tensor([rng.gauss(0, 12) for _ in range(3)])
        image[:, :, 16 * half : 16 * (half + 1)] = colour[:, None, None]
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    return (image + 8 * noise).clamp(0, 255).to(torch.uint8)


def batch_of(numbers: list[int], ids: list[list[int]], rng: random.Random) -> Batch:
    keys = torch.tensor(numbers)
    images = torch.stack([draw(number, rng) for number in numbers])
    return Batch(images, [ids[n] for n in numbers], [str(n) for n in numbers], keys, keys)


def learn(model: nn.Module, ids: list[list[int]], steps: int, lr: float) -> None:
    rng = random.Random(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps)
    for step in range(steps):
        losses = model(batch_of(rng.sample(SEEN, len(SEEN)), ids, rng), step)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()


def learn_language(folder: Path) -> None:
    """Let the language model of a folder learn the captions, without pictures."""
    from transformers import OPTForCausalLM

    tokenizer = load_language_tokenizer(folder)
    model = OPTForCausalLM.from_pretrained(folder)
    end = model.config.eos_token_id
    ids = torch.tensor([[*tokenizer(text)["input_ids"], end] for text in TEXTS])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def represented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 1 makes."""
    model = make_model()
    learn(model, [TOKENIZER(text)["input_ids"][1:] for text in TEXTS], steps=300, lr=3e-3)
    folder = tmp_path_factory.mktemp("represented")
    model.export_filter(folder, vocabulary(folder.parent / "names"))
    return folder


@pytest.mark.slow
def test_stage_1_tells_texts_of_unseen_pictures(represented: Path) -> None:
    rng = random.Random(1)
    images = [draw(number, rng) for number in range(len(PAIRS))]
    filter_ = load_filter(str(represented), ScoringConfig(similarity=True), device="cpu")
    scores = filter_.score(images, [TEXTS] * len(images))
    labels = [i == j for i in range(len(PAIRS)) for j in range(len(PAIRS))]
    flat = [score for of_image in scores for score in of_image]
    itm = Curve.of([score.match_prob or 0.0 for score in flat], labels).roc_auc
    itc = torch.tensor([[score.similarity or 0.0 for score in row] for row in scores])
    right = (itc.argmax(1) == torch.arange(len(PAIRS))).float()
    log.info("ITM AUC %.3f, R@1 %.2f, of new pairs %.2f", itm, right.mean(), right[UNSEEN].mean())
    assert itm >= 0.95
    assert right.mean() >= 10 / len(PAIRS)  # ten times chance


@pytest.mark.slow
def test_stage_2_writes_the_captions_of_unseen_pictures(represented: Path, tmp_path: Path) -> None:
    language = make_language(tmp_path, "opt")
    learn_language(language)
    config = GenerateConfig(
        start=str(represented), language=str(language), image_size=32, drop=DropConfig(text=0.0)
    )
    model = Blip2Generate.load(config, seed=0, dtype=torch.float32).train()
    ids = [row[1:] for row in model.texts.encode(TEXTS, max_tokens=20)]
    learn(model, ids, steps=800, lr=3e-3)
    model.eval().export_captioner(tmp_path / "captioner")
    decoding = CaptionConfig(method="greedy", prompt="", min_length=1, max_length=20)
    captioner = load_captioner(str(tmp_path / "captioner"), decoding, seed=0, device="cpu")
    rng = random.Random(1)
    images = [draw(number, rng) for number in range(len(PAIRS))]
    found = captioner.caption(images, [str(i) for i in range(len(images))])
    right = torch.tensor([float(row == (text,)) for row, text in zip(found, TEXTS, strict=True)])
    log.info("right captions %.2f, of new pairs %.2f", right.mean(), right[UNSEEN].mean())
    assert right.mean() > 0.5
