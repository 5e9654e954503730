"""What a job starts: a command line, and the folder that travels to the cluster with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from capfilt.config import RunConfig
from capfilt.run.where import Where
from capfilt.schema import to_yaml

CONFIG = "capfilt.yaml"  # in the job's folder
_PACKAGE = Path(__file__).resolve().parents[1]


def command_line(where: Where) -> list[str]:
    """`capfilt run` or `watch` as the job starts it, in its folder and on its own cluster."""
    values = {
        "--until-idle": None if where.until_idle_s is None else f"{where.until_idle_s:.0f}s",
        "--human": where.human,
        "--human-images": where.human_images,
        "--workers": where.workers,
        "--gpus-per-worker": where.gpus_per_worker,
        "--limit": where.limit,
    }
    flags = {"--allow-unfinished": where.allow_unfinished, "--overwrite": where.overwrite}
    return [
        # By `python`: that of the environment in which the cluster's head was started.
        *("python", "-m", "capfilt", "watch" if where.watch else "run", where.input, where.output),
        *("--config", CONFIG, "--address", "auto"),
        *(
            part
            for name, value in values.items()
            if value is not None
            for part in (name, f"{value}")
        ),
        *(name for name, is_set in flags.items() if is_set),
    ]


def pack(folder: Path, config: RunConfig, *, ship_code: bool) -> None:
    """Fill a job's folder: the config of all its sources as one file, and the code where asked."""
    (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
    if ship_code:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=ignore)
