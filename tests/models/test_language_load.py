"""Language models from folders of their own, as BLIP-2 needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

from capfilt.errors import ModelError
from capfilt.models.language_load import load_language
from tests.blip2_checkpoints import Kind, give_own_head, language_tokenizer, randomise


def save(folder: Path, model: Any, kind: Kind) -> Path:
    randomise(model, 0)
    model.save_pretrained(folder)
    language_tokenizer(kind).save_pretrained(folder)
    return folder


def make_t5(folder: Path, *, own_head: bool) -> T5ForConditionalGeneration:
    """One whose embeddings have a row for each token, and none for `<image>`."""
    sizes = {"d_model": 40, "d_kv": 10, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    rows = len(language_tokenizer("t5"))
    model = T5ForConditionalGeneration(
        T5Config(**sizes, vocab_size=rows, decoder_start_token_id=0, eos_token_id=3)
    )
    if own_head:
        give_own_head(model)
    save(folder, model, "t5")
    return model


@pytest.mark.parametrize("own_head", [False, True])
def test_head_stays_tied_or_its_own_where_a_row_is_added(own_head: bool, tmp_path: Path) -> None:
    """FlanT5's is its own, and transformers' config of every T5 says that it is tied."""
    before = make_t5(tmp_path, own_head=own_head)
    model, tokenizer = load_language(tmp_path, torch.float32)
    rows = len(before.shared.weight)
    assert len(tokenizer) == len(model.shared.weight) == len(model.lm_head.weight) == rows + 1
    assert torch.equal(model.shared.weight[:rows], before.shared.weight)
    assert torch.equal(model.lm_head.weight[:rows], before.lm_head.weight)
    assert torch.equal(model.shared.weight, model.lm_head.weight) != own_head
    assert model.config.scale_decoder_outputs == before.config.scale_decoder_outputs


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    """OPT-350m's are: its decoder projects them."""
    sizes = {"hidden_size": 40, "word_embed_proj_dim": 20, "ffn_dim": 64, "num_hidden_layers": 1}
    config = OPTConfig(**sizes, vocab_size=99, num_attention_heads=4, pad_token_id=0)
    save(tmp_path, OPTForCausalLM(config), "opt")
    with pytest.raises(ModelError, match="word embeddings are 20 wide but its states 40, for wh"):
        load_language(tmp_path, torch.float32)
