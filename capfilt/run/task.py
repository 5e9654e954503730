"""What every worker of a run is told once: the config, the models, and where outputs go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from capfilt.config import NONE, RunConfig
from capfilt.io.likeness import EvaluationSet
from capfilt.record import ModelIdentity, Reason
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
    # Images to drop before a model sees them: evaluation sets, and duplicates by shard and number.
    excluded: EvaluationSet | None = field(default=None, compare=False)
    most_samples: int | None = field(default=None, compare=False)  # of each shard: a probe's
    duplicates: Mapping[str, Mapping[int, Reason]] = field(default_factory=dict, compare=False)
    lease: str | None = field(default=None, compare=False)  # the token of the run's

    @property
    def decisive(self) -> dict[str, Any]:
        """Everything that decides a shard's result: the paths of models and their speed do not."""
        config = to_dict(self.config)
        for role in ("captioner", "filter"):
            identity = self.models.get(role)
            config[role] = NONE if identity is None else identity.sha256
        config["compute"] = {"precision": self.config.compute.precision}
        # What is off is left out: outputs from before there was such a rule still count.
        for name in ("dedupe", "exclude"):
            if not config["images"][name]:
                del config["images"][name]
        if self.excluded is not None:
            config["images"]["exclude"] = self.excluded.digest()
        return {"result_version": RESULT_VERSION, **config}

    @property
    def fingerprint(self) -> str:
        """sha256 of `decisive` as canonical JSON, in hex."""
        canonical = json.dumps(self.decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
