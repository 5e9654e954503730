"""BLIP-base and BLIP-large at their published sizes, BERT's vocabulary and random weights."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
)

from capfilt.config import CaptionConfig, ImageConfig, ScoringConfig
from capfilt.models.filter import MatchFilter
from capfilt.models.images import PixelSpec, decode, fit
from capfilt.models.load import Precision, load_captioner, load_filter
from tests.models.conftest import make_images, normalised

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"
VOCABULARY = SHARED / "vocab/bert-base-uncased"
PHOTOGRAPHS = SHARED / "flickr8k"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VOCABULARY.is_dir(), reason=f"no BERT vocabulary at {VOCABULARY}"),
]
SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}


def config(size: str) -> BlipConfig:
    width, layers, heads = SIZES[size]
    return BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        },
        text_config={"num_attention_heads": 12},
    )


@pytest.fixture
def tokenizer() -> BertTokenizer:
    made = BertTokenizer.from_pretrained(VOCABULARY)
    made.add_special_tokens({"bos_token": "[DEC]"})
    made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    assert made.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]
    return made


def randomise(model: nn.Module) -> None:
    """Draw weights from N(0, 1 / fan-in): at any width nothing fades or explodes."""
    generator = torch.Generator().manual_seed(0)
    norms = {id(m.weight) for m in model.modules() if isinstance(m, nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) in norms:
                parameter.normal_(1.0, 0.1, generator=generator)
            else:
                std = 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1
                parameter.normal_(0.0, std, generator=generator)


def save(model: nn.Module, tokenizer: BertTokenizer, folder: Path) -> str:
    model.save_pretrained(folder)  # type: ignore[operator]
    BlipProcessor(BlipImageProcessorPil(), tokenizer).save_pretrained(folder)
    return str(folder)


def noisy_images(count: int) -> Tensor:
    return make_images(count, side=384)


@pytest.mark.parametrize("size", ["base", "large"])
@torch.inference_mode()
def test_captioner_gives_transformers_states_and_greedy_captions(
    size: str, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    reference = BlipForConditionalGeneration(config(size)).eval()
    randomise(reference)
    folder = save(reference, tokenizer, tmp_path)
    captioner = load_captioner(folder, CaptionConfig(method="greedy"), seed=0, device="cpu")
    images = noisy_images(2)
    states = reference.vision_model(normalised(images)).last_hidden_state
    torch.testing.assert_close(captioner.model.vit(images), states, atol=1e-4, rtol=0)
    ids = tokenizer(["a picture of "] * 2, return_tensors="pt").input_ids
    rows = reference.generate(
        pixel_values=normalised(images), input_ids=ids, min_length=5, max_length=20
    )
    expected = [
        (text.removeprefix("a picture of").strip(),)
        for text in tokenizer.batch_decode(rows, skip_special_tokens=True)
    ]
    assert captioner.caption(list(images), ["0", "1"]) == expected


@pytest.mark.parametrize("size", ["base", "large"])
@torch.inference_mode()
def test_filter_gives_transformers_itm_and_itc(
    size: str, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    reference = BlipForImageTextRetrieval(config(size)).eval()
    randomise(reference)
    folder = save(reference, tokenizer, tmp_path)
    filter_ = load_filter(folder, ScoringConfig(similarity=True), device="cpu")
    images, texts = noisy_images(2), [["a dog on the grass", "snow"], ["two people at a table"]]
    scores = filter_.score(list(images), texts)
    for image, of_image, found in zip(normalised(images), texts, scores, strict=True):
        for text, score in zip(of_image, found, strict=True):
            ids = tokenizer(text, return_tensors="pt").input_ids
            itc = reference(input_ids=ids, pixel_values=image[None], use_itm_head=False)
            assert score.similarity == pytest.approx(itc.itm_score.item(), abs=1e-4)
            ids[:, 0] = 30523
            itm = reference(input_ids=ids, pixel_values=image[None]).itm_score.softmax(-1)
            assert score.match_prob == pytest.approx(itm[0, 1].item(), abs=1e-4)


def captioned_photographs(count: int) -> list[tuple[Tensor, list[str]]]:
    """Pixels of photographs, each with a caption of its own and one of another."""
    with (PHOTOGRAPHS / "captions.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in itertools.islice(file, count + 1)]
    pixels = [
        fit(decode((PHOTOGRAPHS / line["image"]).read_bytes(), ImageConfig()), PixelSpec(384))
        for line in lines[:count]
    ]
    texts = [[one["captions"][0], next_["captions"][1]] for one, next_ in itertools.pairwise(lines)]
    return list(zip(pixels, texts, strict=True))


def score(
    folder: str, precision: Precision, samples: list[tuple[Tensor, list[str]]]
) -> tuple[Tensor, Tensor]:
    """P(matched) of every text of every sample [T], and what the ITM head sees of them [T, D]."""
    filter_ = load_filter(folder, ScoringConfig(), precision=precision, device="cpu")
    assert isinstance(filter_, MatchFilter)
    states: list[Tensor] = []
    head = filter_.model.get_submodule("itm_head")
    head.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    probs = []
    for start in range(0, len(samples), 20):
        pixels, texts = zip(*samples[start : start + 20], strict=True)
        probs += [s.match_prob for of_image in filter_.score(pixels, texts) for s in of_image]
    return torch.tensor(probs, dtype=torch.float64), torch.cat(states).double()


@pytest.mark.timeout(3600)
def test_bf16_verdicts_on_photographs_are_those_of_fp32(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs at {PHOTOGRAPHS}")
    torch.manual_seed(0)
    reference = BlipForImageTextRetrieval(config("base")).eval()
    randomise(reference)
    samples = captioned_photographs(500)
    _, states = score(save(reference, tokenizer, tmp_path), "fp32", samples[:40])
    # A trained head looks where its inputs differ most; spread the odds so that half match.
    centre = states.mean(0)
    direction = torch.linalg.svd(states - centre, full_matrices=False).Vh[0]
    direction *= 1.6 / (states @ direction).std()
    with torch.no_grad():
        reference.itm_head.weight.copy_(torch.stack([-direction, direction]) / 2)
        reference.itm_head.bias.copy_(torch.tensor([1, -1]) * (centre @ direction) / 2)
    folder = save(reference, tokenizer, tmp_path)
    full, rounded = (score(folder, precision, samples)[0] for precision in ("fp32", "bf16"))
    assert len(full) == 1000
    assert full.std() > 0.2
    assert 0.2 < (full >= 0.5).double().mean() < 0.8
    assert 0 < (full - rounded).abs().max() <= 0.01
    assert ((full >= 0.5) == (rounded >= 0.5)).double().mean() >= 0.99
