"""What every worker of a run is told once: the config, the models, and where outputs go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capfilt.config import NONE, RunConfig
from capfilt.record import ModelIdentity
from capfilt.schema import to_dict

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
