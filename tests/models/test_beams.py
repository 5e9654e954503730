"""Beam search against transformers' on the same weights."""

from __future__ import annotations

import pytest
from transformers import (
    BlipForConditionalGeneration,
)

from capfilt.config import CaptionConfig
from capfilt.models.med import CaptionModel
from tests.models.conftest import make_images
from tests.models.decoding import ours, transformers_generate


@pytest.mark.parametrize(
    "config",
    [
        CaptionConfig(method="beam"),
        CaptionConfig(method="beam", per_image=3, repetition_penalty=1.2, min_length=9),
        CaptionConfig(method="beam", num_beams=5, per_image=2, min_length=0, max_length=12),
    ],
)
def test_beam_search_on_200_images_gives_transformers_tokens(
    config: CaptionConfig, model: CaptionModel, hf_captioner: BlipForConditionalGeneration
) -> None:
    images = make_images(200)
    captions = ours(model, images, config)
    assert len({len(c[0]) for c in captions}) > 5
    expected = transformers_generate(hf_captioner, images, config, num_beams=config.num_beams)
    assert captions == expected


def test_beam_search_with_one_beam_is_greedy(model: CaptionModel) -> None:
    images = make_images(20)
    beam = CaptionConfig(method="beam", num_beams=1)
    assert ours(model, images, beam) == ours(model, images, CaptionConfig(method="greedy"))
