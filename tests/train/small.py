"""Small models and batches for tests of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from capfilt.data.batch import Batch
from capfilt.train.blip import BlipConfig, BlipPretrain
from capfilt.train.itc import ItcConfig
from capfilt.train.tokens import Tokens
from capfilt.train.towers import DropConfig, ImageTower, TextTower

SEP = 3
TOKENS = Tokens(classify=2, match=43, decode=42, size=44, prompt=(5, 6))
CONFIG = BlipConfig(
    image=ImageTower(width=32, layers=2, heads=4, image_size=32, patch_size=8),
    text=TextTower(width=24, layers=2, heads=4),
    embedding=12,
    itc=ItcConfig(queue=16),
    drop=DropConfig(text=0.0),
)


def make_batch(count: int, seed: int = 0) -> Batch:
    """Texts of three to nine tokens, all images and texts different."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    ids = torch.arange(count) + 1000 * seed
    return Batch(
        images=torch.randint(0, 256, (count, 3, 32, 32), generator=generator).byte(),
        texts=[[*torch.randint(7, 42, (n,), generator=generator).tolist(), SEP] for n in lengths],
        keys=[str(i) for i in range(count)],
        image_ids=ids,
        text_ids=ids.clone(),
    )


def rows(batch: Batch, wanted: slice) -> Batch:
    """Some of a batch."""
    return Batch(
        batch.images[wanted],
        batch.texts[wanted],
        batch.keys[wanted],
        batch.image_ids[wanted],
        batch.text_ids[wanted],
    )


def make_model(seed: int = 0, **changes: Any) -> BlipPretrain:
    """In training mode, with weights so large that no two images or texts look alike."""
    model = BlipPretrain(replace(CONFIG, **changes), TOKENS, seed=seed).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=generator)
    model.matcher.momentum.update(model.matcher.model, 0.0)
    return model
