"""InstructBLIP, whose Q-Former reads the prompt, against transformers on random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

from capfilt.config import CaptionConfig
from capfilt.errors import ModelError
from capfilt.models.blip2_answerer import Blip2Answerer
from capfilt.models.checkpoint import inspect
from tests import blip2_checkpoints
from tests.blip2_checkpoints import QUERIES, Kind
from tests.models.blip2_reference import check_saved_again, load, texts_of
from tests.models.conftest import make_images, normalised

PROMPTS = ["a photo of", "two red birds in the snow", "a dog", "a photo of a bike on the street"]


@pytest.fixture(scope="module", params=["opt", "t5", "llama"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip2_checkpoints.make_instructed(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def reference(folder: Path) -> InstructBlipForConditionalGeneration:
    return InstructBlipForConditionalGeneration.from_pretrained(folder).eval()


def generated(
    folder: Path,
    model: InstructBlipForConditionalGeneration,
    images: Tensor,
    prompts: list[str],
    new: int,
    **options: float,
) -> list[str]:
    """Texts through transformers and its processor, which gives the prompt to both."""
    processor = InstructBlipProcessor.from_pretrained(folder)
    is_decoder = not model.config.text_config.is_encoder_decoder
    found: list[str] = []
    for image, prompt in zip(images, prompts, strict=True):
        given = processor(images=[image], text=[prompt], return_tensors="pt")
        before = given["input_ids"].shape[1] if is_decoder else 1
        ids = model.generate(**given, do_sample=False, max_new_tokens=new, **options)[:, before:]
        found += texts_of(model, processor.tokenizer, ids)
    return found


@torch.inference_mode()
def test_visual_prompts_are_those_of_transformers_whatever_the_lengths(
    kind: Kind, folder: Path, reference: InstructBlipForConditionalGeneration
) -> None:
    """Of images with two prompts, one and one, of unequal lengths."""
    images, captioner = make_images(3, side=28), load(folder)
    texts = [PROMPTS[:2], PROMPTS[2:3], PROMPTS[3:]]
    found = captioner.model(images, captioner.instructions(texts))
    words = InstructBlipProcessor.from_pretrained(folder).qformer_tokenizer
    encoded = words(PROMPTS, padding=True, return_tensors="pt")
    expected = reference.get_image_features(
        normalised(images[[0, 0, 1, 2]]),
        qformer_input_ids=encoded.input_ids,
        qformer_attention_mask=encoded.attention_mask,
    ).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected[0] - expected[1]).abs().mean() > 0.02  # the same image, another prompt


def test_greedy_text_is_that_of_transformers(
    kind: Kind, folder: Path, reference: InstructBlipForConditionalGeneration
) -> None:
    images = make_images(4, side=28)
    new = 15 if kind == "t5" else 12
    for prompt in ("a photo of", "two dogs in"):
        config = CaptionConfig(method="greedy", prompt=prompt, min_length=0, max_length=16)
        found = load(folder, config).caption(list(images), list("abcd"))
        expected = generated(folder, reference, images, [prompt] * 4, new)
        assert [caption for (caption,) in found] == expected
        assert len(set(found)) > 1


def test_prompts_left_open_are_those_that_it_was_evaluated_with(folder: Path) -> None:
    images = list(make_images(3, side=28))

    def written(prompt: str | None) -> list[tuple[str, ...]]:
        config = CaptionConfig(method="greedy", prompt=prompt, min_length=0, max_length=20)
        return load(folder, config).caption(images, list("abc"))

    assert written(None) == written("A short image description:") != written("a photo of")
    assert Blip2Answerer(load(folder)).prompt == "Question: {} Short answer:"


def test_answers_are_those_of_transformers(
    kind: Kind, folder: Path, reference: InstructBlipForConditionalGeneration
) -> None:
    """Every question is read by the queries of its image; an image may have none."""
    images = make_images(3, side=28)
    questions = [["two red dogs", "a bus"], [], ["a dog on the street"]]
    found = Blip2Answerer(load(folder), "a photo of {} in").answer(list(images), questions)
    prompts = [f"a photo of {text} in" for of_image in questions for text in of_image]
    expected = generated(
        folder, reference, images[[0, 0, 2]], prompts, 10, num_beams=5, length_penalty=-1.0
    )
    assert [text for of_image in found for text in of_image] == expected
    assert [len(of_image) for of_image in found] == [2, 0, 1]


def test_saved_captioner_is_transformers_again(
    folder: Path, reference: InstructBlipForConditionalGeneration, tmp_path: Path
) -> None:
    processor = InstructBlipProcessor.from_pretrained(folder)
    check_saved_again(folder, reference, processor, tmp_path)
    assert inspect(str(tmp_path), "captioner").architecture == type(reference).__name__


def test_tokenizer_of_the_queries_is_part_of_the_model(tmp_path: Path) -> None:
    folder = blip2_checkpoints.make_instructed(tmp_path / "one")
    before = inspect(str(folder), "captioner")
    names = folder / "qformer_tokenizer" / "tokenizer.json"
    names.write_text(names.read_text().replace('"dog"', '"cow"'))
    assert inspect(str(folder), "captioner").sha256 != before.sha256
    shutil.move(names, tmp_path / "elsewhere.json")
    names.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ModelError, match="outside the folder"):
        inspect(str(folder), "captioner")
    shutil.rmtree(names.parent)
    with pytest.raises(ModelError, match=r"qformer_tokenizer: has neither tokenizer\.json"):
        load(folder)


def test_other_blip2_reads_no_prompt(tmp_path: Path) -> None:
    captioner = load(blip2_checkpoints.make_captioner(tmp_path))
    assert captioner.instructions([["a dog"]]) is None
    assert captioner.model(make_images(1, side=28)).shape == (1, QUERIES, 40)
