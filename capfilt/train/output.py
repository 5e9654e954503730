"""The folder of a training.

train.json       stage, config and library versions: whose folder this is
checkpoints/     see `capfilt.train.checkpoints`
log.jsonl        see `capfilt.train.log`
tensorboard/
summary.json     what came of it, once it is done
captioner/ filter/   what the stage makes, as `capfilt run` takes it
.lock            held by the process that trains here
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from capfilt.errors import CommitError, ConfigError
from capfilt.io import files
from capfilt.io.lock import locked
from capfilt.io.publish import write_bytes
from capfilt.io.store import storage_errors
from capfilt.schema import to_dict
from capfilt.train import stop
from capfilt.train.config import TrainConfig, decisive_differences
from capfilt.train.training import Summary

log = logging.getLogger("capfilt")

RECORD = "train.json"
SUMMARY = "summary.json"
_LOCK = ".lock"
_WAIT_S = 10.0  # for a process that was told to stop, or whose machine Ray has just given up
_LIBRARIES = ("capfilt", "torch", "transformers", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Output:
    """A folder that holds one training of one config."""

    folder: Path

    def check(self, stage: str, config: TrainConfig) -> None:
        """Refuse a folder of another training, or of anything else.

        Raises:
            ConfigError: Names the keys that differ.
        """
        if "://" in str(self.folder) or self.folder.is_file():
            raise ConfigError(f"--out {self.folder}: must be a folder on a (shared) file system")
        record = self.folder / RECORD
        if not record.exists():
            there = self.folder.iterdir() if self.folder.is_dir() else ()
            if any(not path.name.startswith(".") for path in there):
                raise ConfigError(
                    f"--out {self.folder}: is not empty and no training's; give another folder"
                )
            return
        try:
            found = json.loads(files.read_bytes(str(record)))
            changed = decisive_differences(found["config"], config)
            if found["stage"] != stage:
                changed = [f"the stage: {found['stage']} -> {stage}"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{record}: not a record of capfilt train") from None
        if changed:
            raise ConfigError(
                f"--out {self.folder} holds another training: {'; '.join(changed)}. "
                "Give this one its own folder"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out inside the `with` block: two would mix their checkpoints.

        Raises:
            ConfigError: Another one is training here.
        """
        with locked(self.folder / _LOCK, wait_s=_WAIT_S) as mine:
            if not mine:
                raise ConfigError(f"--out {self.folder}: another process is training in it")
            yield

    def claim(self, stage: str, config: TrainConfig) -> None:
        """Write down whose folder this is.

        Raises:
            CommitError: It cannot be written.
        """
        versions = {name: metadata.version(name) for name in _LIBRARIES}
        record = {"stage": stage, "config": to_dict(config), "versions": versions}
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        write_bytes(str(self.folder / RECORD), text.encode())

    def begin(self) -> None:
        """Forget what an earlier training left for its driver."""
        for name in (SUMMARY, stop.FILE):
            (self.folder / name).unlink(missing_ok=True)

    def finish(self, summary: Summary) -> None:
        """Write down that the training is done."""
        text = json.dumps(summary.to_dict(), indent=1, ensure_ascii=False) + "\n"
        write_bytes(str(self.folder / SUMMARY), text.encode())

    def finished(self) -> Summary | None:
        """What came of the training, if it is done and its models are still there."""
        summary = self.summary()
        if summary and all(Path(made).is_dir() for made in summary.exports.values()):
            log.info("%s: finished with step %d; nothing to do", self.folder, summary.steps)
            return summary
        return None

    def summary(self) -> Summary | None:
        """What came of the training; None before it is done."""
        path = self.folder / SUMMARY
        return Summary(**json.loads(files.read_bytes(str(path)))) if path.exists() else None

    def export(self, role: str, write: Callable[[Path], None]) -> Path:
        """Let a model write its folder, which appears whole and replaces an older one.

        Raises:
            CommitError: It cannot be written.
        """
        target = self.folder / role
        building = self.folder / f".{role}-{uuid.uuid4().hex[:8]}.tmp"
        try:
            with storage_errors(str(target), CommitError):
                write(building)
                shutil.rmtree(target, ignore_errors=True)
                building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return target
