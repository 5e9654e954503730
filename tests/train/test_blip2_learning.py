"""Both stages of BLIP-2 learn what they are for: new pictures of two colours never seen together.

As in the paper, what is frozen knows its trade: the image encoder has learned to name the colours
of both halves, and the language model to make a sentence of the words that stand before it.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertTokenizer, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.data.batch import Batch
from capfilt.demo import tiny
from capfilt.evaluate.labels import Curve
from capfilt.models.load import load_captioner, load_filter
from capfilt.models.vit import ViT
from capfilt.train import initial
from capfilt.train.blip2 import Blip2Represent, RepresentConfig
from capfilt.train.blip2_generate import Blip2Generate, GenerateConfig
from capfilt.train.tokens import Tokens
from capfilt.train.towers import DropConfig, FrozenImageTower, QueryTower
from tests.train.small_blip2 import IMAGE

log = logging.getLogger(__name__)

COLOURS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "white": (245, 245, 245),
    "black": (20, 20, 20), "yellow": (235, 205, 40), "purple": (150, 60, 190),
    "orange": (250, 140, 30),
}  # fmt: skip
PAIRS = [(a, b) for a in COLOURS for b in COLOURS]
TEXTS = [f"a {a} dog on a {b} bus" for a, b in PAIRS]
SHUFFLED = [*range(len(PAIRS))]
random.Random(0).shuffle(SHUFFLED)
UNSEEN, SEEN = sorted(SHUFFLED[:16]), sorted(SHUFFLED[16:])  # no training has the first
WORDS = [*COLOURS, "a", "dog", "on", "bus"]
QUERIES = 5


def draw(number: int, rng: random.Random) -> Tensor:
    """The left half in one colour, the right one in the other, both a little off, with noise."""
    image = torch.empty(3, 32, 32)
    for half, name in enumerate(PAIRS[number]):
        colour = torch.tensor(COLOURS[name]) + torch.tensor([rng.gauss(0, 12) for _ in range(3)])
        image[:, :, 16 * half : 16 * (half + 1)] = colour[:, None, None]
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    return (image + 8 * noise).clamp(0, 255).to(torch.uint8)


def new_pictures() -> list[Tensor]:
    """One of each pair, as no training has drawn it."""
    rng = random.Random(1)
    return [draw(number, rng) for number in range(len(PAIRS))]


def batch_of(numbers: list[int], ids: list[list[int]], rng: random.Random) -> Batch:
    keys = torch.tensor(numbers)
    images = torch.stack([draw(number, rng) for number in numbers])
    return Batch(images, [ids[n] for n in numbers], [str(n) for n in numbers], keys, keys)


def learn(model: nn.Module, ids: list[list[int]], steps: int) -> None:
    rng = random.Random(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    for step in range(steps):
        losses = model(batch_of(rng.sample(SEEN, len(SEEN)), ids, rng), step)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()


def learned_encoder(steps: int = 600) -> ViT:
    """An image encoder that names the colours of both halves."""
    torch.manual_seed(0)
    vit = ViT(IMAGE)
    initial.from_scratch(vit)
    head, rng = nn.Linear(IMAGE.width, 2 * len(COLOURS)), random.Random(5)
    optimiser = torch.optim.AdamW([*vit.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(steps):
        numbers = [rng.choice(SEEN) for _ in range(32)]
        named = head(vit(torch.stack([draw(n, rng) for n in numbers]))[:, 0])
        right = torch.tensor([[[*COLOURS].index(name) for name in PAIRS[n]] for n in numbers])
        optimiser.zero_grad()
        F.cross_entropy(named.view(len(numbers), -1, 2), right).backward()
        optimiser.step()
    return vit


def learned_language(folder: Path, steps: int = 300) -> Path:
    """An OPT that writes `a red dog on a blue bus` after `bus blue dog red .`, in its folder."""
    known = ["<pad>", "<unk>", "</s>", ".", *WORDS]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    start = [("</s>", 2)]
    words.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=start)
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "</s>", "eos_token": "</s>"}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    sizes = {"hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 96, "num_hidden_layers": 2}
    tokens = {"vocab_size": len(tokenizer) + 2, "pad_token_id": 0, "bos_token_id": 2}
    model = OPTForCausalLM(
        OPTConfig(
            **sizes, **tokens, num_attention_heads=4, max_position_embeddings=64, dropout=0.0,
            eos_token_id=2,
        )
    )  # fmt: skip
    rows = [
        [*tokenizer(hint, add_special_tokens=False)["input_ids"], *tokenizer(text)["input_ids"], 2]
        for (a, b), text in zip(PAIRS, TEXTS, strict=True)
        for hint in (f"dog {a} bus {b} .", f"bus {b} dog {a} .")
    ]
    ids = torch.tensor(rows)
    labels = ids.clone()
    labels[:, : QUERIES + 1] = -100  # of as many words as there will be queries, and the start
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def represented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 1 makes."""
    folder = tmp_path_factory.mktemp("stage1")
    names = BertTokenizer(vocab={t: i for i, t in enumerate(tiny.vocabulary(WORDS))})
    names.add_special_tokens({"bos_token": "[DEC]"})
    names.save_pretrained(folder / "names")
    config = RepresentConfig(
        image=FrozenImageTower(image_size=IMAGE.image_size),
        qformer=QueryTower(width=48, layers=3, heads=4, queries=QUERIES),
        embedding=16,
        drop=DropConfig(text=0.0),
    )
    model = Blip2Represent(config, learned_encoder(), Tokens.of_bert(names), seed=0).train()
    learn(model, [names(text)["input_ids"][1:] for text in TEXTS], steps=1000)
    model.export_filter(folder / "filter", folder / "names")
    return folder / "filter"


