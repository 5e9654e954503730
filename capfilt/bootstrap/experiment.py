"""`capfilt train bootstrap`: the loop of `pipelines/bootstrap.py` over all seeds, and its results.

experiment.json                 what it works on: whose folder this is
world/                          the emoji world, if the config says so
seed-<n>/                       see `capfilt.bootstrap.seed`
results.md .json .svg           after each seed
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from capfilt import catalog
from capfilt.bootstrap.agenda import Agenda
from capfilt.bootstrap.config import BootstrapConfig, resolve
from capfilt.bootstrap.material import Material, make
from capfilt.bootstrap.page import page
from capfilt.bootstrap.plot import plot
from capfilt.bootstrap.results import Results
from capfilt.bootstrap.seed import Seed
from capfilt.errors import CapfiltError, ConfigError
from capfilt.io import files
from capfilt.io.publish import write_bytes
from capfilt.schema import differences, to_dict

log = logging.getLogger("capfilt")

NAME = "bootstrap"
_RECORD = "experiment.json"


@dataclass(frozen=True)
class Experiment:
    """The stage's file: its config, and the parts of one seed."""

    config: BootstrapConfig
    loop: Callable[[Seed], None]

    @classmethod
    def load(cls) -> Experiment:
        """Run the file."""
        names = catalog.stage(NAME)
        return cls(names["CONFIG"], names[NAME])

    def resolve(
        self, *, yaml_text: str = "", yaml_name: str = "config", overrides: Sequence[str] = ()
    ) -> BootstrapConfig:
        """See `capfilt.bootstrap.config.resolve`."""
        return resolve(self.config, yaml_text=yaml_text, yaml_name=yaml_name, overrides=overrides)

    def run(self, config: BootstrapConfig, out: Path, *, live: bool = False) -> Results:
        """Do every part that is not done yet.

        Args:
            config: From `resolve`.
            out: Folder for everything; made if absent.
            live: Show live blocks rather than lines.

        Raises:
            ConfigError: The config does not fit the folder or the data.
            CapfiltError: As `capfilt.train.stage.Stage.train` and `capfilt.run.job.run`.
            KeyboardInterrupt: Somebody wished to stop; the same call goes on.
        """
        agenda = Agenda()
        if config.world.web:
            material = Material.of_world(out / "world")
            agenda.add("draw the world", lambda: make(out / "world", config.world))
        else:
            material = Material.of_places(config.data, config.pretrain)
            material.check()
        _claim(out, config)
        for seed in config.seeds:
            self.loop(Seed(seed, out / f"seed-{seed}", config, material, agenda, live))
            so_far = replace(config, seeds=config.seeds[: config.seeds.index(seed) + 1])
            agenda.add(f"seed {seed}: write the results", partial(_write, out, so_far))
        try:
            agenda.work()
        except CapfiltError:
            if Results.read(out, config).seeds:
                _write(out, config)  # what was measured says why
            raise
        return Results.read(out, config)


def _claim(out: Path, config: BootstrapConfig) -> None:
    """Refuse a folder of something else; trainings and runs in it look after their own configs."""
    places = {name: place and files.absolute(place) for name, place in to_dict(config.data).items()}
    record, mine = out / _RECORD, {"world": to_dict(config.world), "data": places}
    if not record.exists():
        unfinished = f".{_RECORD}.*.tmp"  # of a call that was killed at its first file
        if out.is_file() or (out.is_dir() and not all(f.match(unfinished) for f in out.iterdir())):
            raise ConfigError(f"--out {out}: is not empty and no experiment's; give another folder")
        write_bytes(str(record), (json.dumps(mine, indent=1) + "\n").encode())
        return
    before = json.loads(files.read_bytes(str(record)))
    before["data"] = {name: p and files.absolute(p) for name, p in before["data"].items()}
    changed = differences(before, mine)
    if changed:
        raise ConfigError(
            f"--out {out} holds another experiment: {'; '.join(changed)}. Give this one its own "
            "folder"
        )


def _write(out: Path, config: BootstrapConfig) -> bool:
    results = Results.read(out, config)
    for warning in results.warnings:
        log.warning("%s", warning)
    text = json.dumps(results.to_dict(), indent=1) + "\n"
    write_bytes(str(out / "results.json"), text.encode())
    write_bytes(str(out / "results.md"), page(results).encode())
    plot(results, out / "results.svg")
    return True
