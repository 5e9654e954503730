"""Stage 2 of BLIP-2 against its formulas; what is frozen, and what is left at the end."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Blip2ForConditionalGeneration,
    Blip2Processor,
)

from capfilt.config import CaptionConfig
from capfilt.errors import ConfigError, ModelError
from capfilt.models.load import load_captioner
from capfilt.train.blip2_generate import Blip2Generate
from capfilt.train.checkpoints import unique_tensors
from capfilt.train.config import OptimiserConfig
from capfilt.train.optimiser import Optimiser
from tests.blip2_checkpoints import TEXTS, Kind, language_tokenizer, randomise
from tests.models.conftest import make_images, normalised
from tests.train.small_language import batch_of, make_generative

KINDS = get_args(Kind)
COUNT = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stage2")


def reference(model: Blip2Generate, images: Tensor, texts: list[str], cuts: list[int]) -> float:
    """The mean of -log p of every token that is learned: in fp64, a row at a time, by labels."""
    language = copy.deepcopy(model.language).double()
    tokenizer, embed = model._tokenizer, language.get_input_embeddings()
    visual = model.model(images).double()
    found: list[Tensor] = []
    for row, text, cut in zip(visual, texts, cuts, strict=True):
        whole = tokenizer(f"a photo of {text}")["input_ids"]  # with its special tokens
        if language.config.is_encoder_decoder:
            start, end = 3 + cut, len(whole) - 1  # the prompt has three words
            read, learned = [*whole[:start], whole[end]], [*whole[start:end], model.texts.end]
            states = torch.cat([row, embed(torch.tensor(read))])[None]
            inputs = torch.tensor([[0, *learned[:-1]]])
            logits = language(inputs_embeds=states, decoder_input_ids=inputs).logits[0]
        else:
            read, learned = whole[:4], [*whole[4:], model.texts.end]  # and a start
            states = torch.cat([row, embed(torch.tensor([*read, *learned[:-1]]))])[None]
            logits = language(inputs_embeds=states).logits[0, len(row) + 3 :]
        assert len(logits) == len(learned)
        log_p = logits.log_softmax(-1)
        found += [-log_p[i, token] for i, token in enumerate(learned)]
    return torch.stack(found).mean().item()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_loss_follows_the_formula_over_text_alone(kind: Kind, root: Path) -> None:
    model = make_generative(root, kind)
    texts = [" ".join(TEXTS[i].split()[: 3 + i]) for i in range(COUNT)]
    batch = batch_of(model, COUNT)
    loss = model(batch, 7)["lm"].item()
    cuts = make_generative(root, kind).cuts(batch.texts, 7)
    assert loss == pytest.approx(reference(model, batch.images, texts, cuts), abs=1e-5)


@torch.no_grad()
def test_encoder_decoder_whose_decoder_can_stand_alone_is_taken_whole(
    root: Path, tmp_path: Path
) -> None:
    names = language_tokenizer("t5")
    sizes = {"d_model": 40, "max_position_embeddings": 64, "vocab_size": len(names)}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": 1, f"{half}_attention_heads": 4, f"{half}_ffn_dim": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 0}
    bart = BartForConditionalGeneration(BartConfig(**sizes, **tokens, forced_eos_token_id=None))
    randomise(bart, 0)
    bart.save_pretrained(tmp_path / "bart")
    names.save_pretrained(tmp_path / "bart")
    config = replace(make_generative(root, "t5").config, language=str(tmp_path / "bart"))
    model = Blip2Generate.load(config, seed=0, dtype=torch.float32).eval()
    texts = [" ".join(TEXTS[i].split()[: 3 + i]) for i in range(COUNT)]
    batch = batch_of(model, COUNT)
    loss = model(batch, 0)["lm"].item()
    cuts = make_generative(root, "t5").cuts(batch.texts, 0)
    assert loss == pytest.approx(reference(model, batch.images, texts, cuts), abs=1e-5)
    model.export_captioner(tmp_path / "out")
    config = replace(config, start=str(tmp_path / "out"), language="")
    again = Blip2Generate.load(config, seed=0, dtype=torch.float32).eval()
    assert again(batch, 0)["lm"].item() == pytest.approx(loss, abs=1e-6)
    decoding = CaptionConfig(min_length=1, max_length=12)
    captioner = load_captioner(str(tmp_path / "out"), decoding, seed=0, device="cpu")
    assert all(caption for (caption,) in captioner.caption(list(make_images(3)), list("abc")))


@pytest.mark.parametrize("kind", KINDS)
def test_no_keys_and_values_are_kept_while_training(kind: Kind, root: Path) -> None:
    """transformers would copy those of every layer for tokens to come."""
    model, kept = make_generative(root, kind), []
    model.language.register_forward_hook(lambda *call: kept.append(call[-1].past_key_values))
    model(batch_of(model, 2), 0)
    assert kept == [None]


def test_line_breaks_within_a_text_are_blanks(root: Path) -> None:
    """One ends an OPT's texts: none is learned before the end."""
    texts = make_generative(root, "opt").texts
    plain = texts.encode(["a dog on the grass"], max_tokens=20)
    assert texts.encode(["a dog\non  the\r\ngrass\n"], max_tokens=20) == plain


