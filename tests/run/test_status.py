"""`capfilt status` after runs in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from capfilt.config import RunConfig
from capfilt.run.status import status
from tests.run.conftest import local, write_shard


def test_status_counts_done_pending_and_stale(config: RunConfig, web: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    local(config, web, tmp_path / "out", limit=3)
    found = status(out)
    assert (found.done, found.pending, found.stale) == (3, 1, 0)
    assert found.tally.read == 36
    local(replace(config, seed=5), web, tmp_path / "out", limit=1, overwrite=True)
    found = status(out)
    assert (found.done, found.pending, found.stale) == (1, 1, 2)


def test_status_counts_unfinished_shards_as_the_run_took_them(
    config: RunConfig, tmp_path: Path
) -> None:
    web, out = tmp_path / "web", tmp_path / "out"
    write_shard(web, 0, 2)
    write_shard(web, 1, 2, finished=False)
    local(config, str(web), out, limit=1, allow_unfinished=True)
    found = status(str(out))
    assert (found.done, found.pending, found.unfinished) == (1, 1, 0)
    local(config, str(web), out, allow_unfinished=True)
    found = status(str(out))
    assert (found.done, found.pending, found.unfinished) == (2, 0, 0)
