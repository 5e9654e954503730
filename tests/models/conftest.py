from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.utils import logging

from capfilt.models.load import blip_settings, load_caption_model
from capfilt.models.med import CaptionModel
from tests import checkpoints

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def captioner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_captioner(tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="session")
def filter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_filter(tmp_path_factory.mktemp("filter"))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(captioner_folder: Path) -> CaptionModel:
    """The captioner as decoding drives it."""
    return load_caption_model(captioner_folder, blip_settings(captioner_folder)).eval()


@pytest.fixture(scope="session")
def hf_captioner(captioner_folder: Path) -> BlipForConditionalGeneration:
    return BlipForConditionalGeneration.from_pretrained(captioner_folder).eval()


@pytest.fixture(scope="session")
def hf_filter(filter_folder: Path) -> BlipForImageTextRetrieval:
    return BlipForImageTextRetrieval.from_pretrained(filter_folder).eval()


def make_images(count: int, *, side: int = 32, seed: int = 0) -> Tensor:
    """Smooth random images, uint8 [count, 3, side, side]: noise all looks alike to a ViT."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 3, 3), generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth.round().to(torch.uint8)


def normalised(images: Tensor) -> Tensor:
    """As transformers' image processor leaves them."""
    return (images.float() / 255 - MEAN) / STD
