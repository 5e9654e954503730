"""What a run over the OUTPUT of another may do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.config import RunConfig
from capfilt.errors import CommitError, ModelError
from tests.run.conftest import commits, hashes, local, write_shard


def test_run_other_config_is_refused_by_name_then_overwritten(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    local(config, web, out)
    before = hashes(out)
    other = replace(config, seed=1)
    with pytest.raises(CommitError, match=r"4 of its shards would be redone.*seed: 0 -> 1"):
        local(other, web, out)
    assert hashes(out) == before
    summary = local(other, web, out, overwrite=True)
    assert summary.shards_done == 4
    local(other, web, tmp_path / "fresh")
    assert hashes(out) == hashes(tmp_path / "fresh") != before


def test_run_changed_input_shard_is_refused_by_name(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    local(config, web, tmp_path / "out")
    write_shard(Path(web), 2, 11)
    with pytest.raises(CommitError, match="the input of 00002"):
        local(config, web, tmp_path / "out")
    assert local(config, web, tmp_path / "out", overwrite=True).shards_done == 1


def test_run_speed_settings_do_not_make_another_run(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    local(config, web, tmp_path / "out")
    faster = replace(config, compute=replace(config.compute, batch_size=48, decode_threads=3))
    assert local(faster, web, tmp_path / "out").shards_before == 4


def test_run_other_config_after_a_start_that_committed_nothing_needs_no_overwrite(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    too_short = replace(config, captions=replace(config.captions, min_length=0, max_length=3))
    with pytest.raises(ModelError, match="max_length"):
        local(too_short, web, tmp_path / "out")
    assert local(config, web, tmp_path / "out").shards_done == 4


def test_run_over_another_input_is_refused_until_overwrite_joins_them(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    local(config, web, tmp_path / "out")
    other = tmp_path / "other"
    write_shard(other, 7, 12)
    with pytest.raises(CommitError, match=r"holds a run over .*web"):
        local(config, str(other), tmp_path / "out")
    summary = local(config, str(other), tmp_path / "out", overwrite=True)
    assert summary.shards_done == 1
    assert len(commits(tmp_path / "out")) == 5
