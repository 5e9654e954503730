from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from capfilt.config import ScoringConfig
from capfilt.errors import ModelError
from capfilt.models.clip import ClipFilter
from capfilt.models.images import PixelSpec
from capfilt.models.load import load_filter
from tests.models.conftest import make_images, normalised

SIMILARITY = ScoringConfig(match_prob=False, similarity=True)
TEXTS = [["a dog", "SNOW on the street " * 20], [], ["free", "two people", "a"]]


def load(folder: Path) -> ClipFilter:
    made = load_filter(str(folder), SIMILARITY, device="cpu")
    assert isinstance(made, ClipFilter)
    return made


@torch.inference_mode()
def test_score_gives_transformers_cosines(clip_folder: Path) -> None:
    images = make_images(3)
    reference = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    scores = load(clip_folder).score(list(images), TEXTS)
    found = []
    for image, of_image, of_image_scores in zip(images, TEXTS, scores, strict=True):
        for text, score in zip(of_image, of_image_scores, strict=True):
            ids = tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
            output = reference(pixel_values=normalised(image)[None], **ids)
            expected = (output.image_embeds @ output.text_embeds.T).item()
            assert score.similarity == pytest.approx(expected, abs=1e-4)
            assert score.match_prob is None
            found.append(expected)
    assert torch.tensor(found).std() > 0.02


def test_image_passes_the_tower_once_however_many_texts(clip_folder: Path) -> None:
    filter_ = load(clip_folder)
    passes: list[int] = []
    filter_.model.vision_model.register_forward_hook(
        lambda _, __, kwargs, ___: passes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    filter_.score(list(make_images(3)), TEXTS)
    assert passes == [2]
    assert filter_.score(list(make_images(1)), [[]]) == [[]]
    assert passes == [2]


def test_four_threads_at_once_get_what_one_gets(clip_folder: Path) -> None:
    filter_, images = load(clip_folder), list(make_images(1))
    batches = [[["a dog " * n] * 20] for n in (1, 4, 9, 30)]  # four paddings, with and without cut
    expected = [filter_.score(images, batch) for batch in batches]

    def work(index: int) -> None:
        for _ in range(25):
            assert filter_.score(images, batches[index]) == expected[index]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_clip_asks_for_the_centre_crop(clip_folder: Path) -> None:
    assert load(clip_folder).pixels == PixelSpec(size=32, crop=True)


def test_match_prob_from_clip_is_refused(clip_folder: Path) -> None:
    with pytest.raises(ModelError, match="a CLIPModel has no match probability"):
        load_filter(str(clip_folder), ScoringConfig(), device="cpu")
