"""Which extra brings what a command needs, and that what is installed for a job has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.jobs.conftest import STEPS
from tests.run.conftest import captioner, filter_, write_shard  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {  # of each command; those that are not here need none
    "demo": {"ingest", "plot"},
    "ingest": {"ingest"},
    "report": {"plot"},
    "train": {"train"},  # on Ray, where jobs train
}
ROOM = {"dedupe", "s3"}  # of the image: what a config.yaml or a place may ask for
MISSING = [
    ("img2dataset", "ingest", ("ingest", "urls.csv", "web")),
    ("matplotlib", "plot", ("report", "dataset")),
    ("img2dataset", "ingest", ("demo", "folder")),
    ("matplotlib", "plot", ("demo", "folder")),
    ("capfilt.train.cluster", "train", ("train", "blip_pretrain", "--num-workers", "2")),
    ("s3fs", "s3", ("status", "s3://bucket/dataset")),
    ("gcsfs", "gcs", ("status", "gs://bucket/dataset")),
]


def extras(name: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["optional-dependencies"][name]]


def image() -> set[str]:
    """The extras that the image is built with."""
    [asked] = re.findall(r"^ARG EXTRAS=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return set(asked.split(","))


@pytest.mark.parametrize(("module", "extra", "command"), MISSING)
def test_command_without_its_extra_names_it_before_it_does_anything(
    module: str,
    extra: str,
    command: tuple[str, ...],
    tmp_path: Path,
) -> None:
    out = ["--out", "out", "--set", "data.datasets=[{path: x}]", "--set", "vocabulary=x"]
    words = [*command, *(out if command[0] == "train" else [])]
    # A process of its own: what another test has imported, libraries keep.
    script = f"import sys; sys.modules[{module!r}] = None; from capfilt.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"pip install 'capfilt[{extra}]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert command[0] == "status" or extra in NEEDS[command[0]]


def test_image_has_the_extras_of_every_command_of_the_jobs() -> None:
    commands = set()
    for job in STEPS:
        for script in ("run.sh", "submit.sh"):
            commands |= set(
                re.findall(r"capfilt (\w+)", (ROOT / "jobs" / job / script).read_text())
            )
    assert {"ingest", "run", "report", "train"} <= commands
    assert image() == set().union(*(NEEDS.get(name, set()) for name in commands)) | ROOM
    [tested] = [line.extras for line in extras("dev") if line.name == "capfilt"]
    assert image() == tested


def test_first_run_of_the_readme_installs_what_its_commands_need() -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme.partition("## A first real run\n")[2].split("```")[1]
    [installed] = re.findall(r"pip install 'capfilt\[(.*?)\]'", block)
    needed = set().union(*(NEEDS.get(name, set()) for name in re.findall(r"^capfilt (\w+)", block)))
    assert needed | {"plot"} <= set(installed.split(","))  # a report is what comes next


@pytest.mark.parametrize("trigger", ["crontab", "service"])
def test_triggers_on_a_machine_say_which_extras_their_environment_has(trigger: str) -> None:
    for job in STEPS:
        name = "crontab" if trigger == "crontab" else f"{job}.service"
        [named] = re.findall(
            r"the environment /opt/capfilt \(pip install 'capfilt\[(.*?)\]'\)",
            (ROOT / "jobs" / job / name).read_text(),
        )
        commands = re.findall(r"capfilt (\w+)", (ROOT / "jobs" / job / "run.sh").read_text())
        assert set(named.split(",")) == set().union(*(NEEDS.get(c, set()) for c in commands))


def brought(asked: Iterable[str]) -> set[str]:
    """The distributions that `pip install capfilt[...]` brings, by their own metadata."""
    found: set[str] = set()
    waiting: list[tuple[str, frozenset[str]]] = [("capfilt", frozenset(asked))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform, or what pip would bring anew
            continue
        found.add(canonicalize_name(name))
        for line in map(Requirement, lines):
            marker = line.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                waiting.append((line.name, frozenset(line.extras)))
    return found


@pytest.mark.slow
def test_steps_of_the_nightly_job_need_no_more_than_the_image_has(
    captioner: str,  # noqa: F811
    filter_: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    """In a Python that finds nothing but what the image's extras bring."""
    there = brought(image())
    hidden = sorted(
        name
        for name, owners in metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & there and name.isidentifier()
    )
    assert {"pytest", "datasets", "moto", "hypothesis"} <= set(hidden)
    assert not {"matplotlib", "img2dataset", "imagehash", "ray", "torch"} & set(hidden)
    site = f"import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n"
    (tmp_path / "sitecustomize.py").write_text(site)
    write_shard(tmp_path / "web", 0, 6)
    where = (str(tmp_path / "web"), str(tmp_path / "dataset"))
    models = ("--captioner", captioner, "--filter", filter_)
    config = ("--set", "images.dedupe=perceptual")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    steps = [("run", *where, "--local", *models, *config), ("report", where[1])]
    for step in steps:
        command = [sys.executable, "-m", "capfilt", *step]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    check = "import img2dataset, s3fs, capfilt.train.cluster"  # the other steps and places
    subprocess.run([sys.executable, "-c", check], env=env, check=True)
