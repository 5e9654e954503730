"""From image states to caption tokens: greedy, nucleus sampling, beam search.

Results are those of transformers' `generate`, apart from two choices: random numbers belong to the
caption, not to the batch (`capfilt.models.uniforms`), and `top_k` is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.models.beams import search_beams
from capfilt.models.med import CaptionModel
from capfilt.models.rows import Rows
from capfilt.models.sampling import sample_rows
from capfilt.models.session import Session
from capfilt.models.uniforms import uniforms


def generate(
    model: CaptionModel,
    image_states: Tensor,
    prompt: Sequence[int],
    end: int,
    config: CaptionConfig,
    *,
    seed: int,
    keys: Sequence[str],
) -> list[list[list[int]]]:
    """Write captions.

    Source: BLIP, arXiv:2201.12086, section 3.3; transformers' `generate`.

    Args:
        model: What decodes.
        image_states: [N, T, Dv], from the model's ViT.
        prompt: Token ids, `[DEC]` first; shorter than `config.max_length`.
        end: Id of the token that ends a caption.
        config: How to decode.
        seed: Of the run; nucleus sampling only.
        keys: Of the N samples; nucleus sampling only.

    Returns:
        Per image, per caption, the tokens after the prompt, without `end`.
    """
    rows = config.num_beams if _is_beam(config) else config.per_image
    session = Session(model, image_states, prompt, config.max_length, rows=rows)
    return decode(session, prompt, end, config, seed=seed, keys=keys)


def decode(
    session: Rows,
    prompt: Sequence[int],
    end: int,
    config: CaptionConfig,
    *,
    seed: int,
    keys: Sequence[str],
    length_penalty: float = 1.0,
) -> list[list[list[int]]]:
    """Write captions from rows, one per image, that have read the prompt; see `generate`.

    Beams are compared by the sum of log-probabilities over the length to the power of
    `length_penalty`.
    """
    images = len(session.logits)
    if _is_beam(config):
        return search_beams(session, images, prompt, end, config, length_penalty)
    numbers = None
    if config.method == "nucleus":
        steps = config.max_length - len(prompt)
        drawn = uniforms(seed, keys, config.per_image, steps)
        numbers = torch.from_numpy(drawn.reshape(-1, steps)).to(session.logits.device)
    return sample_rows(session, images, prompt, end, config, numbers)


def _is_beam(config: CaptionConfig) -> bool:
    return config.method == "beam" and config.num_beams > 1
