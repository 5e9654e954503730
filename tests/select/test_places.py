"""Cuts as commands: in a store, killed, and where somebody works already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from capfilt.cut import CutConfig
from capfilt.errors import CommitError, ConfigError
from capfilt.io.lease import Lease
from capfilt.run.verify import verify
from capfilt.select.select import select
from tests.io.conftest import (
    s3,  # noqa: F401 - a fixture
    s3_server,  # noqa: F401 - a fixture
)
from tests.run.conftest import hashes
from tests.select.conftest import Runs

CONFIG = CutConfig(min_match_prob=0.55)


def command(origin: str, output: str) -> list[str]:
    return [sys.executable, "-m", "capfilt", "select", origin, output, "--min-match", "0.55"]


@pytest.fixture(scope="module")
def expected(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("expected")
    select(runs["blip"], str(folder / "cut"), CONFIG)
    return hashes(folder / "cut")


def test_select_from_a_store_to_a_store_is_the_same_cut(
    runs: Runs,
    expected: dict[str, str],
    s3: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    store, bucket = fsspec.url_to_fs(s3)
    store.put(runs["blip"], f"{bucket}/run", recursive=True)
    subprocess.run(command(f"{s3}/run", f"{s3}/cut"), check=True, timeout=300)
    assert verify(f"{s3}/cut").problems == ()
    store.get(f"{bucket}/cut", str(tmp_path / "cut"), recursive=True)
    assert hashes(tmp_path / "cut") == expected


def test_select_that_is_killed_goes_on_and_ends_the_same(
    runs: Runs, expected: dict[str, str], tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    process = subprocess.Popen(command(runs["blip"], str(cut)), start_new_session=True)
    until = time.monotonic() + 300
    while not any(cut.glob("data/.*")) and not any(cut.glob("commits/*.json")):
        assert time.monotonic() < until
        assert process.poll() in (None, 0)
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command(runs["blip"], str(cut)), check=True, timeout=300)
    assert hashes(cut) == expected
    assert verify(str(cut)).problems == ()
    assert not list(cut.rglob(".*.tmp"))


def test_select_where_somebody_works_already_is_refused(runs: Runs, tmp_path: Path) -> None:
    with (
        Lease(str(tmp_path / "cut"), "capfilt select"),
        pytest.raises(CommitError, match="is being worked on by"),
    ):
        select(runs["blip"], str(tmp_path / "cut"), CONFIG)


def test_select_in_the_memory_of_one_process_is_refused(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="memory of one process"):
        select(runs["blip"], "memory://cut", CONFIG)
