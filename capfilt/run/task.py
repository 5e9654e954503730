"""What every worker of a run is told once: the config, the models, and where outputs go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capfilt.config import NONE, RunConfig, to_dict
from capfilt.record import ModelIdentity

# Raised by a change of code that changes what a run writes, so that old commits count as stale.
RESULT_VERSION = 1


@dataclass(frozen=True)
class Task:
    """One run's work order. Plain data: it travels to workers by pickle."""

    config: RunConfig
    models: Mapping[
        str, ModelIdentity
    ]  # by role: "captioner", "filter"; a role that is off is absent
    output_url: str

    @property
    def decisive(self) -> dict[str, Any]:
        """Everything that decides a shard's result: the paths of models and their speed do not."""
        config = to_dict(self.config)
        for role in ("captioner", "filter"):
            identity = self.models.get(role)
            config[role] = NONE if identity is None else identity.sha256
        config["compute"] = {"precision": self.config.compute.precision}
        return {"result_version": RESULT_VERSION, **config}

    @property
    def fingerprint(self) -> str:
        """sha256 of `decisive` as canonical JSON, in hex."""
        canonical = json.dumps(self.decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Which keys of `Task.decisive` differ, as "captions.top_p: 0.9 -> 0.95"."""
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
