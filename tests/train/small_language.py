"""Small language models in folders of their own, for tests of BLIP-2's second stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from capfilt.data.batch import Batch
from capfilt.models.blip2_load import (
    blip2_settings,
    load_language_model,
    load_language_tokenizer,
)
from capfilt.train.blip2_generate import Blip2Generate, GenerateConfig
from capfilt.train.towers import DropConfig
from tests import blip2_checkpoints
from tests.blip2_checkpoints import TEXTS, Kind
from tests.models.conftest import make_images
from tests.train.small_blip2 import make_model, vocabulary


def make_language(folder: Path, kind: Kind) -> Path:
    """The folder of a small random language model and its tokenizer, below `folder`."""
    source = blip2_checkpoints.make_captioner(folder / "whole", kind)
    model = load_language_model(source, blip2_settings(source), torch.float32)
    model.save_pretrained(folder / kind)
    load_language_tokenizer(source).save_pretrained(folder / kind)
    return folder / kind


def make_start(folder: Path) -> Path:
    """What a stage 1 leaves."""
    make_model().export_filter(folder / "filter", vocabulary(folder / "names"))
    return folder / "filter"


def make_generative(folder: Path, kind: Kind, **changes: Any) -> Blip2Generate:
    """In training mode, without dropout."""
    language = folder / kind
    if not language.exists():
        make_language(folder, kind)
        make_start(folder)
    config = GenerateConfig(
        start=str(folder / "filter"),
        language=str(language),
        image_size=32,
        prompt="a photo of",
        drop=DropConfig(text=0.0),
    )
    config = replace(config, **changes)
    return Blip2Generate.load(config, seed=0, dtype=torch.float32).train()


def batch_of(model: Blip2Generate, count: int, seed: int = 0) -> Batch:
    """Images and texts of unequal length."""
    texts = [" ".join(TEXTS[i % len(TEXTS)].split()[: 3 + i]) for i in range(count)]
    ids = torch.arange(count) + 1000 * seed
    return Batch(
        images=make_images(count, seed=seed),
        texts=[row[1:] for row in model.texts.encode(texts, max_tokens=30)],
        keys=[str(i) for i in range(count)],
        image_ids=ids,
        text_ids=ids.clone(),
    )
