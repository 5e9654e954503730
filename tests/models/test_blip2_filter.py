from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, Blip2ForImageTextRetrieval, Blip2Processor

from capfilt.config import ScoringConfig
from capfilt.errors import ModelError
from capfilt.models.blip2_filter import Blip2Filter
from capfilt.models.blip2_load import (
    blip2_settings,
    load_query_match_model,
    save_query_match_model,
)
from capfilt.models.images import PixelSpec
from capfilt.models.load import load_filter
from tests import blip2_checkpoints
from tests.models.conftest import make_images, normalised

BOTH = ScoringConfig(match_prob=True, similarity=True)
TEXTS = [
    ["a dog", "SNOW on the street " * 20, "free (shipping)"],
    [],
    ["two people", "a", "an <image> for you", "a red bus and a blue bike"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip2_checkpoints.make_filter(tmp_path_factory.mktemp("blip2_filter"))


def load(folder: Path, config: ScoringConfig = BOTH) -> Blip2Filter:
    made = load_filter(str(folder), config, device="cpu")
    assert isinstance(made, Blip2Filter)
    return made


@torch.inference_mode()
def test_scores_are_those_of_transformers(folder: Path) -> None:
    reference = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    names = BertTokenizer.from_pretrained(folder)
    images = make_images(3, side=28)
    scores = load(folder).score(list(images), TEXTS)
    found = []
    for image, of_image, of_scores in zip(images, TEXTS, scores, strict=True):
        for text, score in zip(of_image, of_scores, strict=True):
            text = text.lower().replace("(", "").replace(")", "").replace("<image>", "< image >")
            text = " ".join(text.split()[:30])
            ids = names(text, truncation=True, max_length=35, return_tensors="pt")
            # transformers takes the placeholders of the queries in front of the text.
            places = torch.full((1, blip2_checkpoints.QUERIES), len(names) - 1)
            inputs = {
                "pixel_values": normalised(image)[None],
                "input_ids": torch.cat([places, ids.input_ids], dim=1),
                "attention_mask": torch.ones(1, places.shape[1] + ids.input_ids.shape[1]),
            }
            itm = reference(**inputs, use_image_text_matching_head=True).logits_per_image
            itc = reference(**inputs, use_image_text_matching_head=False).logits_per_image
            assert score.match_prob == pytest.approx(itm.softmax(1)[0, 1].item(), abs=1e-4)
            assert score.similarity == pytest.approx(itc.item(), abs=1e-4)
            found.append((score.match_prob, score.similarity))
    assert (torch.tensor(found).std(0) > 0.02).all()


def test_itm_logits_are_those_of_the_processors_inputs(folder: Path) -> None:
    """From a picture and a text through transformers' own processor."""
    from PIL import Image

    reference = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    processor = Blip2Processor.from_pretrained(folder)
    image = make_images(1, side=28)[0]
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    inputs = processor(images=picture, text="a dog on the grass", return_tensors="pt")
    with torch.inference_mode():
        expected = reference(**inputs, use_image_text_matching_head=True).logits_per_image
    score = load(folder).score([image], [["a dog on the grass"]])[0][0]
    assert score.match_prob == pytest.approx(expected.softmax(1)[0, 1].item(), abs=1e-4)


def test_scores_do_not_depend_on_the_batch(folder: Path) -> None:
    filter_, images = load(folder), list(make_images(3, side=28))
    together = filter_.score(images, TEXTS)
    for image, of_image, expected in zip(images, TEXTS, together, strict=True):
        for text, score in zip(of_image, expected, strict=True):
            alone = filter_.score([image], [[text]])[0][0]
            assert alone.match_prob == pytest.approx(score.match_prob, abs=1e-5)
            assert alone.similarity == pytest.approx(score.similarity, abs=1e-5)


def test_only_what_is_asked_for_is_scored(folder: Path) -> None:
    images = list(make_images(1, side=28))
    itm = load(folder, ScoringConfig()).score(images, [["a dog"]])[0][0]
    itc = load(folder, ScoringConfig(match_prob=False, similarity=True)).score(images, [["a dog"]])
    both = load(folder).score(images, [["a dog"]])[0][0]
    assert itm.similarity is None
    assert itc[0][0].match_prob is None
    assert both.match_prob == pytest.approx(itm.match_prob, abs=1e-5)
    assert both.similarity == pytest.approx(itc[0][0].similarity, abs=1e-5)


def test_image_passes_the_tower_once_however_many_texts(folder: Path) -> None:
    filter_ = load(folder)
    passes: list[int] = []
    filter_.model.vit.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    filter_.score(list(make_images(3, side=28)), TEXTS)
    assert passes == [2]
    assert filter_.score(list(make_images(1, side=28)), [[]]) == [[]]
    assert passes == [2]


def test_pixels_are_squashed_to_the_square_of_the_config(folder: Path) -> None:
    assert load(folder).pixels == PixelSpec(size=28)


def test_saved_filter_is_transformers_again(folder: Path, tmp_path: Path) -> None:
    settings = blip2_settings(folder)
    model = load_query_match_model(folder, settings)
    save_query_match_model(
        model, tmp_path, settings, processor=Blip2Processor.from_pretrained(folder)
    )
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {stat.S_IMODE((tmp_path / "config.json").stat().st_mode)}
    again, report = Blip2ForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    before = load_file(folder / "model.safetensors")
    assert before.keys() == load_file(tmp_path / "model.safetensors").keys()
    for name, tensor in before.items():
        assert torch.equal(again.state_dict()[name], tensor), name
    images = list(make_images(1, side=28))
    assert load(tmp_path).score(images, [["a"]]) == load(folder).score(images, [["a"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            r"tensor qformer\.encoder\.layer\.0\.crossattention\.attention\.key\.bias is m",
        ),
        ("surplus", "tensor qformer.more is not of this model"),
        ("misshapen", r"tensor for itm_head\.weight has shape \[3, 64\] but .* \[2, 64\]"),
    ],
)
def test_tensor_that_does_not_fit_is_named(
    folder: Path, tmp_path: Path, change: str, message: str
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["qformer.encoder.layer.0.crossattention.attention.key.bias"]
    elif change == "surplus":
        tensors["qformer.more"] = torch.zeros(1)
    else:
        tensors["itm_head.weight"] = torch.zeros(3, 64)
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "copy")


def test_more_tokens_than_positions_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"max_tokens is 100 but .* has positions for 64"):
        load(folder, ScoringConfig(max_tokens=100))
