"""`capfilt status` after runs in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from capfilt.config import RunConfig
from capfilt.run.status import status
from tests.run.conftest import local


def test_status_counts_done_pending_and_stale(config: RunConfig, web: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    local(config, web, tmp_path / "out", limit=3)
    found = status(out)
    assert (found.done, found.pending, found.stale) == (3, 1, 0)
    assert found.tally.read == 36
    local(replace(config, seed=5), web, tmp_path / "out", limit=1, overwrite=True)
    found = status(out)
    assert (found.done, found.pending, found.stale) == (1, 1, 2)