@pytest.mark.slow
def test_stage_1_tells_texts_of_unseen_pictures(represented: Path) -> None:
    filter_ = load_filter(str(represented), ScoringConfig(similarity=True), device="cpu")
    scores = filter_.score(new_pictures(), [TEXTS] * len(PAIRS))

    def auc(pictures: list[int]) -> float:
        probabilities = [score.match_prob or 0.0 for i in pictures for score in scores[i]]
        return Curve.of(
            probabilities, [i == j for i in pictures for j in range(len(PAIRS))]
        ).roc_auc

    itc = torch.tensor([[score.similarity or 0.0 for score in row] for row in scores])
    right = (itc.argmax(1) == torch.arange(len(PAIRS))).float()
    itm, of_new = auc([*range(len(PAIRS))]), auc(UNSEEN)
    log.info("ITM AUC %.3f, of new pairs %.3f", itm, of_new)
    log.info("R@1 %.2f, of new pairs %.2f", right.mean(), right[UNSEEN].mean())
    assert min(itm, of_new) >= 0.95
    assert min(right.mean(), right[UNSEEN].mean()) >= 10 / len(PAIRS)  # ten times chance


@pytest.mark.slow
def test_stage_2_writes_the_captions_of_unseen_pictures(represented: Path, tmp_path: Path) -> None:
    config = GenerateConfig(
        start=str(represented),
        language=str(learned_language(tmp_path / "language")),
        image_size=IMAGE.image_size,
        drop=DropConfig(text=0.0),
    )
    model = Blip2Generate.load(config, seed=0, dtype=torch.float32).train()
    learn(model, [row[1:] for row in model.texts.encode(TEXTS, max_tokens=20)], steps=500)
    model.eval().export_captioner(tmp_path / "captioner")
    decoding = CaptionConfig(method="greedy", prompt="", min_length=1, max_length=20)
    captioner = load_captioner(str(tmp_path / "captioner"), decoding, seed=0, device="cpu")
    found = captioner.caption(new_pictures(), [str(i) for i in range(len(PAIRS))])
    right = torch.tensor([float(row == (text,)) for row, text in zip(found, TEXTS, strict=True)])
    log.info("right captions %.2f, of new pairs %.2f", right.mean(), right[UNSEEN].mean())
    assert right[UNSEEN].mean() > 0.5
