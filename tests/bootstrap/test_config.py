from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.bootstrap.experiment import Experiment
from capfilt.catalog import path
from capfilt.errors import ConfigError
from tests.bootstrap.conftest import resolve


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.loop.step=3", "did you mean 'pretrain.loop.steps'"),
        ("arms=[raw, all]", "arms[1]: 'all' is none of raw, filter"),
        ("arms=[raw, raw]", "arms: has one twice"),
        ("arms=[raw]", "arms: lacks `both`, whose model begins the second round"),
        ("seeds=[]", "seeds: is empty"),
        ("rounds=0", "rounds must be at least 1"),
        ("world.human=1", "world.human must be at least 2"),
        ("pretrain.loop.steps=0", "pretrain.loop.steps: is not set"),
        ("pretrain.seed=1", "pretrain.seed: is one of `seeds`"),
        ("filter.model.start=x", "filter.model.start: is decided by the loop"),
        ("captioner.data.datasets=[{path: x}]", "captioner.data.datasets: are the arms'"),
        ("run.selection.min_match_prob=null", "run.selection.min_match_prob: the arms"),
        ("filter.model.itc.queue=9", "filter.model.itc.queue must be a multiple of the images"),
        (
            "captioner={data: {image_size: 40}, model: {image_size: 40}}",
            "multiple of pretrain.model",
        ),
        ("evaluate.k_test=-1", "evaluate.k_test must be 0"),
    ],
)
def test_bad_value_is_named_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(override)
    assert message in str(error.value)


def test_bundled_yaml_is_valid_and_small_enough_for_its_captions() -> None:
    text = path("pipelines/bootstrap.yaml").read_text()
    config = Experiment.load().resolve(yaml_text=text)
    assert config.seeds == (0, 1, 2)
    sides = {config.world.side, config.pretrain.model.image.image_size,
             config.captioner.model.image_size, config.filter.model.image_size}  # fmt: skip
    assert len(sides) == 1
    assert not config.pretrain.data.augment.enabled  # a flip would make left of right


def test_photographs_config_is_valid() -> None:
    file = Path(__file__).parents[2] / "benchmarks/photographs/bootstrap.yaml"
    config = Experiment.load().resolve(yaml_text=file.read_text())
    assert config.data.pairs == "dev_pairs.jsonl"
    assert config.world.web == 0
