from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from capfilt.config import resolve
from capfilt.run.where import Where
from capfilt.service.entrypoint import CONFIG, command_line, pack

RUN = Where("/web", "/out")
EVERY = Where(
    input="s3://bucket/a web/{000..999}.tar",
    output="/out",
    human="/coco.json",
    human_images="/coco images",
    overwrite=True,
    limit=7,
    workers=4,
    gpus_per_worker=0.5,
)


@pytest.mark.parametrize(
    "where",
    [
        RUN,
        EVERY,
        replace(RUN, allow_unfinished=True),
        replace(RUN, watch=True, until_idle_s=1800.0),
    ],
)
def test_command_line_is_parsed_as_what_was_asked_for(
    where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capfilt.cli import app, run

    config = resolve(overrides=["seed=3"], options={"captioner": "a/b", "filter": "c/d"})
    pack(tmp_path, config, ship_code=False)
    seen: list[Any] = []
    monkeypatch.setattr(run, "work", lambda *args, **_: seen.extend(args))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command_line(where)[3:])
    assert done.exit_code == 0, done.output
    assert seen[-2:] == [config, replace(where, address="auto")]


def test_pack_ships_the_code_when_asked(tmp_path: Path) -> None:
    pack(tmp_path, resolve(options={"captioner": "a/b", "filter": "none"}), ship_code=True)
    assert (tmp_path / CONFIG).exists()
    assert (tmp_path / "capfilt" / "run" / "job.py").exists()
    assert not list(tmp_path.rglob("__pycache__"))