def test_cuts_are_of_every_length_and_leave_something_to_learn(root: Path) -> None:
    model = make_generative(root, "t5")
    texts = batch_of(model, COUNT).texts
    found = [model.cuts(texts, step) for step in range(200)]
    for row, text in enumerate(texts):
        assert {cuts[row] for cuts in found} == set(range(len(text) - 1))
    assert make_generative(root, "t5").cuts(texts, 3) == found[3]
    assert make_generative(root, "t5", split_text=False).cuts(texts, 3) == [0] * COUNT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train_image", [False, True])
def test_frozen_parts_stay_as_they_were_without_gradients_or_state(
    kind: Kind, train_image: bool, root: Path
) -> None:
    model = make_generative(root, kind, train_image=train_image)
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    optimiser = Optimiser(model, OptimiserConfig(lr=1e-2))
    for step in range(3):
        model(batch_of(model, 4, seed=step), step)["lm"].backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) != parameter.requires_grad, name
        optimiser.step(1e-2, optimiser.gradient_norm())

    def is_frozen(name: str) -> bool:
        of_image = name.startswith("model.vit.") and not name.startswith("model.vit.norm.")
        return name.startswith("language.") or (of_image and not train_image)

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == is_frozen(name), name
    kept = unique_tensors(model)
    assert kept.keys() == {name for name, _ in model.named_parameters() if not is_frozen(name)}
    assert {name.partition("/")[2] for name in optimiser.tensors()} == kept.keys()
    assert not any(part.training for part in model.language.modules())


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_captioner_gives_the_same_in_transformers_and_here(
    kind: Kind, root: Path, tmp_path: Path
) -> None:
    model = make_generative(root, kind).eval()
    model.model.projection.weight.data.mul_(8)  # images are to look different
    model.export_captioner(tmp_path)
    theirs, loading = Blip2ForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(loading.values())
    images = make_images(3)
    for name, tensor in model.language.state_dict().items():
        assert torch.equal(theirs.language_model.state_dict()[name], tensor), name
    settings = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert settings["tie_word_embeddings"] == (kind == "opt")  # T5's head is its own
    config = CaptionConfig(method="greedy", prompt="a photo of", min_length=1, max_length=12)
    captioner = load_captioner(str(tmp_path), config, seed=0, device="cpu")
    processor = Blip2Processor.from_pretrained(tmp_path)
    inputs = processor(images=list(images), text=["a photo of"] * 3, return_tensors="pt")
    torch.testing.assert_close(inputs.pixel_values, normalised(images), atol=1e-5, rtol=0)
    new = 11 if kind == "t5" else 12 - 4
    made = theirs.eval().generate(**inputs, max_new_tokens=new, do_sample=False)
    if kind != "t5":
        made = made[:, inputs.input_ids.shape[1] :]
    expected = [
        (processor.tokenizer.decode(row, skip_special_tokens=True).strip(),) for row in made
    ]
    assert captioner.caption(list(images), ["0", "1", "2"]) == expected
    assert len({caption for (caption,) in expected}) > 1


def test_finetuning_begins_where_stage_2_ended(root: Path, tmp_path: Path) -> None:
    model = make_generative(root, "opt").eval()
    model.export_captioner(tmp_path)
    config = replace(model.config, start=str(tmp_path), language="", train_image=True)
    again = Blip2Generate.load(config, seed=1, dtype=torch.float32).eval()
    batch = batch_of(model, 4)
    assert again(batch, 0)["lm"].item() == pytest.approx(model(batch, 0)["lm"].item(), abs=1e-6)
    assert again.texts.encode(["a dog"], max_tokens=9) == model.texts.encode(
        ["a dog"], max_tokens=9
    )
    larger = Blip2Generate.load(
        replace(config, image_size=64), seed=1, dtype=torch.float32
    )  # positions are interpolated
    assert larger.model(make_images(2, side=64)).shape == (2, 5, 40)
    with pytest.raises(ConfigError, match=r"model\.image_size must be a multiple of 8, is 30"):
        Blip2Generate.load(replace(config, image_size=30), seed=1, dtype=torch.float32)


def test_another_language_model_gets_a_new_projection(root: Path, tmp_path: Path) -> None:
    model = make_generative(root, "opt")
    model.export_captioner(tmp_path)
    make_generative(root, "llama")
    config = replace(model.config, start=str(tmp_path), language=str(root / "llama"))
    again = Blip2Generate.load(config, seed=1, dtype=torch.float32)
    assert torch.equal(again.model.qformer.queries, model.model.qformer.queries)
    assert not torch.equal(again.model.projection.weight, model.model.projection.weight)


def test_missing_or_wrong_models_are_named(root: Path) -> None:
    config = make_generative(root, "opt").config
    for changes, error, message in (
        ({"language": ""}, ConfigError, r"model\.language is not set"),
        ({"start": str(root / "opt")}, ModelError, "is a OPTForCausalLM, not a Blip2ForImageText"),
        ({"language": str(root / "filter")}, ModelError, "cannot be loaded as a language model"),
    ):
        with pytest.raises(error, match=message):
            Blip2Generate.load(replace(config, **changes), seed=0, dtype=torch.float32)
    (root / "opt" / "model.safetensors").rename(root / "opt" / "pytorch_model.bin")
    try:
        with pytest.raises(ModelError, match="has no whole safetensors: load it once with"):
            Blip2Generate.load(config, seed=0, dtype=torch.float32)
    finally:
        (root / "opt" / "pytorch_model.bin").rename(root / "opt" / "model.safetensors")
