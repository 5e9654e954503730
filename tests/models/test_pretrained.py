"""A CLIP and a language model of its own folder: each tensor, of its shape, or a refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from capfilt.config import ScoringConfig
from capfilt.errors import ModelError
from capfilt.models.language_load import load_language
from capfilt.models.load import load_filter
from tests.blip2_checkpoints import language_tokenizer, randomise

Tensors = dict[str, Tensor]
SIMILARITY = ScoringConfig(match_prob=False, similarity=True)
# Of each model one tensor that a training has made, and one that only a larger one has.
NAMES = {
    "clip": ("visual_projection.weight", "vision_model.encoder.layers.7.mlp.fc1.weight"),
    "opt": ("model.decoder.layers.0.fc1.weight", "model.decoder.layers.7.fc1.weight"),
}
LOAD: dict[str, Callable[[Path], Any]] = {
    "clip": lambda folder: load_filter(str(folder), SIMILARITY, device="cpu"),
    "opt": lambda folder: load_language(folder, torch.float32),
}


@pytest.fixture(scope="module")
def whole(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("opt")
    sizes = {"hidden_size": 40, "word_embed_proj_dim": 40, "ffn_dim": 64, "num_hidden_layers": 1}
    names = language_tokenizer("opt")
    model = OPTForCausalLM(OPTConfig(**sizes, vocab_size=len(names), num_attention_heads=4))
    randomise(model, 0)
    model.save_pretrained(folder)
    names.save_pretrained(folder)
    return {"clip": clip_folder, "opt": folder}


@pytest.fixture(params=["clip", "opt"])
def spoilt(
    request: pytest.FixtureRequest, whole: dict[str, Path], tmp_path: Path
) -> tuple[str, Path]:
    """Which model, and a copy of its folder."""
    return request.param, Path(shutil.copytree(whole[request.param], tmp_path / "model"))


def change(folder: Path, how: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    how(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(kind: str, folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        LOAD[kind](folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_tensor_is_named_and_not_drawn_at_random(spoilt: tuple[str, Path]) -> None:
    kind, folder = spoilt
    name, _ = NAMES[kind]
    LOAD[kind](folder)
    change(folder, lambda tensors: tensors.pop(name))
    refused(kind, folder, f"tensor {name} is missing")


def test_misshapen_tensor_is_named(spoilt: tuple[str, Path]) -> None:
    kind, folder = spoilt
    name, _ = NAMES[kind]
    change(folder, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    refused(kind, folder, rf"tensor {name} has shape \[3, 5\] but config.json makes it \[")


def test_surplus_tensor_is_named(spoilt: tuple[str, Path]) -> None:
    kind, folder = spoilt
    _, name = NAMES[kind]
    change(folder, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    refused(kind, folder, f"tensor {name} is not of this model")


def test_damaged_weights_are_named(spoilt: tuple[str, Path]) -> None:
    kind, folder = spoilt
    (folder / "model.safetensors").write_bytes(b"\xff" * 99)
    refused(kind, folder, r"model.safetensors: cannot be read .*download or copy it again")


def test_embeddings_that_are_tied_to_nothing_are_missing(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole["opt"], tmp_path / "model"))
    change(folder, lambda tensors: tensors.pop("model.decoder.embed_tokens.weight"))
    refused("opt", folder, "lm_head.weight and 1 more are missing")


def test_config_of_a_far_larger_model_is_refused_before_it_is_allocated(
    spoilt: tuple[str, Path],
) -> None:
    kind, folder = spoilt
    config = json.loads((folder / "config.json").read_text())
    (config["text_config"] if kind == "clip" else config)["vocab_size"] = 2**24
    (folder / "config.json").write_text(json.dumps(config))
    refused(kind, folder, r"makes a model of [\d,]+ numbers, but the weights have [\d,]+")
