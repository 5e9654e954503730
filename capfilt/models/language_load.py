"""Language models from folders of their own, on their way into a BLIP-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from capfilt.errors import ModelError
from capfilt.models import checkpoint
from capfilt.models.blip2_load import has_tied_head, load_language_tokenizer
from capfilt.models.harmless import made_from
from capfilt.models.pretrained import fill_exactly

IMAGE = "<image>"  # stands for the image in transformers' prompts


def load_language(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """transformers' language model and tokenizer of a folder, on the CPU, as BLIP-2 needs them.

    The tokenizer knows `<image>`, for which the embeddings have a row, and a text of an OPT ends
    with a line break.

    Source: BLIP-2's code (`blip2_opt.py`).

    Args:
        folder: Of a model that `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM` loads.
        dtype: Of its weights.

    Raises:
        ModelError: It is none, has no safetensors, asks for code of its own; a tensor is missing,
            surplus or misshapen; its word embeddings are of another width than its states, for
            which a BLIP-2 has no place.
    """
    tokenizer = load_language_tokenizer(folder)
    try:
        checkpoint.weight_files(folder)
    except ModelError:
        raise ModelError(
            f"{folder}: has no whole safetensors: load it once with transformers' from_pretrained "
            "and save it with save_pretrained"
        ) from None
    with made_from(folder):
        options = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(folder, **options)
        names, auto = _kind(config)
        if config.model_type not in names:
            raise ModelError(
                f"{folder}: a {config.model_type} cannot be loaded as a language model: give the "
                f"folder of one that transformers' {auto.__name__} loads"
            )
        tensors = checkpoint.read_tensors(folder)
        model = fill_exactly(auto.from_config, config, tensors, folder, dtype=dtype)
    width, states = model.get_input_embeddings().weight.shape[1], model.config.hidden_size
    if width != states:
        raise ModelError(
            f"{folder}: its word embeddings are {width} wide but its states {states}, for which "
            "transformers' BLIP-2 has no place: take a language model of another size"
        )
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    _make_room(model, len(tokenizer))
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if model.config.model_type == "opt" and len(line_break) == 1:
        for settings in (model.config, model.generation_config):
            settings.eos_token_id = line_break[0]
    return model, tokenizer


def _kind(config: Any) -> tuple[Any, Any]:
    """The kinds of models that are a language model of this form, and what loads them."""
    if config.is_encoder_decoder:
        return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM


@torch.no_grad()
def _make_room(model: Any, tokens: int) -> None:
    """Give the embeddings a row for each token; a new one is the mean of the others."""
    before = model.get_input_embeddings().weight.shape[0]
    if tokens <= before:
        return
    model.config.tie_word_embeddings = has_tied_head(model)  # else a T5's head would be tied anew
    model.resize_token_embeddings(tokens, mean_resizing=False)
    for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
        matrix.weight[before:] = matrix.weight[:before].mean(0)
