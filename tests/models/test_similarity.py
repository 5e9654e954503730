"""`BlipModel` folders as filters, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BlipConfig, BlipImageProcessorPil, BlipModel, BlipProcessor

from capfilt.config import ScoringConfig
from capfilt.demo import tiny
from capfilt.errors import ModelError
from capfilt.models.load import load_filter
from tests import checkpoints
from tests.models.conftest import make_images, normalised

SIMILARITY = ScoringConfig(match_prob=False, similarity=True)
TEXTS = [["a dog", "snow on the street"], [], ["two people"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("similarity")
    tokenizer = checkpoints.tokenizer()
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    config = BlipConfig(
        vision_config={**sizes, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        text_config={
            **sizes,
            "num_attention_heads": 4,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "encoder_hidden_size": 48,
        },
        projection_dim=24,
    )
    model = BlipModel(config)
    tiny.randomise(model, 0)
    model.save_pretrained(where)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(processor, tokenizer).save_pretrained(where)
    return where


@torch.inference_mode()
def test_score_gives_transformers_cosines(folder: Path) -> None:
    images = make_images(3)
    reference = BlipModel.from_pretrained(folder).eval()
    scores = load_filter(str(folder), SIMILARITY, device="cpu").score(list(images), TEXTS)
    found = []
    for image, of_image, of_image_scores in zip(images, TEXTS, scores, strict=True):
        for text, score in zip(of_image, of_image_scores, strict=True):
            ids = checkpoints.tokenizer()(text, return_tensors="pt").input_ids
            output = reference(input_ids=ids, pixel_values=normalised(image)[None])
            expected = (output.image_embeds @ output.text_embeds.T).item()
            assert score.similarity == pytest.approx(expected, abs=1e-4)
            assert score.match_prob is None
            found.append(expected)
    assert torch.tensor(found).std() > 0.005


def test_match_prob_from_it_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="a BlipModel has no match probability: set scoring"):
        load_filter(str(folder), ScoringConfig(), device="cpu")


def test_it_is_no_captioner(folder: Path) -> None:
    from capfilt.models.checkpoint import inspect

    with pytest.raises(ModelError, match="is a BlipModel, a filter"):
        inspect(str(folder), "captioner")
