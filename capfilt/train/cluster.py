"""Training on a Ray cluster: Ray Train starts the ranks and introduces them to each other.

The driver only watches. It reads the log that the first rank writes into the output folder, which
lies on a file system that all machines see, and passes a wish to stop on by a file there. When a
worker's machine is lost, all ranks start again from the last checkpoint.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer, get_device

from capfilt.cluster import Resources, connect, resources
from capfilt.errors import CapfiltError, ConfigError, TrainingError
from capfilt.io.jsonl import JsonLines
from capfilt.schema import to_dict
from capfilt.train import log as training_log
from capfilt.train import stop
from capfilt.train.checkpoints import Checkpoints
from capfilt.train.config import TrainConfig
from capfilt.train.output import Output
from capfilt.train.progress import Progress
from capfilt.train.row import Row
from capfilt.train.stage import Stage
from capfilt.train.training import Summary

log = logging.getLogger("capfilt")

_LOOK_EVERY_S = 0.5
_TRIES = 3  # starts in a row that end without a new checkpoint


@dataclass(frozen=True)
class Cluster:
    """Where the ranks run."""

    workers: int | None = None  # None: one per GPU, or one per node without any
    gpus_per_worker: float | None = None
    address: str | None = None  # None starts Ray on this machine

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--num-workers must be at least 1, is {self.workers}")
        gpus = self.gpus_per_worker
        if gpus is not None and (gpus < 0 or not float(gpus).is_integer()):
            raise ConfigError(f"--gpus-per-worker {gpus:g}: training takes whole GPUs, or 0")

    def train(self, stage: Stage, config: TrainConfig, out: Path, *, live: bool = False) -> Summary:
        """Train; see `Stage.train`.

        Raises:
            ConfigError: Also: no cluster answers, or it has not what was asked for.
        """
        output = Output(out)
        output.check(stage.name, config)
        if (done := output.finished()) is not None:
            return done
        needs = self._connect()
        output.begin()
        out.mkdir(parents=True, exist_ok=True)
        order = {"stage": stage.name, "config": to_dict(config), "out": str(out)}
        tries, step = 0, -1
        while (error := _watched(order, needs, out, live=live)) is not None:
            if (reason := _for_people(error)) is not None:
                raise reason
            last = Checkpoints(out, keep=config.loop.keep).last()
            reached = last.step if last else 0
            tries, step = (1 if reached > step else tries + 1), reached
            why = _cause(error)
            if tries == _TRIES:
                raise TrainingError(f"the workers failed {_TRIES} times without getting on: {why}")
            log.warning("a worker failed, all start again from step %d (%s)", step, why)
        (out / stop.FILE).unlink(missing_ok=True)
        summary = output.summary()
        if summary is None:
            raise KeyboardInterrupt
        return summary

    def _connect(self) -> Resources:
        connect(self.address)
        return resources(
            workers=self.workers, gpus_per_worker=self.gpus_per_worker, option="--num-workers"
        )


def _watched(order: dict[str, Any], needs: Resources, out: Path, *, live: bool) -> Exception | None:
    """Run the ranks once; shows how they get on. Gives what ended them."""
    failed: list[Exception] = []

    def fit() -> None:
        try:
            _trainer(order, needs, out).fit()
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            failed.append(error)

    # Apart, because Ray Train takes Ctrl-C for itself on the main thread.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    lines = JsonLines(out / training_log.FILE)
    with stop.Stop(out) as wish, Progress(live=live) as progress:
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_EVERY_S)
            if wish.wanted:
                wish.pass_on()
            if last := lines.last():
                progress.show(Row(**last))
    shutil.rmtree(out / ".ray", ignore_errors=True)
    return failed[0] if failed else None


def _trainer(order: dict[str, Any], needs: Resources, out: Path) -> TorchTrainer:
    asked = {"CPU": needs.cpus, **({"GPU": needs.gpus} if needs.gpus else {})}
    return TorchTrainer(
        _work,
        train_loop_config=order,
        scaling_config=ray.train.ScalingConfig(
            num_workers=needs.workers, use_gpu=bool(needs.gpus), resources_per_worker=asked
        ),
        run_config=ray.train.RunConfig(storage_path=str(out / ".ray"), name="train"),
    )


def _work(order: dict[str, Any]) -> None:
    """One rank, in a process of Ray's."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    out = Path(order["out"])
    if not out.is_dir():
        raise ConfigError(f"--out {out}: a worker does not see it: it must be on a shared folder")
    stage = Stage.load(order["stage"])
    try:
        stage.train(stage.from_dict(order["config"]), out, device=get_device())
    except KeyboardInterrupt:
        return  # as was wished; without a summary, the driver knows


def _for_people(error: Exception) -> CapfiltError | None:
    """The error of ours that ended the ranks, if it was one."""
    failures = getattr(error, "worker_failures", {})
    for failure in [error, *failures.values()]:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, CapfiltError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def _cause(error: Exception) -> str:
    """What ended a worker, in a line: of a traceback the last one."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    text = str(next(iter(failures.values()), error)).strip()
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return (lines[-1] if "Traceback" in text else lines[0]).strip()[:200]
