"""The jobs' scripts and configs with the real capfilt behind them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from capfilt import catalog
from capfilt.cli import app
from capfilt.config import resolve
from capfilt.errors import ConfigError
from tests.jobs.conftest import BASH, STEPS, fill
from tests.run.conftest import captioner, commits, filter_, write_shard  # noqa: F401 - fixtures

CAPFILT = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def nightly(tmp_path: Path, captioner: str, filter_: str) -> Path:  # noqa: F811
    """The nightly job over three shards, one of which cannot be read, with tiny models."""
    job = catalog.copy("jobs/nightly_capfilt", tmp_path)
    for index in range(2):
        write_shard(tmp_path / "web", index, 12)
    (tmp_path / "web" / "00002.tar").write_bytes(b"no tar")
    (tmp_path / "web" / "00002_stats.json").write_text('{"successes": 12}')
    config = yaml.safe_load((job / "config.yaml").read_text())
    config |= {"captioner": captioner, "filter": filter_}
    (job / "config.yaml").write_text(yaml.safe_dump(config))
    fill(job, INPUT=f"{tmp_path}/web", OUTPUT=f"{tmp_path}/dataset", GPUS_PER_WORKER="0")
    return job


def script(job: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PATH": CAPFILT, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [BASH, str(job / "run.sh"), *arguments]
    return subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_nightly_job_reports_beside_a_failed_shard_and_takes_what_is_new(nightly: Path) -> None:
    """Its exit code is the run's; the second night does what was mended and what has come."""
    web, out = nightly.parent / "web", nightly.parent / "dataset"
    first = script(nightly)
    _, said = first.communicate(timeout=900)
    assert first.returncode == 1, said
    assert sorted(commits(out)) == ["00000", "00001"]
    assert "00002" in said
    assert (out / "report.html").exists()
    for index in (2, 3):
        write_shard(web, index, 12)
    second = script(nightly, "run")
    _, said = second.communicate(timeout=900)
    assert second.returncode == 0, said
    assert sorted(commits(out)) == ["00000", "00001", "00002", "00003"]


def test_nightly_job_hands_sigterm_on_and_waits(nightly: Path) -> None:
    """What follows is not begun. Airflow, Ray and Slurm tell each process, so capfilt twice."""
    out = nightly.parent / "dataset"
    write_shard(nightly.parent / "web", 0, 90)
    (nightly.parent / "bin").mkdir()
    local = nightly.parent / "bin" / "capfilt"  # without Ray, which takes its time
    words = '"${@:2:4}" --local --set compute.batch_size=2'
    local.write_text(f"#!{BASH}\nexec {sys.executable} -m capfilt run {words}\n")
    local.chmod(0o755)
    env = {**os.environ, "PATH": f"{local.parent}{os.pathsep}{os.environ['PATH']}"}
    running = subprocess.Popen(
        [BASH, str(nightly / "run.sh")], env=env, stderr=subprocess.PIPE, start_new_session=True
    )
    until = time.monotonic() + 300
    while not (out / "data").exists():
        assert time.monotonic() < until
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGTERM)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130, said
    assert said.endswith(b"interrupted; the same command goes on where it stopped\n")
    assert not (out / "report.html").exists()
    assert not (out / "lease.json").exists()


def test_placeholders_are_one_key_each_which_is_how_they_are_known(job: Path) -> None:
    """A comma in the text would make a second key of what follows it."""
    texts = {file: file.read_text() for file in job.iterdir()}
    found = [yaml.safe_load(m) for t in texts.values() for m in re.findall(r"{FILL_IN:.*?}", t)]
    assert all(list(placeholder) == ["FILL_IN"] for placeholder in found)
    asked = {file.name for file, text in texts.items() if re.search(r"^[^#]*{FILL_IN", text, re.M)}
    wanted = {"rayjob.yaml"} | ({"config.yaml"} if job.name != "nightly_capfilt" else set())
    assert asked == wanted


