"""Rows that are decoded independently of each other: greedy, and nucleus sampling.

Random numbers belong to the caption, not to the batch (`capfilt.models.uniforms`). A row that has
ended leaves the batch.

Shapes: N images, K rows per image, A active rows (ordered by image), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.models.rows import Rows, adjust, pick, until
from capfilt.models.transfer import tensor_on

# Nuclei of 0.9 hold a few hundred tokens at most; looking at this many first saves a full sort.
_CANDIDATES = 1024
# To learn which rows have ended the host has to wait for a GPU; a few steps for nothing cost less.
_STEPS_BETWEEN_CHECKS = {"cuda": 4}


def sample_rows(
    session: Rows,
    images: int,
    prompt: Sequence[int],
    end: int,
    config: CaptionConfig,
    numbers: Tensor | None,
) -> list[list[list[int]]]:
    """Decode `per_image` independent rows per image; `numbers` [N * K, steps] samples them."""
    per_image, device = config.per_image, session.logits.device
    steps, patience = config.max_length - len(prompt), _STEPS_BETWEEN_CHECKS.get(device.type, 1)
    captions: list[list[int]] = [[] for _ in range(images * per_image)]
    active = list(range(images * per_image))  # which caption each row is
    session.select([caption // per_image for caption in active])
    ids = tensor_on(list(prompt), device).repeat(len(active), 1)
    for step in range(steps):
        scores = adjust(session.logits, ids, end, config)
        if numbers is None:
            chosen = scores.argmax(-1)
        else:
            chosen = sample_nucleus(scores, numbers[:, step], config)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        if step + 1 < steps and (step + 1) % patience == 0:
            ended = (ids[:, len(prompt) :] == end).any(1).tolist()
            if any(ended):
                gone = [row for row, is_over in enumerate(ended) if is_over]
                for row, tokens in zip(gone, pick(ids, gone).tolist(), strict=True):
                    captions[active[row]] = until(tokens[len(prompt) :], end)
                going = [row for row, is_over in enumerate(ended) if not is_over]
                if not going:
                    return _by_image(captions, per_image)
                active, ids = [active[row] for row in going], pick(ids, going)
                numbers = None if numbers is None else pick(numbers, going)
                session.select(going)
        if step + 1 < steps:
            session.advance(ids[:, -1])
    for caption, tokens in zip(active, ids.tolist(), strict=True):
        captions[caption] = until(tokens[len(prompt) :], end)
    return _by_image(captions, per_image)


def _by_image(captions: list[list[int]], per_image: int) -> list[list[list[int]]]:
    return [captions[i : i + per_image] for i in range(0, len(captions), per_image)]


def sample_nucleus(scores: Tensor, numbers: Tensor, config: CaptionConfig) -> Tensor:
    """Choose a token per row by inverting the cumulative distribution of its nucleus.

    Tokens are ordered by falling probability, ties by rising id. The nucleus is the shortest prefix
    that reaches `top_p`, at least one token. With C the probability of the nucleus, the choice is
    the first token at which the cumulative probability exceeds number * C.

    Source: Holtzman et al., arXiv:1904.09751; transformers' temperature, top-k and top-p warpers.

    Args:
        scores: [A, V], fp32.
        numbers: In [0, 1), [A], fp64.
        config: `temperature`, `top_k`, `top_p`.

    Returns:
        Token ids [A].
    """
    scores = scores / config.temperature
    width = max(_CANDIDATES, config.top_k)  # shares of a nucleus are of all its candidates
    tokens, logs, inside = _nucleus(scores, min(width, scores.shape[1]), config)
    # A nucleus that reaches the last candidate's score may go on beyond the candidates. On a GPU
    # this is the one wait of a step; always sorting the whole vocabulary would avoid it.
    if logs.shape[1] < scores.shape[1] and bool((inside & (logs == logs[:, -1:])).any()):
        tokens, logs, inside = _nucleus(scores, scores.shape[1], config)
    mass = torch.where(inside, (logs - logs[:, :1]).double().exp(), 0).cumsum(-1)
    rank = (mass <= numbers[:, None] * mass[:, -1:]).sum(-1, keepdim=True)
    # Rounding may put number * C at C itself.
    rank = torch.minimum(rank, inside.sum(-1, keepdim=True) - 1)
    return tokens.gather(1, rank).squeeze(1)


def _nucleus(scores: Tensor, width: int, config: CaptionConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, scores and membership of the `width` best tokens, best first, ties by rising id."""
    # What topk returns among equals is arbitrary, so order by id first and sort stably.
    ids = scores.topk(width, dim=-1, sorted=False).indices.sort(dim=-1).values
    logs, order = scores.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    top_k = config.top_k or scores.shape[1]
    among = logs[:, :top_k] if config.top_k else scores
    probabilities = (logs - among.logsumexp(-1, keepdim=True)).double().exp()
    before = probabilities.cumsum(-1) - probabilities
    inside = before < (config.top_p if config.top_p < 1 else math.inf)
    inside[:, 0] = True
    inside[:, top_k:] = False
    return ids.gather(1, order), logs, inside
