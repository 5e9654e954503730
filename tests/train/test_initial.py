"""Starts, against transformers' own models of the same folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DeiTConfig,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from capfilt.errors import ConfigError, ModelError
from capfilt.models.attention import Grid
from capfilt.models.vit import resize_positions
from capfilt.train.blip import (
    BlipConfig,
    BlipPretrain,
    CaptionerConfig,
    CaptionerFinetune,
    FilterConfig,
    FilterFinetune,
)
from capfilt.train.initial import load_image_weights, load_text_weights
from capfilt.train.stage import Stage
from capfilt.train.towers import DropConfig
from tests.models.conftest import make_images, normalised
from tests.train.small import CONFIG, TOKENS, make_batch, make_model, spread, vocabulary

IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "vocab_size": TOKENS.size - 2,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
CPU = torch.device("cpu")


def saved(model: Any, folder: Path) -> Path:
    spread(model, 7)
    model.save_pretrained(folder)
    return folder


def vit_model(folder: Path, **changes: int) -> tuple[Path, ViTModel]:
    model = ViTModel(ViTConfig(**{**IMAGE, **changes}), add_pooling_layer=False).eval()
    return saved(model, folder), model


def rename(folder: Path, new: Callable[[str], str], extra: dict[str, Tensor] | None = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({new(n): x for n, x in tensors.items()} | (extra or {}), folder / "model.safetensors")


def as_timm(folder: Path) -> None:
    """Rename and fuse a ViTModel's tensors as timm has them."""
    old, new = load_file(folder / "model.safetensors"), {}
    for name, tensor in old.items():
        name = re.sub(r"^encoder\.layer\.", "blocks.", name)
        for pattern, replacement in (
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"layernorm_before", "norm1"),
            (r"layernorm_after", "norm2"),
            (r"^layernorm", "norm"),
            (r"attention\.output\.dense", "attn.proj"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"(?<!attention\.)output\.dense", "mlp.fc2"),
        ):
            name = re.sub(pattern, replacement, name)
        new[name] = tensor
    for name in [n for n in new if ".attention.attention.query." in n]:
        parts = [new.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        new[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    new["head.weight"], new["head.bias"] = torch.zeros(10, 32), torch.zeros(10)
    save_file(new, folder / "model.safetensors")


def image_states(folder: Path, image_size: int = 32) -> Tensor:
    image = replace(CONFIG.image, image_size=image_size)
    model = BlipPretrain(replace(CONFIG, image=image), TOKENS, seed=0).eval()
    load_image_weights(model.captioner.vit, str(folder))
    with torch.inference_mode():
        return model.captioner.vit(make_images(2, side=image_size))  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", ["vit", "classifier", "timm"])
def test_vit_of_an_image_checkpoint_gives_its_states(layout: str, tmp_path: Path) -> None:
    folder, model = vit_model(tmp_path)
    if layout == "classifier":
        full = ViTForImageClassification(ViTConfig(**IMAGE)).eval()
        folder, model = saved(full, tmp_path), full.vit
    if layout == "timm":
        as_timm(folder)
    with torch.inference_mode():
        expected = model(normalised(make_images(2))).last_hidden_state
    torch.testing.assert_close(image_states(folder), expected, atol=1e-4, rtol=0)


def test_positions_of_an_image_checkpoint_are_interpolated(tmp_path: Path) -> None:
    folder, model = vit_model(tmp_path)
    positions = model.embeddings.position_embeddings
    with torch.inference_mode():
        expected = model(
            normalised(make_images(2, side=48)), interpolate_pos_encoding=True
        ).last_hidden_state
    torch.testing.assert_close(image_states(folder, 48), expected, atol=1e-4, rtol=0)
    assert resize_positions(positions, 6).shape == (1, 37, 32)


def test_distillation_token_is_left_out(tmp_path: Path) -> None:
    model = DeiTModel(DeiTConfig(**IMAGE), add_pooling_layer=False).eval()
    folder = saved(model, tmp_path)
    _, reference = vit_model(tmp_path / "plain")
    state = {n: x for n, x in model.state_dict().items() if "distillation" not in n}
    positions = state["embeddings.position_embeddings"]
    state["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], 1)
    reference.load_state_dict(state)
    with torch.inference_mode():
        expected = reference(normalised(make_images(2))).last_hidden_state
    torch.testing.assert_close(image_states(folder), expected, atol=1e-4, rtol=0)


def bert(folder: Path, kind: type[Any] = BertModel) -> tuple[Path, Any]:
    options = {"add_pooling_layer": False} if kind is BertModel else {}
    model = kind(BertConfig(**TEXT), **options).eval()
    return saved(model, folder), model


@pytest.mark.parametrize("layout", ["model", "masked", "gamma"])
def test_text_of_a_bert_gives_its_states(layout: str, tmp_path: Path) -> None:
    folder, model = bert(tmp_path, BertForMaskedLM if layout == "masked" else BertModel)
    if layout == "gamma":  # as in the first published checkpoints
        rename(
            folder,
            lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ),
        )
    ids = torch.randint(0, TOKENS.size - 2, (2, 7), generator=torch.Generator().manual_seed(0))
    ours = BlipPretrain(CONFIG, TOKENS, seed=0).eval()
    words = ours.matcher.model.text.words.weight
    new = words[-2:].clone()
    load_text_weights([ours.matcher.model, ours.captioner], str(folder))
    text = ours.matcher.model.text
    with torch.inference_mode():
        inner = model.bert if layout == "masked" else model
        expected = inner(ids).last_hidden_state.flatten(0, 1)
        own = text.packed(Grid.of([7, 7], CPU))
        states = text(ids.flatten(), torch.arange(7).repeat(2), own)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=0)
    assert torch.equal(words[-2:], new)
    decoders = ours.captioner.text.layers[0].attention
    assert torch.equal(decoders.qkv.weight, text.layers[0].attention.qkv.weight)
    assert decoders is not text.layers[0].attention
    if layout == "masked":
        head = model.cls.predictions.transform.dense.weight
        assert torch.equal(ours.captioner.head.dense.weight, head)


def test_pretraining_starts_from_both_folders_and_its_momentum_encoder_too(tmp_path: Path) -> None:
    image, _ = vit_model(tmp_path / "vit")
    text, _ = bert(tmp_path / "bert")
    config = replace(
        CONFIG,
        image=replace(CONFIG.image, weights=str(image)),
        text=replace(CONFIG.text, weights=str(text)),
    )
    model = BlipPretrain.load(config, vocabulary=vocabulary(tmp_path / "names"), seed=0)
    tensors = load_file(image / "model.safetensors")
    theirs = dict(model.matcher.model.named_parameters())
    assert torch.equal(theirs["vit.class_token"], tensors["embeddings.cls_token"])
    for name, parameter in model.matcher.momentum.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = make_model()
    folder, _ = vit_model(tmp_path / "wide", hidden_size=64)
    with pytest.raises(ModelError, match=r"wide: tensor for class_token has shape \[1, 1, 64\]"):
        load_image_weights(model.captioner.vit, str(folder))
    folder, _ = vit_model(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"encoder.layer.2\..* not of this model"):
        load_image_weights(model.captioner.vit, str(folder))
    folder, _ = vit_model(tmp_path / "flat", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"tensor encoder.layer.1\..* missing"):
        load_image_weights(model.captioner.vit, str(folder))
    folder, _ = bert(tmp_path / "bert")
    rename(folder, lambda name: name.replace("layer.1", "layer.9"))
    with pytest.raises(ModelError, match=r"bert.encoder.layer.1\..* missing"):
        load_text_weights([model.captioner], str(folder))


def test_bert_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = saved(BertModel(BertConfig(**{**TEXT, "vocab_size": 50})), tmp_path)
    with pytest.raises(ModelError, match="has 50 tokens, but the vocabulary has"):
        load_text_weights([make_model().captioner], str(folder))


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    model = make_model()
    model.export_captioner(tmp_path / "captioner", vocabulary(tmp_path / "names"))
    model.export_filter(tmp_path / "filter", tmp_path / "names")
    return tmp_path


def test_finetuning_goes_on_from_pretraining_at_another_resolution(pretrained: Path) -> None:
    source = make_model().matcher.model
    captioner = CaptionerFinetune.load(
        CaptionerConfig(str(pretrained / "captioner"), image_size=48, drop=DropConfig(0.2, 0.1)),
        vocabulary=pretrained / "captioner",
        seed=0,
    )
    filter_ = FilterFinetune.load(
        FilterConfig(str(pretrained / "filter"), image_size=48),
        vocabulary=pretrained / "filter",
        seed=0,
    )
    for module in (captioner.captioner, filter_.matcher.model):
        expected = resize_positions(source.vit.positions, 6)
        assert torch.equal(module.vit.positions, expected)
        assert torch.equal(module.vit.blocks[1].qkv.weight, source.vit.blocks[1].qkv.weight)
        assert all(parameter.requires_grad for parameter in module.parameters())
    assert captioner.captioner.config.text.dropout == 0.2
    assert captioner.captioner.vit.blocks[1].drop_path == 0.1
    batch = replace(make_batch(4), images=make_images(4, side=48))
    assert captioner(batch, 0)["lm"].isfinite()
    small = FilterConfig(itc=replace(CONFIG.itc, queue=8)).itc
    filter_.matcher.itc.config = small
    with pytest.raises(ConfigError, match="no multiple of the 7 images"):
        filter_.check_batch(7, 1)


def test_training_from_half_precision_is_of_fp32(pretrained: Path) -> None:
    halves = {}
    for role in ("captioner", "filter"):
        path = pretrained / role / "model.safetensors"
        halves[role] = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halves[role], path, metadata={"format": "pt"})
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    captioner = CaptionerFinetune.load(
        CaptionerConfig(str(pretrained / "captioner"), image_size=32),
        vocabulary=pretrained / "captioner",
        seed=0,
    )
    assert torch.equal(captioner.captioner.text.words.weight, halves["captioner"][words].float())
    filter_ = FilterFinetune.load(
        FilterConfig(str(pretrained / "filter"), image_size=32),
        vocabulary=pretrained / "filter",
        seed=0,
    )
    again = BlipPretrain.load(
        replace(CONFIG, start=str(pretrained)), vocabulary=pretrained / "filter", seed=0
    )
    for model in (captioner, filter_, again):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_finetuning_goes_on_with_the_temperature_that_was_learned(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.matcher.itc.temperature.fill_(0.0123)
    model.export_filter(tmp_path / "filter", vocabulary(tmp_path / "names"))

    def start(config: FilterConfig) -> FilterFinetune:
        return FilterFinetune.load(
            replace(config, start=str(tmp_path / "filter"), image_size=32),
            vocabulary=tmp_path / "names",
            seed=0,
        )

    config = Stage.load("blip_finetune_filter").config.model
    assert start(config).matcher.itc.temperature.item() == pytest.approx(0.0123)
    chosen = replace(config, itc=replace(config.itc, temperature=0.3))
    assert start(chosen).matcher.itc.temperature.item() == pytest.approx(0.3)
    settings = json.loads((tmp_path / "filter/config.json").read_text())
    del settings["logit_scale_init_value"]  # as of another maker
    (tmp_path / "filter/config.json").write_text(json.dumps(settings))
    assert start(config).matcher.itc.temperature.item() == pytest.approx(0.07, rel=1e-4)


def test_pretraining_goes_on_with_the_weights_of_another(pretrained: Path) -> None:
    source = make_model()
    config = replace(CONFIG, start=str(pretrained), itc=replace(CONFIG.itc, temperature=0.0))
    made = BlipPretrain.load(config, vocabulary=pretrained / "names", seed=1)
    states = source.state_dict()
    for name, tensor in made.state_dict().items():
        if not name.startswith("matcher.itc."):  # its queue begins anew
            assert torch.equal(tensor, states[name]), name
    assert made.matcher.itc.temperature.item() == pytest.approx(0.07, rel=1e-4)
    larger = replace(config, image=replace(CONFIG.image, image_size=48))
    made = BlipPretrain.load(larger, vocabulary=pretrained / "names", seed=1)
    expected = resize_positions(source.matcher.model.vit.positions, 6)
    assert torch.equal(made.captioner.vit.positions, expected)


def test_pretraining_from_what_is_shared_or_sized_otherwise_is_refused(pretrained: Path) -> None:
    def load(**changes: Any) -> BlipPretrain:
        config = replace(CONFIG, start=str(pretrained), **changes)
        return BlipPretrain.load(config, vocabulary=pretrained / "names", seed=0)

    with pytest.raises(ModelError, match=r"do not share what model\.sharing says"):
        load(sharing="all")
    with pytest.raises(ModelError, match=r"sizes are not those of model\.image"):
        load(embedding=20)
    with pytest.raises(ValueError, match="start has all weights"):
        load(text=replace(CONFIG.text, weights="bert"))


def test_start_of_another_kind_or_resolution_is_refused(pretrained: Path) -> None:
    def load(start: str, size: int = 48) -> nn.Module:
        config = FilterConfig(start=start, image_size=size)
        return FilterFinetune.load(config, vocabulary=pretrained / "names", seed=0)

    with pytest.raises(ModelError, match="is a BlipForConditionalGeneration, a captioner"):
        load(str(pretrained / "captioner"))
    with pytest.raises(ConfigError, match="multiple of the patch size 8, is 50"):
        load(str(pretrained / "filter"), 50)
    with pytest.raises(ModelError, match="no such folder"):
        load(str(pretrained / "nothing"))


def test_config_of_impossible_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of heads"):
        replace(BlipConfig().image, width=100)
    with pytest.raises(ValueError, match="image_size must be a multiple"):
        replace(BlipConfig().image, image_size=100)
