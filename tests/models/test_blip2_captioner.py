from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, Blip2Processor, GPT2Tokenizer

from capfilt.config import CaptionConfig
from capfilt.errors import ModelError
from capfilt.models.blip2_captioner import Blip2Captioner
from capfilt.models.blip2_load import blip2_settings, load_prompt_model, query_config
from capfilt.models.images import PixelSpec
from capfilt.models.language import LanguageSession, LanguageTokens
from capfilt.models.load import load_captioner
from tests import blip2_checkpoints
from tests.blip2_checkpoints import QUERIES, Kind
from tests.models.blip2_reference import GREEDY, check_saved_again, load, texts_of
from tests.models.conftest import make_images, normalised

OPT_VOCABULARY = Path(__file__).resolve().parents[2].parent / "shared/data/vocab/opt"
BEAM = CaptionConfig(method="beam", min_length=0, max_length=12, num_beams=3, per_image=2)
NUCLEUS = CaptionConfig(per_image=4, max_length=14)
PROMPT = "a photo of"


@pytest.fixture(scope="module", params=["opt", "t5", "llama"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip2_checkpoints.make_captioner(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip2_checkpoints.make_captioner(tmp_path_factory.mktemp("opt"), "opt")


def inputs(folder: Path, images: Tensor, prompt: str = PROMPT) -> dict[str, Tensor]:
    """What transformers' processor makes of a prompt, for each image."""
    processor = Blip2Processor.from_pretrained(folder)
    ids = processor.tokenizer(prompt, return_tensors="pt").input_ids
    places = torch.full((1, QUERIES), processor.tokenizer.convert_tokens_to_ids("<image>"))
    ids = torch.cat([places, ids], dim=1).expand(len(images), -1)
    return {
        "pixel_values": normalised(images),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def generated(
    folder: Path, reference: Blip2ForConditionalGeneration, images: Tensor, config: CaptionConfig
) -> list[str]:
    """The same captions through transformers."""
    given = inputs(folder, images)
    decoder = not reference.config.text_config.is_encoder_decoder
    lead = given["input_ids"].shape[1] - QUERIES if decoder else 1
    beams = config.num_beams if config.method == "beam" else 1
    ids = reference.generate(
        **given,
        do_sample=False,
        max_new_tokens=config.max_length - lead,
        num_beams=beams,
        num_return_sequences=config.per_image,
    )
    # transformers gives a decoder's prompt back, as it was given.
    new = ids[:, given["input_ids"].shape[1] :] if decoder else ids
    return texts_of(reference, Blip2Processor.from_pretrained(folder).tokenizer, new)


@torch.inference_mode()
def test_visual_prompt_is_that_of_transformers(
    folder: Path, reference: Blip2ForConditionalGeneration
) -> None:
    images = make_images(3, side=28)
    expected = reference.get_image_features(normalised(images)).pooler_output
    found = load(folder).model(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.std(0).mean() > 0.02


@torch.inference_mode()
def test_logits_are_those_of_transformers(
    kind: Kind, folder: Path, reference: Blip2ForConditionalGeneration
) -> None:
    """Of the first token, and of later ones through the cache, rows having changed places."""
    captioner, images = load(folder), make_images(2, side=28)
    words = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
    rows = [0, 1, 1]
    start = 0 if kind == "t5" else None
    prompt = inputs(folder, images)["input_ids"][0, QUERIES:].tolist()
    session = LanguageSession(captioner.language, captioner.model(images), [prompt], start)
    first = session.logits
    session.select(rows)
    found = [session.logits]
    for step in range(4):
        session.advance(words[:, step])
        found.append(session.logits)
    session.reorder(torch.tensor([2, 0, 1]))
    assert torch.equal(session.logits, found[-1][[2, 0, 1]])

    given = inputs(folder, images[rows])
    if kind == "t5":
        given["decoder_input_ids"] = torch.cat([torch.zeros(3, 1, dtype=torch.long), words], dim=1)
    else:
        given["input_ids"] = torch.cat([given["input_ids"], words], dim=1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    expected = reference(**given).logits[:, -5:]
    torch.testing.assert_close(torch.stack(found, dim=1), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(first, expected[:2, 0], atol=1e-4, rtol=0)


def test_greedy_text_is_that_of_transformers(
    folder: Path, reference: Blip2ForConditionalGeneration
) -> None:
    images = make_images(6, side=28)
    found = load(folder).caption(list(images), [str(i) for i in range(6)])
    assert [caption for (caption,) in found] == generated(folder, reference, images, GREEDY)
    assert len(set(found)) > 1


def test_beams_are_those_of_transformers(
    folder: Path, reference: Blip2ForConditionalGeneration
) -> None:
    images = make_images(4, side=28)
    found = load(folder, BEAM).caption(list(images), ["", "", "", ""])
    flat = [caption for of_image in found for caption in of_image]
    assert flat == generated(folder, reference, images, BEAM)


@pytest.mark.parametrize("size", [1, 3])
def test_samples_do_not_depend_on_the_batch(folder: Path, size: int) -> None:
    captioner, images = load(folder, NUCLEUS), list(make_images(6, side=28))
    keys = [f"key {i}" for i in range(6)]
    together = captioner.caption(images, keys)
    order = [4, 0, 5, 2, 1, 3]
    for start in range(0, 6, size):
        batch = order[start : start + size]
        found = captioner.caption([images[i] for i in batch], [keys[i] for i in batch])
        assert found == [together[i] for i in batch]
    assert len({caption for of_image in together for caption in of_image}) > 12


def test_samples_change_with_seed_and_key(opt: Path) -> None:
    images = list(make_images(2, side=28))
    found = load(opt, NUCLEUS).caption(images, ["a", "b"])
    assert load(opt, NUCLEUS, seed=1).caption(images, ["a", "b"]) != found
    assert load(opt, NUCLEUS).caption(images, ["a", "c"])[0] == found[0]
    assert load(opt, NUCLEUS).caption(images, ["a", "c"])[1] != found[1]


def test_image_passes_the_tower_once_however_many_captions(opt: Path) -> None:
    captioner = load(opt, NUCLEUS)
    passes: list[int] = []
    captioner.model.vit.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    captioner.caption(list(make_images(2, side=28)), ["a", "b"])
    assert passes == [2]
    assert captioner.caption([], []) == []


def test_caption_ends_at_the_configs_end_and_has_no_special_tokens(opt: Path) -> None:
    captions = load(opt, CaptionConfig(per_image=40)).caption(list(make_images(1, side=28)), ["a"])
    text = " ".join(captions[0])
    assert not re.search(r"night|<|>", text)
    lengths = {len(caption.split()) for caption in captions[0]}
    assert len(lengths) > 1
    assert max(lengths) <= 16


def test_prompt_is_the_models_own_unless_given(opt: Path) -> None:
    images = list(make_images(3, side=28))
    own = load(opt).caption(images, ["a", "b", "c"])

    def given(prompt: str) -> list[tuple[str, ...]]:
        config = CaptionConfig(method="greedy", min_length=0, max_length=16, prompt=prompt)
        return load(opt, config).caption(images, ["a", "b", "c"])

    assert given("a photo of ") == own
    assert given("two cats") != own
    assert all(caption for (caption,) in given(""))


def test_bf16_is_of_every_part_and_writes(folder: Path) -> None:
    captioner = load_captioner(str(folder), NUCLEUS, seed=0, precision="bf16", device="cpu")
    assert isinstance(captioner, Blip2Captioner)
    assert {p.dtype for p in captioner.language.parameters()} == {torch.bfloat16}
    images = make_images(4, side=28)
    with torch.inference_mode():
        found, exact = captioner.model(images), load(folder).model(images)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).std() < 0.05 * exact.std()
    captions = captioner.caption(list(images), list("abcd"))
    assert len({caption for of_image in captions for caption in of_image}) > 8


@pytest.mark.skipif(not OPT_VOCABULARY.is_dir(), reason="needs ../shared/data/vocab/opt")
def test_prompt_of_the_published_vocabulary_is_the_processors(opt: Path) -> None:
    names = GPT2Tokenizer.from_pretrained(
        OPT_VOCABULARY, bos_token="</s>", eos_token="</s>", unk_token="</s>", add_bos_token=True
    )
    tokens = LanguageTokens(names, load(opt).language, "opt")
    assert tokens.prompt("a photo of ") == [2, 102, 1345, 9]
    assert tokens.prompt("") == [2]
    caption = names(" two dogs on the beach\n").input_ids[1:]
    assert tokens.decode(tokens.prompt("a photo of"), caption) == "two dogs on the beach"


def test_prompt_without_room_is_refused(folder: Path, kind: Kind) -> None:
    config = CaptionConfig(prompt="a photo of a dog", min_length=1, max_length=5)
    if kind == "t5":  # its prompt is the encoder's
        load(folder, config)
        return
    with pytest.raises(ModelError, match=r"max_length is 5 but the start and the prompt .* are 6"):
        load(folder, config)


def test_more_tokens_than_positions_are_refused(opt: Path) -> None:
    with pytest.raises(ModelError, match=r"max_length is 60 but .* positions for 58 tokens after"):
        load(opt, CaptionConfig(max_length=60))


def test_weights_beyond_the_machines_memory_are_refused(
    opt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # a machine of 10,000 bytes
    with pytest.raises(ModelError, match=r"--captioner .*: its weights take .*, but cpu"):
        load(opt)


def test_pixels_are_squashed_to_the_square_of_the_config(opt: Path) -> None:
    assert load(opt).pixels == PixelSpec(size=28)


def test_saved_captioner_is_transformers_again(
    folder: Path, reference: Blip2ForConditionalGeneration, tmp_path: Path
) -> None:
    processor = Blip2Processor.from_pretrained(folder)
    check_saved_again(folder, reference, processor, tmp_path)
    images = list(make_images(2, side=28))
    assert load(tmp_path).caption(images, ["a", "b"]) == load(folder).caption(images, ["a", "b"])


def test_tower_without_a_bias_for_qkv_is_loaded(tmp_path: Path) -> None:
    folder = blip2_checkpoints.make_captioner(tmp_path, qkv_bias=False)
    reference = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    images = make_images(1, side=28)
    with torch.inference_mode():
        expected = reference.get_image_features(normalised(images)).pooler_output
        found = load(folder).model(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_folder_without_a_tokenizer_is_refused(opt: Path, tmp_path: Path) -> None:
    shutil.copytree(opt, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has none of tokenizer\.json, .* save the checkpoint's"):
        load(tmp_path / "copy")


def test_language_model_that_transformers_does_not_know_is_named(opt: Path, tmp_path: Path) -> None:
    shutil.copytree(opt, tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "opt"', '"model_type": "mine"'))
    with pytest.raises(ModelError, match=r"cannot be read as a Blip2Config \(.*mine"):
        load(tmp_path / "copy")


def test_larger_images_have_interpolated_positions(opt: Path) -> None:
    settings = blip2_settings(opt)
    config = query_config(settings)
    larger = replace(config, image=replace(config.image, image_size=42))
    reference = Blip2ForConditionalGeneration.from_pretrained(opt).eval()
    images = make_images(2, side=42)
    with torch.inference_mode():
        found = load_prompt_model(opt, settings, larger).eval()(images)
        features = reference.get_image_features(normalised(images), interpolate_pos_encoding=True)
    torch.testing.assert_close(found, features.pooler_output, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("query_tokens", None, "tensor query_tokens is missing"),
        ("language_model.model.decoder.layers.1.fc1.bias", None, r"language_model\S+fc1.bias is m"),
        ("language_model.more", (1,), "tensor language_model.more is not of this model"),
        ("qformer.more", (1,), "tensor qformer.more is not of this model"),
        (
            "language_model.model.decoder.layers.1.fc1.bias",
            (7,),
            r"fc1.bias has shape \[7\] but config.json makes it \[64\]",
        ),
    ],
)
def test_tensor_that_does_not_fit_is_named(
    opt: Path, tmp_path: Path, name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    shutil.copytree(opt, tmp_path / "copy")
    tensors = load_file(opt / "model.safetensors")
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(shape)
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "copy")
