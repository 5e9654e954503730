"""The log of a training: `log.jsonl` always, TensorBoard where installed, wandb where asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from capfilt.errors import ConfigError
from capfilt.io.jsonl import JsonLines
from capfilt.train.row import Row

FILE = "log.jsonl"


class Plot(Protocol):
    """A place that draws curves."""

    def draw(self, scalars: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Log:
    """Rows of steps, without gaps or repeats however often the training was stopped."""

    def __init__(self, out: Path, *, step: int, config: Mapping[str, Any]) -> None:
        """Go on at a step: what an interrupted training logged beyond it is forgotten.

        Raises:
            ConfigError: wandb is asked for and not installed.
        """
        self._lines = JsonLines(out / FILE)
        self._lines.keep(lambda row: row["step"] <= step)
        self._plots: list[Plot] = []
        if find_spec("tensorboard"):
            self._plots.append(TensorBoard(out / "tensorboard", step))
        if project := config["loop"]["wandb"]:
            self._plots.append(Wandb(project, out, config))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for plot in self._plots:
            plot.close()

    def write(self, row: Row) -> None:
        self._lines.append(row.to_dict())
        for plot in self._plots:
            plot.draw(row.scalars, row.step)


class TensorBoard:
    """Event files."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Rows beyond the step, of an interrupted training, are hidden.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def draw(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, the same one for the same output folder."""

    def __init__(self, project: str, out: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError("loop.wandb: needs another package: pip install wandb") from None
        identity = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]
        self._run = wandb.init(
            project=project, name=out.name, id=identity, resume="allow", dir=out, config={**config}
        )

    def draw(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()
