"""LM: language modelling of a text given its image.

Shapes: P tokens that are learned, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.models.attention import Grid
from capfilt.models.med import CaptionModel, PackedTexts
from capfilt.models.memory import ImageMemory
from capfilt.models.text_transformer import Looking
from capfilt.models.transfer import tensor_on
from capfilt.train.gather import mean_over_ranks
from capfilt.train.tokens import Tokens


@dataclass(frozen=True)
class LmConfig:
    """Source: BLIP, arXiv:2201.12086, section 3.2; its code, `blip_pretrain.py`, `blip.py`."""

    label_smoothing: float = 0.1
    prompt: str = ""  # its tokens are read and not learned; "a picture of " when finetuning

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), is {self.label_smoothing}")


def lm_loss(
    model: CaptionModel,
    memory: ImageMemory,
    texts: Sequence[list[int]],
    tokens: Tokens,
    *,
    label_smoothing: float,
    others: int = 0,
) -> Tensor:
    """Cross-entropy per token, this rank's share of the mean over all ranks' tokens.

    Args:
        model: The image-grounded decoder.
        memory: Of the images.
        texts: One per image, each ending with `[SEP]`, which is learned, too.
        tokens: What comes before a text.
        label_smoothing: Share of the target that is spread over the vocabulary.
        others: Images at the memory's end that have no text here.
    """
    device = model.vit.class_token.device
    lead = [tokens.decode, *tokens.prompt]
    # The last token predicts nothing, and no other one sees it.
    packed = PackedTexts.of([[[*lead, *ids[:-1]]] for ids in texts], device)
    own = model.text.packed(packed.grid, causal=True)
    looking = Looking(memory, Grid.of([*packed.tokens_per_image, *[0] * others], device))
    states = model.text(packed.ids, packed.positions, own, looking)
    target = tensor_on([token for ids in texts for token in ids], device)
    logits = model.logits(states[_learned(len(tokens.prompt), texts, device)])
    loss = F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing)
    return mean_over_ranks(loss, len(target))


def _learned(prompt: int, texts: Sequence[list[int]], device: torch.device) -> Tensor:
    """Rows of the tokens whose next one is learned, [P]."""
    rows: list[int] = []
    start = 0
    for ids in texts:
        rows += range(start + prompt, start + prompt + len(ids))
        start += prompt + len(ids)
    return tensor_on(rows, device)
