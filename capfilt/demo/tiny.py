"""Small untrained checkpoints, made on the spot and saved by transformers with their processors.

Their outputs mean nothing but differ from image to image and text to text, captions end at varied
lengths and match probabilities spread over [0, 1], so that every part of a run has work to do, and
a mix-up of samples, tokens or heads shows.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = """
    a an the picture photo image of in on at with and two three dog cat bird horse man woman
    child people car bus train boat plane bike tree grass water sky snow street house room table
    chair red blue green white black big small old young sitting standing running walking eating
    looking next to front behind under over is are it this for sale free shipping click here buy
    now
"""


def tokenizer(words: Iterable[str] = ()) -> BertTokenizer:
    """A BLIP tokenizer with a WordPiece vocabulary that spells anything in ASCII.

    Args:
        words: Those that are tokens as a whole; none for `WORDS`.
    """
    tokens = vocabulary(words or WORDS.split())
    return add_blip_tokens(BertTokenizer(vocab={t: index for index, t in enumerate(tokens)}))


def vocabulary(words: Iterable[str]) -> list[str]:
    """The lines of a `vocab.txt` that has these words whole and spells any other in ASCII."""
    pieces = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tails = [f"##{piece}" for piece in [*string.ascii_lowercase, *string.digits, "ing", "s", "ed"]]
    return list(dict.fromkeys([*SPECIAL, *pieces, *tails, *words]))


def add_blip_tokens(names: BertTokenizer) -> BertTokenizer:
    """Make BERT's tokenizer BLIP's: `[DEC]` and `[ENC]` added at the end."""
    names.add_special_tokens({"bos_token": "[DEC]"})
    names.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return names


def make_captioner(
    folder: Path, *, seed: int = 0, names: BertTokenizer | None = None, **sizes: int
) -> Path:
    """Save a small `BlipForConditionalGeneration` under `folder`.

    Args:
        folder: Made if absent.
        seed: Of the weights.
        names: A tokenizer by `tokenizer` or `add_blip_tokens`; None for the default words.
        sizes: See `blip_config`.
    """
    names = names or tokenizer()
    model = BlipForConditionalGeneration(blip_config(names, **sizes))
    randomise(model, seed)
    bias = model.text_decoder.cls.predictions.decoder.bias
    with torch.no_grad():
        # Ends now and then; no caption is emptied by tokens that decoding or normalising skips.
        bias[names.convert_tokens_to_ids([*SPECIAL, "[DEC]", "[ENC]", *string.punctuation])] = -20.0
        bias[names.sep_token_id] = 3.0
    return _save_blip(model, names, folder)


def make_filter(
    folder: Path, *, seed: int = 4, names: BertTokenizer | None = None, **sizes: int
) -> Path:
    """Save a small `BlipForImageTextRetrieval` under `folder`; arguments as `make_captioner`."""
    names = names or tokenizer()
    model = BlipForImageTextRetrieval(blip_config(names, **sizes))
    randomise(model, seed)
    with torch.no_grad():
        model.itm_head.weight.mul_(4)
    return _save_blip(model, names, folder)


def blip_config(
    names: BertTokenizer,
    *,
    image_size: int = 32,
    patch_size: int = 8,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    image_hidden: int = 0,
    ffn: int = 0,
) -> BlipConfig:
    """A small BLIP; the image tower is wider than the text, as in BLIP-large, unless told."""
    ffn = ffn or 2 * hidden
    return BlipConfig(
        text_config={
            "vocab_size": len(names),
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": 64,
            "bos_token_id": names.bos_token_id,
            "sep_token_id": names.sep_token_id,
            "pad_token_id": names.pad_token_id,
        },
        vision_config={
            "hidden_size": image_hidden or hidden + 16,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": image_size,
            "patch_size": patch_size,
        },
        image_text_hidden_size=hidden // 2,
    )


def randomise(model: Any, seed: int) -> None:
    """Draw every parameter from N(0, 0.15), norms from N(1, 0.15): no two tensors are alike.

    transformers' own initialisation gives one text for all images. That is for a width of 64; wider
    models get as much less as keeps sums of so many terms alike, or rounding would decide tokens.
    """
    std = 0.15 * (64 / model.config.text_config.hidden_size) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    norms = {id(m.weight) for m in model.modules() if isinstance(m, nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if id(parameter) in norms else 0.0, std, generator=generator)


def _save_blip(model: Any, names: BertTokenizer, folder: Path) -> Path:
    side = model.config.vision_config.image_size
    processor = BlipImageProcessorPil(size={"height": side, "width": side})
    model.save_pretrained(folder)
    BlipProcessor(processor, names).save_pretrained(folder)
    return folder
