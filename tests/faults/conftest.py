"""A web of a few shards, the models, and the output of a run that nothing disturbed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import RunConfig, resolve
from capfilt.run.job import run
from capfilt.run.summary import Summary
from capfilt.run.verify import verify
from capfilt.run.where import Where
from tests.run.conftest import captioner, commits, filter_, hashes, write_shard  # noqa: F401

SHARDS, IMAGES = 4, 32
EVERY = 12  # images after which a shard's texts are put aside


@dataclass(frozen=True)
class Undisturbed:
    """What a run has to end with, whatever happens to it."""

    web: str
    config: RunConfig
    hashes: dict[str, str]
    commits: dict[str, dict[str, Any]]

    def assert_equal(self, out: Path) -> None:
        """The same files, byte by byte, by the same commits, and nothing else."""
        assert hashes(out) == self.hashes
        assert commits(out) == self.commits
        found = verify(str(out))
        assert (found.problems, found.uncommitted) == ((), ())
        assert [str(p) for p in out.rglob("*.tmp")] == []
        assert [p for p in (out / "partial").rglob("*") if p.is_file()] == []


@pytest.fixture(scope="session")
def undisturbed(
    captioner: str,  # noqa: F811
    filter_: str,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("faults")
    for index in range(SHARDS):
        write_shard(folder / "web", index, IMAGES)
    config = resolve(
        options={"captioner": captioner, "filter": filter_},
        overrides=["compute.batch_size=4", f"compute.checkpoint_every={EVERY}"],
    )
    run(config, Where(str(folder / "web"), str(folder / "out"), local=True))
    assert len(commits(folder / "out")) == SHARDS
    return Undisturbed(str(folder / "web"), config, hashes(folder / "out"), commits(folder / "out"))


def local(found: Undisturbed, out: Path, web: str | None = None, **compute: Any) -> Summary:
    """The same run in this process."""
    config = replace(found.config, compute=replace(found.config.compute, **compute))
    return run(config, Where(web or found.web, str(out), local=True))


def command(found: Undisturbed, out: Path, *options: str) -> list[str]:
    """The same run as a user starts it."""
    compute = found.config.compute
    return [
        *(sys.executable, "-m", "capfilt.cli", "run", found.web, str(out), "--json"),
        *("--captioner", found.config.captioner, "--filter", found.config.filter),
        *("--set", f"compute.batch_size={compute.batch_size}"),
        *("--set", f"compute.checkpoint_every={compute.checkpoint_every}"),
        *options,
    ]


def complete(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=500, check=False, **options
    )
