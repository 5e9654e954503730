"""Captions of one small captioner: ours, and transformers' of the same weights."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration

from capfilt.config import CaptionConfig
from capfilt.models.generation import generate
from capfilt.models.med import CaptionModel
from tests import checkpoints
from tests.models.conftest import normalised

TOKENIZER = checkpoints.tokenizer()
PROMPT = [TOKENIZER.bos_token_id, *TOKENIZER("a picture of ", add_special_tokens=False).input_ids]
END = TOKENIZER.sep_token_id


@torch.inference_mode()
def ours(model: CaptionModel, images: Tensor, config: CaptionConfig) -> list[list[list[int]]]:
    keys = [f"key{i}" for i in range(len(images))]
    return generate(model, model.vit(images), PROMPT, END, config, seed=3, keys=keys)


def transformers_generate(
    reference: BlipForConditionalGeneration, images: Tensor, config: CaptionConfig, **options: int
) -> list[list[list[int]]]:
    """The same through transformers, cut to the tokens between prompt and end."""
    ids = torch.tensor([[*PROMPT, END]]).repeat(len(images), 1)
    rows = reference.generate(
        pixel_values=normalised(images),
        input_ids=ids,
        do_sample=False,
        min_length=config.min_length,
        max_length=config.max_length,
        repetition_penalty=config.repetition_penalty,
        num_return_sequences=config.per_image,
        **options,
    ).tolist()
    captions = [row[len(PROMPT) :] for row in rows]
    captions = [row[: row.index(END)] if END in row else row for row in captions]
    return [captions[i : i + config.per_image] for i in range(0, len(rows), config.per_image)]
