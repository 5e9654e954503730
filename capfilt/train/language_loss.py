"""LM and prefix LM: a language model's loss on texts, given what it is shown of their images.

Shapes: N images, Q queries, W width, L tokens of the longest row, K of the longest that is learned,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.models.transfer import tensor_on
from capfilt.train.gather import mean_over_ranks
from capfilt.train.language_texts import LanguageTexts

_NOT_LEARNED = -100


def lm_loss(
    language: Any, visual: Tensor, texts: Sequence[list[int]], how: LanguageTexts
) -> Tensor:
    """Cross-entropy per token of a decoder, this rank's share of the mean over all ranks' tokens.

    Neither the image, the prompt nor padding is learned.

    Source: BLIP-2, arXiv:2301.12597, section 3.2.

    Args:
        language: transformers' causal language model.
        visual: What it sees of the images, [N, Q, W].
        texts: One per image, each with its end.
        how: What stands before a text.
    """
    # The last token predicts nothing.
    states, mask = _rows(language, visual, [[*how.lead, *ids[:-1]] for ids in texts])
    # Texts begin in one column: the last K hold every token whose next one is learned.
    longest = max(map(len, texts))
    given = {"inputs_embeds": states, "attention_mask": mask, "logits_to_keep": longest}
    return _loss(language(**given, use_cache=False).logits, texts)


def prefix_lm_loss(
    language: Any,
    visual: Tensor,
    texts: Sequence[list[int]],
    how: LanguageTexts,
    cuts: Sequence[int],
) -> Tensor:
    """As `lm_loss`, of an encoder-decoder: its encoder reads a text up to the cut.

    Source: BLIP-2, arXiv:2301.12597, section 3.2.

    Args:
        language: transformers' sequence-to-sequence language model.
        visual: What its encoder sees of the images, [N, Q, W].
        texts: One per image, each with its end.
        how: What stands around a text.
        cuts: How many tokens of each text the encoder reads; the decoder learns the others.
    """
    read = [[*how.lead, *ids[:cut], *how.close] for ids, cut in zip(texts, cuts, strict=True)]
    states, mask = _rows(language, visual, read)
    learned = [ids[cut:] for ids, cut in zip(texts, cuts, strict=True)]
    inputs, _ = _padded([[how.decoder_start, *ids[:-1]] for ids in learned], 0, visual.device)
    given = {"inputs_embeds": states, "attention_mask": mask, "decoder_input_ids": inputs}
    return _loss(language(**given, use_cache=False).logits, learned)


def _rows(language: Any, visual: Tensor, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Images and texts as a language model takes them in, [N, Q + L, W], and where they are."""
    ids, filled = _padded(texts, 0, visual.device)
    words = language.get_input_embeddings()(ids)
    states = torch.cat([visual.to(words.dtype), words], dim=1)
    mask = torch.cat([filled.new_ones(visual.shape[:2]), filled], dim=1)
    return states, mask.long()


def _loss(logits: Tensor, learned: Sequence[Sequence[int]]) -> Tensor:
    """Of logits [N, K, V], of which row i's first `len(learned[i])` count."""
    target, _ = _padded(learned, _NOT_LEARNED, logits.device)
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), ignore_index=_NOT_LEARNED, reduction="sum"
    )
    return mean_over_ranks(loss, sum(map(len, learned)))


def _padded(
    rows: Sequence[Sequence[int | None]], filler: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows [N, L] with a filler at their ends, and True where they have none."""
    width = max(map(len, rows))
    ids = tensor_on([[*row, *[filler] * (width - len(row))] for row in rows], device)
    lengths = tensor_on([len(row) for row in rows], device)
    return ids, torch.arange(width, device=device) < lengths[:, None]
