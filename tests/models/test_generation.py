"""What holds of captions however they are decoded."""

from __future__ import annotations

from dataclasses import replace

from capfilt.config import CaptionConfig
from capfilt.models.med import CaptionModel
from tests.models.conftest import make_images
from tests.models.decoding import PROMPT, ours


def test_prompt_counts_towards_lengths(model: CaptionModel) -> None:
    config = CaptionConfig(min_length=10, max_length=10)
    for of_image in ours(model, make_images(10), config):
        assert len(of_image[0]) == 10 - len(PROMPT)
    longer = replace(config, max_length=40, min_length=12)
    lengths = {len(of_image[0]) for of_image in ours(model, make_images(40), longer)}
    assert min(lengths) >= 12 - len(PROMPT)
    assert len(lengths) > 5
