"""A stage: a file in `pipelines/` with a `CONFIG` and a `build`, and the config resolved for it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from capfilt import catalog
from capfilt.errors import ConfigError
from capfilt.io import files
from capfilt.schema import build, merge, parse_overrides, parse_yaml, to_dict
from capfilt.train.config import TrainConfig
from capfilt.train.loop import Loop
from capfilt.train.output import Output
from capfilt.train.ranks import Ranks, joined
from capfilt.train.training import Summary, Training

# Keys that name files and folders; the last two may be new ones.
_PLACES = ("images", "vocabulary", "start", "weights", "language", "path", "cache_features")


@dataclass(frozen=True)
class Stage:
    """What is trained, and how by default."""

    name: str
    config: TrainConfig
    build: Callable[[TrainConfig, Ranks], Training]

    @classmethod
    def load(cls, name: str) -> Stage:
        """Run the file of a stage.

        Raises:
            ConfigError: There is no such stage.
        """
        known = catalog.trainings()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else f": there are {', '.join(known)}"
            raise ConfigError(f"unknown stage {name!r}{hint}")
        names = catalog.stage(name)
        return cls(name, names["CONFIG"], names["build"])

    def resolve(
        self,
        *,
        yaml_text: str = "",
        yaml_name: str = "config",
        overrides: Sequence[str] = (),
    ) -> TrainConfig:
        """The stage's config with a YAML file's values, then those of `--set a.b=c`.

        Raises:
            ConfigError: An unknown key, a value of the wrong type or out of range.
        """
        tree = to_dict(self.config)
        merge(tree, parse_yaml(yaml_text, yaml_name))
        merge(tree, parse_overrides(overrides, example="optimiser.lr=1.0e-4"))
        return self.from_dict(absolute(tree))

    def from_dict(self, tree: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `capfilt.schema.to_dict`.

        Raises:
            ConfigError: As `resolve`.
        """
        return build(type(self.config), tree)

    def train(
        self,
        config: TrainConfig,
        out: Path,
        *,
        device: torch.device | None = None,
        live: bool = False,
    ) -> Summary:
        """Train in this process, together with those of torchrun or Ray Train if there are any.

        Args:
            config: From `resolve`.
            out: Folder for all that comes of it, on a file system that all ranks see.
            device: Of this rank; None takes CUDA where there is some.
            live: Show a live block rather than lines.

        Raises:
            ConfigError: The config does not fit the data, the ranks, the disk or the folder.
            InputError: A dataset cannot be read.
            ModelError: A model to start from cannot be loaded.
            TrainingError: A loss is not finite; memory is short.
            KeyboardInterrupt: Somebody wished to stop; a checkpoint has been written.
        """
        output = Output(out)
        output.check(self.name, config)
        if not dist.is_initialized():  # else Ray's driver has done it
            if (done := output.finished()) is not None:
                return done
            output.begin()
        with joined(device) as ranks:
            training = self.build(config, ranks)
            return Loop(training, config, ranks, stage=self.name, out=out, live=live).run()


def absolute(tree: Any, key: str = "") -> Any:
    """A config with its local places as any process finds them, in any folder; hub ids stay."""
    if isinstance(tree, dict):
        return {name: absolute(part, name) for name, part in tree.items()}
    if isinstance(tree, list):
        return [absolute(part, key) for part in tree]
    if key not in _PLACES or not isinstance(tree, str) or not tree:
        return tree
    return files.absolute(tree) if key in _PLACES[-2:] or files.exists(tree) else tree