def test_nightly_config_is_the_presets(tmp_path: Path) -> None:
    text = (catalog.path("jobs/nightly_capfilt") / "config.yaml").read_text()
    found = resolve(yaml_text=text, yaml_name="config.yaml")
    alone = {"captioner": found.captioner, "filter": found.filter}
    assert found == resolve(preset="blip", options=alone, overrides=["seed=0"])


@pytest.mark.parametrize(
    ("job", "stage", "asked"),
    [
        ("pretrain_blip", "blip_pretrain", r"(vocabulary|path): is to be filled in: "),
        ("pretrain_blip2", "blip2_stage1", r"datasets.*: is to be filled in: the dataset that"),
        ("pretrain_blip2", "blip2_stage2", r"datasets.*: is to be filled in: the dataset that"),
    ],
)
def test_training_whose_config_is_not_filled_in_says_what_is_asked_for(
    job: str, stage: str, asked: str, tmp_path: Path
) -> None:
    config = catalog.path(f"jobs/{job}") / "config.yaml"
    words = ["train", stage, "--config", str(config), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    with pytest.raises(ConfigError, match=asked):
        raise done.exception or AssertionError(done.output)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", ["pretrain_blip", "pretrain_blip2"])
def test_training_config_once_filled_in_is_its_stages(job: str, tmp_path: Path) -> None:
    file = catalog.copy(f"jobs/{job}", tmp_path) / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["data"]["datasets"][0]["path"] = "dataset"
    if "vocabulary" in tree:
        tree["vocabulary"] = "vocab.txt"
    file.write_text(yaml.safe_dump(tree))
    stages = {"train": "blip_pretrain", "stage1": "blip2_stage1", "stage2": "blip2_stage2"}
    for step in STEPS[job]:
        done = CliRunner().invoke(
            app, ["train", stages[step], "--config", str(file), "--show", "--json"]
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["data"]["datasets"][0]["path"].endswith("/dataset")


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_slurm_script_starts_ray_behind_a_token_and_runs_the_job(nightly: Path) -> None:
    """On this machine as an allocation of one node; `srun` starts what it is given at once."""
    bin_, log, out = nightly.parent / "bin", nightly.parent / "log", nightly.parent / "dataset"
    begun, go = nightly.parent / "begun", nightly.parent / "go"
    bin_.mkdir()
    waiting = f"touch {begun}; until [[ -e {go} ]]; do sleep 0.1; done"
    stand_ins = {
        "srun": 'SLURM_NODEID=0 exec "${@:2}"',
        "capfilt": f'{waiting}; exec {sys.executable} -m capfilt "$@"',  # Ray ends with the job
    }
    for name, does in stand_ins.items():
        (bin_ / name).write_text(f"#!{BASH}\n{does}\n")
        (bin_ / name).chmod(0o755)
    write_shard(nightly.parent / "web", 2, 12)
    slurm = {
        "SLURM_SUBMIT_DIR": str(nightly),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "1",
    }
    env = {**os.environ, **slurm, "PATH": f"{bin_}{os.pathsep}{CAPFILT}"}
    command = [BASH, str(nightly / "slurm.sbatch")]
    port = 20000 + os.getpid() % 10000
    with log.open("w") as file:  # no pipe: Ray ends after the script, and would keep it open
        running = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(lambda: running.poll() is not None or begun.exists(), 600)
        stranger = "import ray; ray.init(address=__import__('sys').argv[1], logging_level='ERROR')"
        refused = subprocess.run(
            [sys.executable, "-c", stranger, f"127.0.0.1:{port}"],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert refused.returncode != 0
        assert "uthentication" in refused.stderr
        go.touch()
        assert running.wait(timeout=900) == 0, log.read_text()
        assert sorted(commits(out)) == ["00000", "00001", "00002"]
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) != 0, 60)  # Ray is gone
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def wait_for(happened: Callable[[], bool], most_s: float) -> None:
    until = time.monotonic() + most_s
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.2)
