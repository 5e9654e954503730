from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.config import RunConfig
from capfilt.errors import ConfigError
from tests.run.conftest import local


def test_run_output_that_is_no_runs_is_refused_before_anything_is_read(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    local(config, web, tmp_path / "out")
    before = sorted(Path(web).iterdir())
    no_models = replace(config, captioner=str(tmp_path / "no"), filter=str(tmp_path / "no"))
    with pytest.raises(ConfigError, match=r"web holds 00000\.tar and no run .*INPUT comes first"):
        local(no_models, str(tmp_path / "out"), Path(web))
    assert sorted(Path(web).iterdir()) == before
    for name in ("notes.txt", "00000_stats.json", "pictures/a.jpg"):
        output = tmp_path / name.replace("/", "_")
        (output / name).parent.mkdir(parents=True)
        (output / name).write_text("somebody's")
        with pytest.raises(ConfigError, match=rf"holds {name.split('/')[0]} and no run"):
            local(no_models, web, output)
    with pytest.raises(ConfigError, match=r"OUTPUT \S+00000\.tar is a file: give a folder"):
        local(no_models, web, Path(web, "00000.tar"))


def test_run_output_may_be_empty_a_runs_or_hold_hidden_files(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / ".DS_Store").write_text("a desktop's")
    local(config, web, out, limit=1)
    (out / "notes.txt").write_text("of the run")
    assert local(config, web, out, limit=1).shards_before == 1
