"""LM: language modelling of a text given its image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LmConfig:
    """Source: BLIP, arXiv:2201.12086, section 3.2; its code, `blip_pretrain.py`."""

    label_smoothing: float = 0.1
    prompt: str = ""  # its tokens are read and not learned; "a picture of " when finetuning
