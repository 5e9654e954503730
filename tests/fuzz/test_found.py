"""What fuzzing found: shards that once ended a process, or raised what nobody expects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from capfilt.shard import Form
from tests.fuzz.readers import SEEDS, check_read

FOUND = Path(__file__).parent / "found"


@pytest.mark.parametrize("form", SEEDS)
def test_shards_that_fuzzing_found_are_read_or_refused(form: Form) -> None:
    """In a process of their own, which some of them would end."""
    shards = sorted((FOUND / form).iterdir())
    assert shards
    arguments = [sys.executable, "-m", "tests.fuzz.readers", form, *map(str, shards)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [shard.name for shard in shards]


@pytest.mark.parametrize("form", SEEDS)
def test_whole_shards_are_read(form: Form, tmp_path: Path) -> None:
    for data in SEEDS[form]:
        (tmp_path / "0").write_bytes(data)
        assert check_read(tmp_path / "0", form)
