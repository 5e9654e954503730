"""Config trees: nested mappings from YAML and `--set a.b=c`, checked into frozen dataclasses.

A section is a dataclass, a list of sections a `tuple[Section, ...]`. A dataclass checks its own
values with `check`, in messages that begin with the field's name; `build` puts the section's key
before it. Nothing here knows what a config is for.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from capfilt.errors import ConfigError

ConfigT = TypeVar("ConfigT")
Tree = dict[str, Any]

# `key: {FILL_IN: what}` in a file to be filled in: no key takes a mapping of this, nor does any
# field of Kubernetes, so that whatever reads the file refuses it and says what is asked for.
FILL_IN = "FILL_IN"


def check(condition: bool, message: str) -> None:
    """For `__post_init__`: a message that begins with the name of the field that is wrong.

    Raises:
        ValueError: The condition does not hold.
    """
    if not condition:
        raise ValueError(message)


def build(cls: type[ConfigT], tree: Mapping[str, Any], *, also: Sequence[str] = ()) -> ConfigT:
    """Make a config dataclass from nested mappings, checking every key and type.

    Args:
        cls: A dataclass whose sections are dataclasses.
        tree: Its values; what is left out has its default.
        also: Other valid keys, to be suggested for a misspelt one.

    Raises:
        ConfigError: Names the key, and the nearest valid one for an unknown key.
    """
    return _build(cls, tree, "", [*keys(cls), *also])


def to_dict(config: Any) -> Tree:
    """A config as plain nested dicts and lists, in field order."""
    return typing.cast(Tree, _plain(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """A config as YAML, in field order; lists of numbers on one line."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    def one_line(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
        flow = not any(isinstance(value, dict) for value in values)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)

    Dumper.add_representer(list, one_line)
    return yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def keys(cls: type[Any], prefix: str = "") -> list[str]:
    """Every dotted key of a config, sections included; in a list of sections, `list[].key`."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        found.append(f"{prefix}{name}")
        section, mark = (typing.get_args(hint)[0], "[]") if _is_list(hint) else (hint, "")
        if dataclasses.is_dataclass(section):
            found.extend(keys(typing.cast(type[Any], section), f"{prefix}{name}{mark}."))
    return found


def parse_yaml(text: str, name: str) -> Tree:
    """A YAML mapping; nothing gives an empty one.

    Raises:
        ConfigError: It is not YAML, or no mapping of names; `name` says which text.
    """
    tree = _yaml(text, name)
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{name}: must be a mapping of config keys")
    return tree


def parse_overrides(overrides: Sequence[str], *, example: str) -> Tree:
    """The tree of `a.b=c` strings, values read as YAML.

    Raises:
        ConfigError: One is not of that form; `example` shows it.
    """
    tree: Tree = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write it as key=value, e.g. {example}")
        merge(tree, nest(key.strip(), _yaml(value, f"--set {override}")))
    return tree


def nest(key: str, value: Any) -> Tree:
    """`nest("a.b", 1)` is `{"a": {"b": 1}}`."""
    *sections, last = key.split(".")
    tree: Tree = {last: value}
    for section in reversed(sections):
        tree = {section: tree}
    return tree


def merge(into: Tree, tree: Mapping[str, Any]) -> None:
    """Put a tree over another, section by section; a list is replaced as a whole."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            section = into.setdefault(key, {})
            if not isinstance(section, dict):
                section = into[key] = {}
            merge(section, value)
        else:
            into[key] = value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Which keys of two trees differ, as "captions.top_p: 0.9 -> 0.95"."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.extend(differences(before, after, f"{prefix}{key}."))
        elif before != after:
            found.append(f"{prefix}{key}: {_short(before)} -> {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    is_digest = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return f"sha256 {text[:12]}" if is_digest else text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _build(cls: type[ConfigT], tree: Mapping[str, Any], prefix: str, valid: list[str]) -> ConfigT:
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(_unknown(f"{prefix}{key}", valid))
        values[key] = _convert(hints[key], value, f"{prefix}{key}", valid)
    missing = [f.name for f in dataclasses.fields(cls) if _is_missing(f) and f.name not in values]  # type: ignore[arg-type]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]}: is not set")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _is_missing(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _unknown(key: str, valid: list[str]) -> str:
    wanted = re.sub(r"\[\d+\]", "[]", key)
    # A key in the wrong section has the right last word: `top_p` means `captions.top_p`.
    same_word = [k for k in valid if k.split(".")[-1] == wanted.split(".")[-1]]
    near = same_word or difflib.get_close_matches(wanted, valid, n=1, cutoff=0.5)
    return f"unknown config key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[-1] is Ellipsis


def _convert(hint: Any, value: Any, key: str, valid: list[str]) -> Any:
    if isinstance(value, Mapping) and set(value) == {FILL_IN}:
        raise ConfigError(f"{key}: is to be filled in: {value[FILL_IN]}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: must be a section with keys, is {value!r}")
        return _build(typing.cast(type[Any], hint), value, f"{key}.", valid)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _convert_tuple(hint, value, key, valid)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, key, valid)
    return _convert_scalar(hint, value, key)


def _convert_tuple(hint: Any, value: Any, key: str, valid: list[str]) -> tuple[Any, ...]:
    arguments = typing.get_args(hint)
    count = None if _is_list(hint) else len(arguments)
    if not isinstance(value, list | tuple) or count not in (None, len(value)):
        what = "a list" if count is None else f"a list of {count}"
        raise ConfigError(f"{key}: must be {what}, is {value!r}")
    hints = arguments[:1] * len(value) if count is None else arguments
    return tuple(
        _convert(part, each, f"{key}[{i}]", valid)
        for i, (part, each) in enumerate(zip(hints, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    if hint is float and isinstance(value, str):
        value = _exponent(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: must be a finite number, is {value}")
    if type(value) is not hint:
        raise ConfigError(f"{key}: must be of type {hint.__name__}, is {value!r}")
    return value


def _exponent(text: str) -> float | str:
    """YAML 1.1 takes `3e-4` for a word: it wants `3.0e-4`, which nobody writes."""
    return float(text) if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", text) else text


def _yaml(text: str, name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
