"""What one example is, whenever it is seen."""

from __future__ import annotations

import pytest
import torch

from capfilt.data.config import AugmentConfig, DataConfig, DatasetConfig
from capfilt.data.dataset import Dataset
from capfilt.data.example import Candidate, UnusableError, make_example
from capfilt.record import Sample, Source, Text
from tests.run.conftest import picture

TEXTS = (Text(Source.WEB, 0, "a dog"),)


def example(config: DataConfig, *, cycle: int, key: str = "1", seed: int = 0) -> torch.Tensor:
    dataset = Dataset("web", DatasetConfig(path="web"), [], is_output=False)
    sample = Sample(key, picture(3), "jpg", TEXTS)
    candidate = Candidate(dataset, "00000", sample, cycle, 0)
    return make_example(candidate, config, seed).pixels


def test_an_image_looks_alike_each_time_where_that_is_asked_for() -> None:
    plain = DataConfig(image_size=24)
    assert not torch.equal(example(plain, cycle=0), example(plain, cycle=1))
    fixed = DataConfig(image_size=24, augment=AugmentConfig(fixed=True))
    first = example(fixed, cycle=0)
    assert all(torch.equal(example(fixed, cycle=cycle), first) for cycle in range(1, 5))
    assert not torch.equal(example(fixed, cycle=0, key="2"), first)  # another crop of it
    assert not torch.equal(example(fixed, cycle=0, seed=1), first)


@pytest.mark.parametrize("text", [" ", "\t", "\u00a0", "\u3000", "...", "! \u3000 !"])
def test_a_text_without_a_word_is_none(text: str) -> None:
    dataset = Dataset("web", DatasetConfig(path="web"), [], is_output=False)
    sample = Sample("1", picture(3), "jpg", (Text(Source.WEB, 0, text),))
    with pytest.raises(UnusableError, match="empty_text"):
        make_example(Candidate(dataset, "00000", sample, 0, 0), DataConfig(image_size=24), 0)
