"""BLIP-base and BLIP-large at their published sizes, BERT's vocabulary and random weights."""

from __future__ import annotations

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

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.models.load import load_captioner, load_filter
from tests.models.conftest import make_images, normalised

VOCABULARY = Path(__file__).resolve().parents[2].parent / "shared/data/vocab/bert-base-uncased"

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


def test_bf16_verdicts_on_photographs_are_those_of_fp32(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs at {PHOTOGRAPHS}")
    torch.manual_seed(0)
    reference = BlipForImageTextRetrieval(config("base")).eval()
    for parameter in reference.vision_model.parameters():
        if parameter.dim() > 1:  # transformers' default leaves all images alike
            torch.nn.init.normal_(parameter, 0, 0.02)
    samples = list(photographs(500))
    half = [(pixels, texts[:1]) for pixels, texts in samples[:24]]
    spread_scores(reference, half, save(reference, tokenizer, tmp_path / "narrow"))
    folder = save(reference, tokenizer, tmp_path / "spread")
    full = match_probs(folder, "fp32", samples)
    rounded = match_probs(folder, "bf16", samples)
    assert full.std() > 0.2
    assert 0.2 < (full >= 0.5).double().mean() < 0.8
    assert (full - rounded).abs().max() <= 0.01
    assert ((full >= 0.5) == (rounded >= 0.5)).double().mean() >= 0.99
