"""What a run does: one frozen dataclass per part, YAML in, one resolved config out.

Where things lie (input, output, cluster) are the command's options and not part of this. Values
come in this order, later ones winning: defaults, preset, YAML file, command options, `--set a.b=c`.
Everything is checked before a model is loaded; an error names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from capfilt.errors import ConfigError

ConfigT = TypeVar("ConfigT")

NONE = "none"  # `captioner: none` and `filter: none` switch a module off (the paper's ablations)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class CaptionConfig:
    """How the captioner decodes.

    Lengths count every token of the decoder, `[DEC]` and the prompt included, as BLIP's published
    code and transformers do. `top_k` is off as in the paper; the published code inherits 50 from
    transformers without saying so.

    Source: BLIP, arXiv:2201.12086, sections 3.3 and 4.2, and its code (`models/blip.py`).
    """

    per_image: int = 1
    method: Literal["nucleus", "beam", "greedy"] = "nucleus"
    prompt: str = "a picture of "
    top_p: float = 0.9
    top_k: int = 0  # 0 is off
    temperature: float = 1.0
    repetition_penalty: float | None = None  # None: 1.1 for nucleus, else 1.0, as in BLIP's code
    num_beams: int = 3
    min_length: int = 5
    max_length: int = 20

    def __post_init__(self) -> None:
        if self.repetition_penalty is None:
            penalty = 1.1 if self.method == "nucleus" else 1.0
            object.__setattr__(self, "repetition_penalty", penalty)
        assert self.repetition_penalty is not None
        _check(self.per_image >= 1, f"per_image must be at least 1, is {self.per_image}")
        _check(0 < self.top_p <= 1, f"top_p must be in (0, 1], is {self.top_p}")
        _check(self.top_k >= 0, f"top_k must be 0 (off) or more, is {self.top_k}")
        _check(self.temperature > 0, f"temperature must be above 0, is {self.temperature}")
        _check(
            self.repetition_penalty > 0,
            f"repetition_penalty must be above 0, is {self.repetition_penalty}",
        )
        _check(self.num_beams >= 1, f"num_beams must be at least 1, is {self.num_beams}")
        _check(
            0 <= self.min_length <= self.max_length,
            f"min_length must be between 0 and max_length ({self.max_length}), "
            f"is {self.min_length}",
        )
        distinct = {"nucleus": self.per_image, "beam": self.num_beams, "greedy": 1}[self.method]
        _check(
            self.per_image <= distinct,
            f"per_image is {self.per_image}, but {self.method} decoding gives only {distinct}",
        )


@dataclass(frozen=True)
class ScoringConfig:
    """Which scores the filter gives, and what of a text it sees.

    Source: BLIP's code: retrieval evaluation puts `[ENC]` first, reads 35 tokens and 30 words.
    """

    match_prob: bool = True
    similarity: bool = False
    itm_token: Literal["enc", "cls"] = "enc"
    max_tokens: int = 35
    max_words: int = 30

    def __post_init__(self) -> None:
        _check(3 <= self.max_tokens <= 512, f"max_tokens must be in [3, 512], is {self.max_tokens}")
        _check(self.max_words >= 1, f"max_words must be at least 1, is {self.max_words}")


@dataclass(frozen=True)
class SelectionConfig:
    """Which texts are kept. Rules that are not None hold together.

    Source: BLIP section 3.3 (unmatched texts are dropped; the authors use 0.5) and BLIP-2,
    arXiv:2301.12597, section 3.4 (the two most similar of web and synthetic).
    """

    min_match_prob: float | None = 0.5
    top_k: int | None = None  # most similar texts of an image, web and synthetic together

    def __post_init__(self) -> None:
        if self.min_match_prob is not None:
            _check(
                0 <= self.min_match_prob <= 1,
                f"min_match_prob is a probability in [0, 1], is {self.min_match_prob}",
            )
        if self.top_k is not None:
            _check(self.top_k >= 1, f"top_k must be at least 1, is {self.top_k}")


@dataclass(frozen=True)
class ImageConfig:
    """Which images are worth decoding; others fail with a reason."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 2**27  # 134 megapixels, 400 MB as RGB
    min_side: int = 16  # shorter side in pixels; tracking pixels and spacers are below

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "min_side"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1")


@dataclass(frozen=True)
class OutputConfig:
    """What a data shard looks like."""

    format: Literal["webdataset", "parquet"] = "webdataset"
    images: bool = True  # False: texts and scores only


@dataclass(frozen=True)
class ComputeConfig:
    """How the hardware is used.

    Of these only `precision` is part of the fingerprint. The batch size changes the last digits of
    a score (about 1e-6 in fp32), as hardware and library versions do, but no caption.
    """

    batch_size: int = 0  # images; 0: 64 on CUDA, 8 on a CPU core
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on CUDA, fp32 on CPU
    decode_threads: int = 0  # image decoding threads per worker; 0: from the cores at hand
    max_attempts: int = 3  # per shard, before it is recorded as failed

    def __post_init__(self) -> None:
        _check(self.batch_size >= 0, "batch_size must be 0 (automatic) or more")
        _check(self.decode_threads >= 0, "decode_threads must be 0 (automatic) or more")
        _check(self.max_attempts >= 1, f"max_attempts must be at least 1, is {self.max_attempts}")


