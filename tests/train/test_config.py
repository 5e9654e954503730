from __future__ import annotations

import pytest

from capfilt import catalog
from capfilt.errors import ConfigError
from capfilt.schema import parse_yaml, to_dict, to_yaml
from capfilt.train.config import decisive_differences
from capfilt.train.stage import Stage

STAGES = (
    "blip2_finetune_captioner",
    "blip2_stage1",
    "blip2_stage2",
    "blip_finetune_captioner",
    "blip_finetune_filter",
    "blip_pretrain",
)


def test_stages_are_listed_with_a_line_each() -> None:
    found = catalog.trainings()
    assert tuple(found) == (*STAGES, "bootstrap")
    assert all(found.values())


@pytest.mark.parametrize("name", STAGES)
def test_stage_config_is_the_same_from_its_own_yaml(name: str) -> None:
    stage = Stage.load(name)
    text = to_yaml(stage.config)
    assert stage.resolve(yaml_text=text) == stage.config
    assert parse_yaml(text, "shown") == to_dict(stage.config)


def test_stage_unknown_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown stage 'blip_pretran'; did you mean 'blip_pretr"):
        Stage.load("blip_pretran")
    with pytest.raises(ConfigError, match="there are blip2_finetune_captioner, "):
        Stage.load("xyz")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.batchsize=8", "'loop.batchsize'; did you mean 'loop.batch_size'?"),
        ("lr=1", "did you mean 'optimiser.lr'?"),
        ("data.datasets=[{pth: web}]", "did you mean 'data.datasets[].path'?"),
        ("loop.batch_size=0", "loop.batch_size must be at least 1, is 0"),
        ("loop.accumulate=7", "loop.batch_size is 2880, no multiple of accumulate (7)"),
        ("optimiser.betas=[0.9]", "optimiser.betas: must be a list of 2"),
        ("optimiser.betas=[0.9, 1.0]", "optimiser.betas must be in [0, 1)"),
        ("optimiser.lr=0", "optimiser.lr must be above 0"),
        ("schedule.decay=linear", "schedule.decay: 'linear' is none of factor, cosine"),
        ("data.image_size=384", "data.image_size is 384 but model.image.image_size is 224"),
        ("model.itc.temperature=0", "itc.temperature is 0, but no checkpoint here has learned one"),
        ("loop.epochs", "write it as key=value"),
    ],
)
def test_stage_bad_override_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Stage.load("blip_pretrain").resolve(overrides=[override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stage_defaults_are_the_papers() -> None:
    pretrain = Stage.load("blip_pretrain").config
    assert (pretrain.loop.batch_size, pretrain.loop.epochs) == (2880, 20)
    assert (pretrain.optimiser.lr, pretrain.optimiser.weight_decay) == (3e-4, 0.05)
    assert pretrain.schedule.warmup_steps == 3000
    assert pretrain.data.image_size == 224
    for name, epochs in (("blip_finetune_captioner", 5), ("blip_finetune_filter", 6)):
        finetune = Stage.load(name).config
        assert (finetune.loop.batch_size, finetune.loop.epochs) == (256, epochs)
        assert (finetune.optimiser.lr, finetune.schedule.decay) == (1e-5, "cosine")
        assert finetune.data.image_size == 384


def test_decisive_differences_leave_out_what_only_watches() -> None:
    stage = Stage.load("blip_pretrain")
    old = to_dict(stage.config)
    watched = stage.resolve(overrides=["loop.keep=5", "data.workers=3", "loop.log_every=1"])
    assert decisive_differences(old, watched) == []
    other = stage.resolve(overrides=["optimiser.lr=1e-4", "seed=1"])
    assert decisive_differences(old, other) == ["optimiser.lr: 0.0003 -> 0.0001", "seed: 0 -> 1"]


def test_record_from_before_decay_was_a_choice_is_of_a_training_in_which_all_decays() -> None:
    def changes(name: str) -> list[str]:
        config = Stage.load(name).config
        old = to_dict(config)
        del old["optimiser"]["decay_all"]
        return decisive_differences(old, config)

    assert changes("blip_pretrain") == []
    assert changes("blip2_stage1") == ["optimiser.decay_all: True -> False"]
