"""ITM: image-text matching with hard negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ItmConfig:
    """Source: BLIP, arXiv:2201.12086, section 3.2; its code, `blip_retrieval.py`."""

    negatives: Literal["own_rank", "all_ranks"] = "own_rank"
