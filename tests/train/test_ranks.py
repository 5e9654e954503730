"""How ranks leave each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from capfilt.errors import TrainingError
from capfilt.train.ranks import joined

# The second rank fails alone while the first waits for it.
FAILS = """
import torch
from capfilt.errors import TrainingError
from capfilt.train.ranks import joined

with joined(torch.device("cpu")) as ranks:
    if not ranks.is_first:
        raise TrainingError("out of memory")
    ranks.gather(None)
"""


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As torchrun starts a process that is alone."""
    facts = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("torchrun")
def test_ranks_leave_together_at_the_end() -> None:
    with joined(torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.count) == (0, 1)
    assert not dist.is_initialized()


@pytest.mark.usefixtures("torchrun")
def test_rank_that_fails_waits_for_no_one() -> None:
    with pytest.raises(TrainingError), joined(torch.device("cpu")):
        raise TrainingError("out of memory")
    assert dist.is_initialized()


def test_torchrun_ends_the_ranks_that_wait_for_one_that_failed() -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *torchrun, "--no-python", sys.executable, "-c", FAILS],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "TrainingError: out of memory" in done.stderr
