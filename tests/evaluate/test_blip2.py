"""BLIP-2 folders under evaluation: retrieval, captions and questions, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import (
    BertTokenizer,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
)

from capfilt import cli
from capfilt.config import CaptionConfig, ComputeConfig, ScoringConfig
from capfilt.evaluate.pictures import Pictures
from capfilt.evaluate.retrieval import evaluate_retrieval
from capfilt.evaluate.vqa_accuracy import vqa_accuracy
from capfilt.models.blip2_answerer import Blip2Answerer
from capfilt.models.blip2_captioner import Blip2Captioner
from capfilt.models.blip2_filter import Blip2Filter
from capfilt.models.images import PixelSpec
from capfilt.models.load import load_captioner, load_filter
from capfilt.text import normalise
from tests import blip2_checkpoints
from tests.blip2_checkpoints import Kind
from tests.evaluate.conftest import PICTURES, put_lines
from tests.evaluate.test_retrieval import plain_recall, some_pairs
from tests.models.conftest import normalised

SIDE = blip2_checkpoints.VISION["image_size"]
QUESTIONS = [["two cats", "a dog on the grass"], ["three people"], ["a wet street at night", "bus"]]


@pytest.fixture(scope="module")
def filter_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip2_checkpoints.make_filter(tmp_path_factory.mktemp("filter"))


@pytest.fixture(scope="module")
def captioners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    return {kind: blip2_checkpoints.make_captioner(root / kind, kind) for kind in get_args(Kind)}


def images_of(pictures: Path) -> Tensor:
    paths = [f"{i}.png" for i in range(PICTURES)]
    batches = Pictures(str(pictures)).batches(paths, PixelSpec(SIDE))
    return torch.stack([pixels for batch in batches for pixels in batch])


@torch.inference_mode()
def scores_of(folder: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities and match logits [images, texts], from transformers' forward."""
    reference = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    names, pairs = BertTokenizer.from_pretrained(folder), some_pairs()
    texts = [normalise(text, max_words=30) for pair in pairs for text in pair.captions]
    similarity, logit = torch.zeros(2, len(images), len(texts))
    for j, text in enumerate(texts):
        ids = names(text, truncation=True, max_length=35, return_tensors="pt").input_ids
        places = torch.full((1, blip2_checkpoints.QUERIES), len(names) - 1)
        ids = torch.cat([places, ids], dim=1).expand(len(images), -1)
        inputs = {
            "pixel_values": normalised(images),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        itc = reference(**inputs, use_image_text_matching_head=False).logits_per_image
        similarity[:, j] = itc[:, 0]
        itm = reference(**inputs, use_image_text_matching_head=True).logits_per_image
        logit[:, j] = itm[:, 1]
    return similarity, logit


def test_recalls_are_those_of_a_plain_loop_over_transformers(filter_: Path, pictures: Path) -> None:
    similarity, logit = scores_of(filter_, images_of(pictures))
    pairs = some_pairs()
    owner = torch.tensor([i for i, pair in enumerate(pairs) for _ in pair.captions])
    right = owner == torch.arange(len(pairs))[:, None]
    model = load_filter(str(filter_), ScoringConfig(similarity=True), device="cpu")
    assert isinstance(model, Blip2Filter)
    place = Pictures(str(pictures), compute=ComputeConfig(batch_size=5))
    made = evaluate_retrieval(model, pairs, place, k_test=6)
    assert made.itc.image_to_text == plain_recall(similarity, None, right, 6)
    assert made.itc.text_to_image == plain_recall(similarity.T, None, right.T, 6)
    assert made.itm is not None
    assert made.itm.image_to_text == plain_recall(similarity, logit, right, 6)
    assert made.itm.text_to_image == plain_recall(similarity.T, logit.T, right.T, 6)
    assert made.itm != made.itc


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("length_penalty", [-1.0, 2.0])
@torch.inference_mode()
def test_answers_are_transformers_beams(
    kind: Kind, length_penalty: float, captioners: dict[str, Path], pictures: Path
) -> None:
    folder = captioners[kind]
    captioner = load_captioner(str(folder), CaptionConfig(), seed=0, device="cpu")
    assert isinstance(captioner, Blip2Captioner)
    answerer = Blip2Answerer(captioner, length_penalty=length_penalty)
    assert answerer.prompt == f"Question: {{}} {'Short answer' if kind == 't5' else 'Answer'}:"
    images = list(images_of(pictures)[:3])
    found = answerer.answer(images, QUESTIONS)
    reference = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = Blip2Processor.from_pretrained(folder)
    for image, questions, answers in zip(images, QUESTIONS, found, strict=True):
        for question, answer in zip(questions, answers, strict=True):
            text = answerer.prompt.replace("{}", question)
            inputs = processor(images=[image], text=[text], return_tensors="pt")
            made = reference.generate(
                **inputs, num_beams=5, length_penalty=length_penalty, max_new_tokens=10,
                min_new_tokens=1, do_sample=False,
            )[0]  # fmt: skip
            made = made if kind == "t5" else made[inputs.input_ids.shape[1] :]
            expected = processor.tokenizer.decode(made, skip_special_tokens=True).strip()
            assert answer == expected, question


@pytest.fixture
def capfilt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process; gives its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["capfilt", "evaluate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_commands_take_blip2_folders(
    filter_: Path, captioners: dict[str, Path], pictures: Path, tmp_path: Path, capfilt: Any
) -> None:
    captions = put_lines(
        tmp_path / "captions.jsonl",
        [{"image": f"{i}.png", "caption": "a dog on the grass"} for i in range(4)],
    )
    pairs = put_lines(
        tmp_path / "pairs.jsonl",
        [{"image": f"{i}.png", "caption": "a dog", "label": i % 2} for i in range(4)],
    )
    places = ("--images", pictures, "--json")
    code, out, err = capfilt("retrieval", "--filter", filter_, "--pairs", captions, *places)
    assert (code, json.loads(out)["images"]) == (0, 4), err
    code, out, err = capfilt("filter", "--filter", filter_, "--pairs", pairs, *places)
    assert code == 0, err
    assert json.loads(out)["match_prob"]["at_threshold"]["threshold"] == 0.5
    opt = captioners["opt"]
    code, out, err = capfilt("captions", "--captioner", opt, "--pairs", captions, *places)
    assert (code, json.loads(out)["references"]) == (0, 4), err


@pytest.mark.parametrize("kind", get_args(Kind))
@torch.inference_mode()
def test_captions_are_those_of_transformers_under_the_papers_protocol(
    kind: Kind, captioners: dict[str, Path], pictures: Path, tmp_path: Path, capfilt: Any
) -> None:
    """5 beams, 30 new tokens at most, and 8 at least of what stands in the decoder."""
    rows = [{"image": f"{i}.png", "caption": "a dog on the grass"} for i in range(4)]
    pairs, saved = put_lines(tmp_path / "captions.jsonl", rows), tmp_path / "written.json"
    model = ("captions", "--captioner", captioners[kind], "--pairs", pairs)
    code, _, err = capfilt(*model, "--images", pictures, "--save", saved, "--json")
    assert code == 0, err
    reference = Blip2ForConditionalGeneration.from_pretrained(captioners[kind]).eval()
    processor = Blip2Processor.from_pretrained(captioners[kind])
    for image, row in zip(images_of(pictures)[:4], json.loads(saved.read_text()), strict=True):
        inputs = processor(images=[image], text=["a photo of"], return_tensors="pt")
        prompt = inputs.input_ids.shape[1] - blip2_checkpoints.QUERIES
        before = 1 if kind == "t5" else prompt
        made = reference.generate(
            **inputs, num_beams=5, max_new_tokens=30, min_new_tokens=8 - before, do_sample=False,
        )[0]  # fmt: skip
        made = made if kind == "t5" else made[inputs.input_ids.shape[1] :]
        assert row["caption"] == processor.tokenizer.decode(made, skip_special_tokens=True).strip()


def test_vqa_command_gives_the_accuracy_of_its_answers(
    captioners: dict[str, Path], pictures: Path, tmp_path: Path, capfilt: Any
) -> None:
    rows = [
        {"image": f"{i % 3}.png", "question": text, "answers": ["night", "a bus", "dog"]}
        for i, text in enumerate(["two cats", "a dog on the grass", "three people", "bus"])
    ]
    questions, saved = put_lines(tmp_path / "questions.jsonl", rows), tmp_path / "answers.json"
    model = ("vqa", "--captioner", captioners["opt"], "--questions", questions)
    images = ("--images", pictures)
    code, out, err = capfilt(*model, *images, "--save", saved, "--json")
    assert code == 0, err
    answered = json.loads(saved.read_text())
    assert [(row["image"], row["question"]) for row in answered] == [
        (row["image"], row["question"]) for row in rows
    ]
    degrees = [vqa_accuracy(row["answer"], ["night", "a bus", "dog"]) for row in answered]
    assert json.loads(out)["accuracy"] == pytest.approx(sum(degrees) / 4)
    assert json.loads(out)["images"] == 3
    code, out, _ = capfilt(*model, *images)
    assert code == 0
    assert "VQA accuracy" in out
    code, _, err = capfilt(*model, *images, "--prompt", "Q: ")
    assert (code, err.strip()) == (
        2, "capfilt: --prompt 'Q: ' has no {}, which stands for the question"
    )  # fmt: skip
    code, _, err = capfilt(*model, *images, "--set", "captions.num_beams=3")
    assert (code, err.count("\n")) == (2, 1)
    assert "--set captions.… is for captions: answers have 5 beams, length penalty -1" in err


def test_vqa_of_a_blip_is_refused(
    captioner_folder: Path, pictures: Path, tmp_path: Path, capfilt: Any
) -> None:
    rows = [{"image": "0.png", "question": "what?", "answers": ["x"]}]
    questions = put_lines(tmp_path / "questions.jsonl", rows)
    code, _, err = capfilt(
        "vqa", "--captioner", captioner_folder, "--questions", questions, "--images", pictures
    )
    assert code == 2
    assert "questions need a Blip2ForConditionalGeneration" in err
