"""Stage 2 whose queries read the prompt: the loss, what learns, what is left, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

from capfilt.config import CaptionConfig
from capfilt.errors import ConfigError
from capfilt.models.load import load_captioner
from capfilt.train.blip2_generate import Blip2Generate
from capfilt.train.checkpoints import unique_tensors
from tests.blip2_checkpoints import Kind
from tests.models.conftest import make_images, normalised
from tests.train.small_language import batch_of, make_generative

KINDS = get_args(Kind)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("instructed")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_loss_is_transformers_loss_of_text_alone(kind: Kind, root: Path, tmp_path: Path) -> None:
    model = make_generative(root, kind, read_prompt=True, split_text=False).eval()
    model.export_captioner(tmp_path)
    theirs = InstructBlipForConditionalGeneration.from_pretrained(tmp_path).eval()
    words = InstructBlipProcessor.from_pretrained(tmp_path).qformer_tokenizer
    batch = batch_of(model, 4)
    total, count = torch.tensor(0.0), 0
    lead, close = model.texts.lead, model.texts.close
    for image, text in zip(batch.images, batch.texts, strict=True):
        of_queries = torch.tensor([words("a photo of")["input_ids"]])
        place = [theirs.config.image_token_index] * 5
        given = {"pixel_values": normalised(image[None]), "qformer_input_ids": of_queries}
        if kind == "t5":
            given["input_ids"] = torch.tensor([[*place, *lead, *close]])
            given["decoder_input_ids"] = torch.tensor([[0, *text[:-1]]])
            logits = theirs(**given).logits[0]
        else:
            given["input_ids"] = torch.tensor([[*place, *lead, *text[:-1]]])
            logits = theirs(**given).logits[0, len(place) + len(lead) - 1 :]
        log_p = logits.log_softmax(-1)
        total -= log_p[torch.arange(len(text)), torch.tensor(text)].sum()
        count += len(text)
    assert model(batch, 0)["lm"].item() == pytest.approx((total / count).item(), abs=1e-4)
    other = replace(model.config, read_prompt=False)
    silent = Blip2Generate.load(other, seed=0, dtype=torch.float32).eval()
    assert abs(silent(batch, 0)["lm"].item() - model(batch, 0)["lm"].item()) > 1e-3


def test_every_parameter_that_learns_has_a_gradient(root: Path) -> None:
    """A parameter without one stops a training on several devices."""
    model = make_generative(root, "opt", read_prompt=True)
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    model(batch_of(model, 4), 0)["lm"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) != parameter.requires_grad, name
    learned = unique_tensors(model).keys()
    assert "model.qformer.words.weight" in learned
    assert "model.qformer.layers.0.text_ffn.up.weight" in learned
    assert not any("layers.2.text_ffn" in name for name in learned)  # nothing looks at it
    source = load_file(root / "filter" / "model.safetensors")
    text_half = {
        "model.qformer.words.weight": "embeddings.word_embeddings.weight",
        "model.qformer.positions.weight": "embeddings.position_embeddings.weight",
        "model.qformer.norm.weight": "qformer.layernorm.weight",
        "model.qformer.layers.1.text_ffn.up.weight": "qformer.encoder.layer.1.intermediate.dense"
        ".weight",
    }
    for ours, theirs in text_half.items():  # begins as stage 1 left it
        assert torch.equal(before[ours], source[theirs]), ours


@torch.inference_mode()
def test_captioner_goes_on_here_as_it_was_trained(root: Path, tmp_path: Path) -> None:
    model = make_generative(root, "t5", read_prompt=True, split_text=False).eval()
    model.export_captioner(tmp_path)
    decoding = CaptionConfig(method="greedy", min_length=1, max_length=12)
    images = list(make_images(3))
    first = load_captioner(str(tmp_path), decoding, seed=0, device="cpu")
    config = replace(model.config, start=str(tmp_path), language="")
    again = Blip2Generate.load(config, seed=1, dtype=torch.float32).eval()
    batch = batch_of(model, 4)
    assert again(batch, 0)["lm"].item() == pytest.approx(model(batch, 0)["lm"].item(), abs=1e-6)
    again.export_captioner(tmp_path / "again")
    second = load_captioner(str(tmp_path / "again"), decoding, seed=0, device="cpu")
    assert second.caption(images, list("abc")) == first.caption(images, list("abc"))


def test_starts_that_do_not_fit_are_refused(root: Path, tmp_path: Path) -> None:
    plain = make_generative(root, "opt")
    plain.export_captioner(tmp_path / "plain")
    instructed = make_generative(root, "opt", read_prompt=True)
    instructed.export_captioner(tmp_path / "instructed")
    for config, message in (
        (replace(plain.config, read_prompt=True, prompt=""), "model.prompt is empty"),
        (
            replace(plain.config, read_prompt=True, start=str(tmp_path / "plain")),
            "start from stage 1 or an InstructBLIP",
        ),
        (
            replace(plain.config, start=str(tmp_path / "instructed"), language=""),
            "reads prompts: set model.read_prompt=true",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            Blip2Generate.load(config, seed=0, dtype=torch.float32)
