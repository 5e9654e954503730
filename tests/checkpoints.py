"""Small random checkpoints for tests: the demo's BLIPs, and a CLIP."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from capfilt.demo import tiny
from capfilt.demo.tiny import SPECIAL, tokenizer

__all__ = ["SPECIAL", "make_captioner", "make_clip", "make_filter", "tokenizer"]


def make_captioner(folder: Path, *, vocabulary: Path | None = None, **options: Any) -> Path:
    """As `tiny.make_captioner`; `vocabulary` is the folder of a BERT tokenizer to use."""
    return tiny.make_captioner(folder, names=_names(vocabulary), **options)


def make_filter(folder: Path, *, vocabulary: Path | None = None, **options: Any) -> Path:
    """As `tiny.make_filter`; `vocabulary` is the folder of a BERT tokenizer to use."""
    return tiny.make_filter(folder, names=_names(vocabulary), **options)


def _names(vocabulary: Path | None) -> BertTokenizer | None:
    if vocabulary is None:
        return None
    return tiny.add_blip_tokens(BertTokenizer.from_pretrained(vocabulary))


def make_clip(folder: Path, *, seed: int = 2, image_size: int = 32, hidden: int = 64) -> Path:
    """Save a small `CLIPModel` under `folder`."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*letters, *(f"{piece}</w>" for piece in letters), "<|startoftext|>", "<|endoftext|>"]
    names = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    text_and_vision = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = CLIPConfig(
        text_config={
            **text_and_vision,
            "vocab_size": len(tokens),
            "max_position_embeddings": 77,
            "bos_token_id": names.bos_token_id,
            "eos_token_id": names.eos_token_id,
            "pad_token_id": names.eos_token_id,
        },
        vision_config={**text_and_vision, "image_size": image_size, "patch_size": 8},
        projection_dim=hidden // 2,
    )
    model = CLIPModel(config)
    tiny.randomise(model, seed)
    size = {"shortest_edge": image_size}
    crop = {"height": image_size, "width": image_size}
    model.save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=crop), names).save_pretrained(folder)
    return folder