@dataclass(frozen=True)
class RunConfig:
    """The resolved config of `capfilt run`."""

    captioner: str = ""  # checkpoint folder or hub id, or "none"
    filter: str = ""
    seed: int = 0
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        for role in ("captioner", "filter"):
            _check(
                bool(getattr(self, role)),
                f"{role} is not set: give a checkpoint folder or hub id, or `none`",
            )
        _check(
            not (self.captioner == NONE and self.filter == NONE),
            "captioner and filter are both none: nothing to do",
        )
        if self.filter == NONE:  # nothing is scored, so no rule applies; the record says so
            off = dataclasses.replace(self.scoring, match_prob=False, similarity=False)
            object.__setattr__(self, "scoring", off)
            object.__setattr__(self, "selection", SelectionConfig(min_match_prob=None))
            return
        _check(
            self.scoring.match_prob or self.scoring.similarity,
            "scoring.match_prob and scoring.similarity are both off: "
            "use `filter: none` to keep every text",
        )
        _check(
            self.selection.min_match_prob is None or self.scoring.match_prob,
            "selection.min_match_prob needs scoring.match_prob",
        )
        _check(
            self.selection.top_k is None or self.scoring.similarity,
            "selection.top_k ranks by similarity and needs scoring.similarity",
        )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "blip": {},  # the defaults are BLIP's
    "blip2": {
        "captions": {"per_image": 10},
        "scoring": {"match_prob": False, "similarity": True},
        "selection": {"min_match_prob": None, "top_k": 2},
    },
}


def resolve(
    *,
    yaml_text: str = "",
    yaml_name: str = "config",
    preset: str | None = None,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Make the one config of a run from all its sources.

    Args:
        yaml_text: A YAML mapping of `RunConfig`'s keys, plus an optional `preset`.
        yaml_name: What to call it in errors.
        preset: A name in `PRESETS`; None takes the YAML's, else "blip".
        options: Values of command options by dotted key; None values are left out.
        overrides: `a.b=c` strings, values read as YAML.

    Raises:
        ConfigError: An unknown key or preset, a value of the wrong type or out of range.
    """
    from_file = _parse_yaml(yaml_text, yaml_name)
    from_overrides = _parse_overrides(overrides)
    in_file = from_file.pop("preset", None)
    name = from_overrides.pop("preset", None) or preset or in_file or "blip"
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset: {name!r} is none of {', '.join(PRESETS)}")
    tree: dict[str, Any] = {}
    _merge(tree, PRESETS[name])
    _merge(tree, from_file)
    for key, value in (options or {}).items():
        if value is not None:
            _merge(tree, _nest(key, value))
    _merge(tree, from_overrides)
    return build(RunConfig, tree)


def build(cls: type[ConfigT], tree: Mapping[str, Any], prefix: str = "") -> ConfigT:
    """Make a config dataclass from nested mappings, checking every key and type.

    Raises:
        ConfigError: Names the key, and the nearest valid one for an unknown key.
    """
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(_unknown(f"{prefix}{key}"))
        values[key] = _convert(hints[key], value, f"{prefix}{key}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested dicts, in field order."""
    return dataclasses.asdict(config)


def keys(cls: type[Any] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a config, sections included."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        found.append(f"{prefix}{name}")
        if dataclasses.is_dataclass(hint):
            found.extend(keys(typing.cast(type[Any], hint), f"{prefix}{name}."))
    return found


def _unknown(key: str) -> str:
    valid = keys()
    # A key in the wrong section has the right last word: `top_p` means `captions.top_p`.
    same_word = [k for k in valid if k.split(".")[-1] == key.split(".")[-1]]
    near = same_word or difflib.get_close_matches(key, [*valid, "preset"], n=1, cutoff=0.5)
    return f"unknown config key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: must be a section with keys, is {value!r}")
        return build(typing.cast(type[Any], hint), value, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, key)
    if hint is str and value is None:
        value = NONE  # YAML's own `null` for a module means the same as `none`
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: must be a finite number, is {value}")
    if type(value) is not hint:
        raise ConfigError(f"{key}: must be of type {hint.__name__}, is {value!r}")
    return value


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    tree = _yaml(text, name)
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{name}: must be a mapping of config keys")
    return tree


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write it as key=value, e.g. captions.top_p=0.95")
        _merge(tree, _nest(key.strip(), _yaml(value, f"--set {override}")))
    return tree


def _yaml(text: str, name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None


def _nest(key: str, value: Any) -> dict[str, Any]:
    *sections, last = key.split(".")
    tree: dict[str, Any] = {last: value}
    for section in reversed(sections):
        tree = {section: tree}
    return tree


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            section = into.setdefault(key, {})
            if not isinstance(section, dict):
                section = into[key] = {}
            _merge(section, value)
        else:
            into[key] = value
