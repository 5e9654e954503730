"""Both stages of BLIP-2, through `capfilt train`, learn what they are for.

They see shards of pictures of two colours with their captions, and are asked about new pictures,
some of colours never seen together: stage 1 as a filter, stage 2 as the captioner of `capfilt run`.
As in the paper, what is frozen knows its trade: the image encoder has learned to name the colours
of both halves, and the language model to make a sentence of the words that stand before it.
"""

from __future__ import annotations

import io
import json
import logging
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertTokenizer, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from capfilt.config import ScoringConfig
from capfilt.demo import tiny
from capfilt.evaluate.labels import Curve
from capfilt.models import vit_layout
from capfilt.models.load import load_filter
from capfilt.models.vit import ViT
from capfilt.train import initial
from tests.call import capfilt
from tests.run.conftest import ledger_rows
from tests.train.small_blip2 import IMAGE, make_vision_folder

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
PICTURES, SHARDS = 40, 4  # of each pair, in so many shards


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


def write_shard(folder: Path, index: int, pictures: list[Tensor], texts: list[str]) -> None:
    """As img2dataset writes it; keys end in the picture's number."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / f"{index:05d}.tar", "w") as tar:
        for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            encoded = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(encoded, "PNG")
            for ending, content in (("png", encoded.getvalue()), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{index:05d}{i:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    stats = {"count": len(texts), "successes": len(texts), "failed_to_download": 0}
    (folder / f"{index:05d}_stats.json").write_text(json.dumps(stats))


def train(stage: str, folder: Path, steps: int, **model: object) -> Path:
    """Train with the command; the folder that it leaves."""
    tree = {
        "data": {
            "datasets": [{"path": str(folder / "web")}],
            "image_size": IMAGE.image_size,
            "augment": {"enabled": False},  # half of the captions would be false of a flipped one
            "workers": 1,
        },
        "model": {"drop": {"text": 0.0}, **model},
        "optimiser": {"lr": 3e-3, "clip_norm": 1.0},
        "schedule": {"warmup_steps": steps // 5, "min_lr": 0.0},
        "loop": {"steps": steps, "batch_size": len(SEEN)},
        **({"vocabulary": str(folder / "names")} if stage == "blip2_stage1" else {}),
    }
    config = folder / f"{stage}.yaml"
    config.write_text(json.dumps(tree))  # which YAML can read
    done = capfilt("train", stage, "-c", config, "--out", folder / stage, "--json")
    assert done.returncode == 0, done.stderr
    log.info("%s: %s", stage, json.loads(done.stdout)["losses"])
    return folder / stage


def learned_encoder(folder: Path, steps: int = 600) -> Path:
    """A `Blip2VisionModel` that names the colours of both halves, in its folder."""
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
    make_vision_folder(folder)
    state = {f"vit.{name}": tensor.detach() for name, tensor in vit.named_parameters()}
    tensors = vit_layout.query_image(image_layers=IMAGE.layers).release(state)
    save_file({name: x.clone() for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


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
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the web, and with what stage 1 makes of it."""
    folder = tmp_path_factory.mktemp("world")
    rng = random.Random(0)
    numbers = SEEN * (PICTURES // SHARDS)
    for index in range(SHARDS):
        pictures = [draw(number, rng) for number in numbers]
        write_shard(folder / "web", index, pictures, [TEXTS[number] for number in numbers])
    names = BertTokenizer(vocab={t: i for i, t in enumerate(tiny.vocabulary(WORDS))})
    names.save_pretrained(folder / "names")
    image = {"weights": str(learned_encoder(folder / "vit")), "image_size": IMAGE.image_size}
    qformer = {"width": 48, "layers": 3, "heads": 4, "queries": QUERIES}
    train("blip2_stage1", folder, 1000, image=image, qformer=qformer, embedding=16)
    return folder


@pytest.mark.slow
def test_stage_1_tells_texts_of_unseen_pictures(world: Path) -> None:
    folder = str(world / "blip2_stage1" / "filter")
    filter_ = load_filter(folder, ScoringConfig(similarity=True), device="cpu")
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
def test_stage_2_writes_the_captions_of_unseen_pictures(world: Path) -> None:
    language = str(learned_language(world / "language"))
    start, side = str(world / "blip2_stage1"), IMAGE.image_size
    out = train("blip2_stage2", world, 500, start=start, language=language, image_size=side)
    write_shard(world / "new", 0, new_pictures(), ["IMG_0001.JPG"] * len(PAIRS))
    greedy = ("method=greedy", 'prompt=""', "per_image=1", "min_length=1", "max_length=20")
    options = [word for setting in greedy for word in ("--set", f"captions.{setting}")]
    models = ("--captioner", out / "captioner", "--filter", world / "blip2_stage1" / "filter")
    done = capfilt(
        "run", world / "new", world / "out", "--preset", "blip2", *models, *options, "--local"
    )
    assert done.returncode == 0, done.stderr
    written = [row for row in ledger_rows(world / "out") if row["source"] == "synthetic"]
    found = {int(row["key"][5:]): row["text"] for row in written}
    right = torch.tensor([float(found[i] == text) for i, text in enumerate(TEXTS)])
    log.info("right captions %.2f, of new pairs %.2f", right.mean(), right[UNSEEN].mean())
    assert right[UNSEEN].mean() > 0.5
