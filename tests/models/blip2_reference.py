"""What tests of BLIP-2 and of InstructBLIP captioners ask of them alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.models.blip2_captioner import Blip2Captioner
from capfilt.models.blip2_load import (
    blip2_settings,
    load_language_model,
    load_prompt_model,
    save_captioner,
)
from capfilt.models.load import load_captioner

GREEDY = CaptionConfig(method="greedy", min_length=0, max_length=16)


def load(folder: Path, config: CaptionConfig = GREEDY, *, seed: int = 0) -> Blip2Captioner:
    made = load_captioner(str(folder), config, seed=seed, device="cpu")
    assert isinstance(made, Blip2Captioner)
    return made


def texts_of(reference: Any, tokenizer: Any, rows: Tensor) -> list[str]:
    """Of tokens that transformers' model has written, up to its end.

    Args:
        reference: The model.
        tokenizer: Of its language model.
        rows: [N, length], without what they began with. Tokens that stand for no word are left out.
    """
    end = reference.config.text_config.eos_token_id
    found = []
    for row in rows.tolist():
        row = row[: row.index(end)] if end in row else row
        named = [i for i in row if i < len(tokenizer)]
        found.append(tokenizer.decode(named, skip_special_tokens=True))
    return found


def check_saved_again(folder: Path, reference: Any, processor: Any, into: Path) -> None:
    """What is loaded from a folder of transformers' and saved here, transformers loads alike."""
    settings = blip2_settings(folder)
    save_captioner(
        load_prompt_model(folder, settings),
        load_language_model(folder, settings, torch.float32),
        into,
        settings,
        processor=processor,
    )
    again, report = type(reference).from_pretrained(into, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
