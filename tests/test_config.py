from __future__ import annotations

import pytest

from capfilt.config import PRESETS, RunConfig, resolve
from capfilt.errors import ConfigError
from capfilt.schema import build, keys, to_dict

MODELS = {"captioner": "a", "filter": "b"}


def test_resolve_later_sources_win() -> None:
    config = resolve(
        yaml_text="preset: blip2\nseed: 1\ncaptions: {top_p: 0.8, max_length: 30}",
        options={**MODELS, "output.format": "parquet"},
        overrides=["captions.top_p=0.95"],
    )
    assert config.captions.per_image == 10  # preset
    assert config.captions.max_length == 30  # YAML
    assert config.output.format == "parquet"  # option
    assert config.captions.top_p == 0.95  # --set over YAML
    assert config.seed == 1


def test_resolve_preset_option_beats_yaml() -> None:
    config = resolve(preset="blip", yaml_text="preset: blip2", options=MODELS)
    assert config == resolve(options=MODELS)


def test_resolve_preset_may_be_set_as_an_override() -> None:
    config = resolve(options=MODELS, overrides=["preset=blip2", "captions.per_image=3"])
    assert config.selection.top_k == 2
    assert config.captions.per_image == 3


def test_resolve_blip2_ranks_by_similarity() -> None:
    config = resolve(preset="blip2", options=MODELS)
    assert config.selection.min_match_prob is None
    assert config.selection.top_k == 2
    assert config.scoring.similarity
    assert not config.scoring.match_prob


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("captions.topp=1", "unknown config key 'captions.topp'; did you mean 'captions.top_p'?"),
        ("top_p=0.5", "did you mean 'captions.top_p'?"),
        ("captoins.top_p=1", "did you mean 'captions'?"),
        ("captions.top_p=1.5", "captions.top_p must be in (0, 1], is 1.5"),
        ("captions.top_p=high", "captions.top_p: must be of type float, is 'high'"),
        ("captions.per_image=true", "captions.per_image: must be of type int, is True"),
        ("captions.temperature=.inf", "captions.temperature: must be a finite number"),
        ("preset=blip3", "preset: 'blip3' is none of blip, blip2"),
        ("captions=3", "captions: must be a section"),
        ("captions.method=magic", "captions.method: 'magic' is none of nucleus, beam, greedy"),
        ("captions.min_length=21", "captions.min_length must be between 0 and max_length (20)"),
        ("selection.min_match_prob=1.2", "selection.min_match_prob is a probability in [0, 1]"),
        ("selection.top_k=2", "needs scoring.similarity"),
        ("scoring.match_prob=false", "scoring.match_prob and scoring.similarity are both off"),
        ("captions.top_p", "write it as key=value"),
        ("filter=none,captioner=[", "not valid YAML"),
    ],
)
def test_resolve_bad_override_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(options=MODELS, overrides=override.split(",") if "[" in override else [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_resolve_modules_missing_or_both_off() -> None:
    with pytest.raises(ConfigError, match="filter is not set"):
        resolve(options={"captioner": "a"})
    with pytest.raises(ConfigError, match="both none"):
        resolve(options={"captioner": "none", "filter": "none"})


def test_resolve_filter_none_switches_scores_and_rules_off() -> None:
    for spelled in ("none", "null", "~"):
        config = resolve(yaml_text=f"captioner: a\nfilter: {spelled}")
        assert config.filter == "none"
        assert not config.scoring.match_prob
        assert config.selection.min_match_prob is None


def test_resolve_greedy_gives_one_caption() -> None:
    with pytest.raises(ConfigError, match="greedy decoding gives only 1"):
        resolve(options=MODELS, overrides=["captions.method=greedy", "captions.per_image=2"])


@pytest.mark.parametrize(("method", "penalty"), [("nucleus", 1.1), ("beam", 1.0), ("greedy", 1.0)])
def test_repetition_penalty_follows_the_method_unless_given(method: str, penalty: float) -> None:
    by_method = resolve(options=MODELS, overrides=[f"captions.method={method}"])
    assert by_method.captions.repetition_penalty == penalty
    given = resolve(
        options=MODELS,
        overrides=[f"captions.method={method}", "captions.repetition_penalty=1.3"],
    )
    assert given.captions.repetition_penalty == 1.3


def test_to_dict_resolves_to_itself() -> None:
    for preset in PRESETS:
        config = resolve(preset=preset, options=MODELS)
        assert build(RunConfig, to_dict(config)) == config


def test_keys_names_every_leaf() -> None:
    assert {"seed", "captions.top_p", "selection.min_match_prob"} <= set(keys(RunConfig))
