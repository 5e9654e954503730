"""The loop of every stage: steps, log, checkpoints, and going on where it stopped."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path

from capfilt.errors import TrainingError
from capfilt.schema import to_dict
from capfilt.train.checkpoints import Checkpoint, Checkpoints, unique_tensors
from capfilt.train.config import TrainConfig
from capfilt.train.log import Log
from capfilt.train.meter import Meter
from capfilt.train.output import Output
from capfilt.train.precision import fast_products
from capfilt.train.progress import Progress
from capfilt.train.ranks import Ranks
from capfilt.train.row import Row
from capfilt.train.schedule import Schedule
from capfilt.train.stepper import Step, Stepper
from capfilt.train.stop import Stop
from capfilt.train.training import Summary, Training

log = logging.getLogger("capfilt")


class Loop:
    """One training on one rank."""

    def __init__(
        self,
        training: Training,
        config: TrainConfig,
        ranks: Ranks,
        *,
        stage: str,
        out: Path,
        live: bool = False,
    ) -> None:
        self._training, self._config, self._ranks = training, config, ranks
        self._stage, self._live = stage, live
        self._output = Output(out)
        self._passes = config.loop.accumulate
        self._per_epoch = training.data.steps_per_epoch / self._passes
        # Whole epochs may come out a last digit above a whole number of steps.
        self.steps = config.loop.steps or math.ceil(config.loop.epochs * self._per_epoch - 1e-6)
        self._schedule = Schedule(config.schedule, config.optimiser.lr, self._per_epoch, self.steps)
        self._stepper = Stepper(training.model, config, ranks)
        self._checkpoints = Checkpoints(out, keep=config.loop.keep)
        self._meter = Meter(config.loop.batch_size)

    def run(self) -> Summary:
        """Train from the last checkpoint, or the start, to the end.

        Raises:
            ConfigError: Another process trains in the folder; the disk is too small.
            TrainingError: A loss is not finite; memory is short.
            KeyboardInterrupt: Somebody wished to stop; a checkpoint has been written.
        """
        with self._output.held() if self._ranks.is_first else nullcontext():
            return self._run()

    def _run(self) -> Summary:
        started = time.monotonic()
        with closing(self._training.data):
            first = self._prepare()
            row = self._train(first) if first < self.steps else None
        exports, left_out = {}, Counter[str]()
        for of_rank in self._ranks.gather(dict(self._training.data.left_out)):
            left_out.update(of_rank)
        if self._ranks.is_first:
            for role, write in self._training.exports.items():
                exports[role] = str(self._output.export(role, write))
        summary = Summary(
            stage=self._stage,
            out=str(self._output.folder),
            steps=self.steps,
            steps_before=first,
            epochs=self.steps / self._per_epoch,
            losses=row.losses if row else {},
            seconds=time.monotonic() - started,
            images=(self.steps - first) * self._config.loop.batch_size,
            left_out=left_out,
            exports=exports,
        )
        if self._ranks.is_first:
            self._output.finish(summary)
        self._ranks.gather(None)  # nobody leaves before all is written
        return summary

    def _prepare(self) -> int:
        """Claim the folder and take up the last checkpoint; gives the number of steps done."""
        found: Checkpoint | None = None
        if self._ranks.is_first:
            tensors = unique_tensors(self._stepper.model).values()
            of_model = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self._checkpoints.clean()
            self._checkpoints.check_space(of_model + self._stepper.optimiser.size_bytes)
            self._output.claim(self._stage, self._config)
            found = self._checkpoints.last()
        found = self._ranks.gather(found)[0]
        if found is None:
            self._announce("%s: %d steps, %.4g epochs of %.4g steps", self._output.folder,
                           self.steps, self.steps / self._per_epoch, self._per_epoch)  # fmt: skip
            return 0
        found.load(self._stepper.model, self._stepper.optimiser)
        self._announce("going on after step %d of %d (%s)", found.step, self.steps, found.folder)
        if self._ranks.is_first:
            self._compare(found)
        return found.step

    def _compare(self, found: Checkpoint) -> None:
        """Say what makes a resumed training another than an uninterrupted one."""
        if found.ranks != self._ranks.count:
            change = f"{self._ranks.count} processes now, {found.ranks} before"
        elif found.data != self._training.data.fingerprint:
            change = "the data is not what it was when the training began"
        else:
            return
        log.warning("%s: images come in another order from here on", change)

    def _announce(self, text: str, *facts: object) -> None:
        if self._ranks.is_first:
            log.info(text, *facts)

    def _train(self, first: int) -> Row:
        with ExitStack() as stack:
            stack.enter_context(fast_products(self._ranks.device))
            stop = stack.enter_context(Stop(self._output.folder))
            progress = logged = None
            if self._ranks.is_first:
                config = to_dict(self._config)
                logged = stack.enter_context(Log(self._output.folder, step=first, config=config))
                progress = stack.enter_context(Progress(live=self._live))
            return self._steps(first, stop, progress, logged)

    def _steps(self, first: int, stop: Stop, progress: Progress | None, logged: Log | None) -> Row:
        batches = self._training.data.batches(first * self._passes)
        self._meter.start()
        saved = first
        for number in range(first, self.steps):
            lr = self._schedule.at(number)
            try:
                step = self._stepper.step(batches, number, lr, stop=stop.wanted)
            except TrainingError as error:
                raise TrainingError(f"{error}; {self._last_good(saved)}") from error.__cause__
            self._meter.step(step.waited_s)
            row = self._row(number + 1, step, lr)
            is_last = row.step == row.steps
            if progress is not None:
                progress.show(row)
            if logged is not None and (is_last or row.step % self._config.loop.log_every == 0):
                logged.write(row)
            if is_last or step.is_stopping or row.step % self._config.loop.save_every == 0:
                self._save(row.step)
                saved = row.step
            if step.is_stopping and not is_last:
                self._announce("stopped after step %d of %d", row.step, row.steps)
                raise KeyboardInterrupt
        return row

    def _save(self, step: int) -> None:
        if self._ranks.is_first:
            self._checkpoints.save(
                step,
                self._stepper.model,
                self._stepper.optimiser,
                ranks=self._ranks.count,
                data=self._training.data.fingerprint,
                config=to_dict(self._config),
            )

    def _last_good(self, step: int) -> str:
        folder = self._checkpoints.folder(step)
        return f"the last good checkpoint is {folder}" if step else "there is no checkpoint yet"

    def _row(self, done: int, step: Step, lr: float) -> Row:
        return Row(
            step=done,
            steps=self.steps,
            epoch=done / self._per_epoch,
            epochs=self.steps / self._per_epoch,
            loss=sum(step.losses.values()),
            losses=step.losses,
            lr=lr,
            grad_norm=step.grad_norm,
            samples_per_s=self._meter.samples_per_s,
            waiting=self._meter.waiting,
            left_s=(self.steps - done) * self._meter.step_s,
        )
