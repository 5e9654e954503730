"""How the published code captions COCO, as options of `capfilt.config.resolve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capfilt.models.blip2_load import blip2_settings, load_language_tokenizer
from capfilt.models.checkpoint import CAPTIONER, PROMPTS, architecture_of
from capfilt.models.language import prompt_tokens

BLIP: Mapping[str, Any] = {"captions.method": "beam", "captions.num_beams": 3}
_NEW_TOKENS = 30  # at most, of a BLIP-2


def decoding(folder: Path, prompt: str | None) -> Mapping[str, Any]:
    """Beam search as a captioner's paper has it: BLIP's, or BLIP-2's.

    Source: BLIP, arXiv:2201.12086, section 5.2; BLIP-2, arXiv:2301.12597, section 4.2, and its
    code, `caption_coco_opt2.7b_eval.yaml`, where the shortest length counts a decoder's prompt and
    the longest does not.

    Args:
        folder: Of the captioner.
        prompt: `captions.prompt`, which a decoder's length counts, too.

    Raises:
        ModelError: It is no captioner's folder.
    """
    architecture = architecture_of(folder, "captioner")
    if architecture == CAPTIONER:
        return BLIP
    before = 1  # an encoder-decoder's start
    if not blip2_settings(folder).text_config.is_encoder_decoder:
        text = PROMPTS[architecture] if prompt is None else prompt
        before = len(prompt_tokens(load_language_tokenizer(folder), text)) or 1
    return {
        "captions.method": "beam",
        "captions.num_beams": 5,
        "captions.min_length": 8,
        "captions.max_length": before + _NEW_TOKENS,
    }
