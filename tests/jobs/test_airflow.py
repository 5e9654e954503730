"""The DAGs in a real Airflow: `make test-airflow`, in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("airflow", reason="its own environment: make test-airflow")

JOBS = Path(__file__).resolve().parents[2] / "jobs"
DAGS = {
    "nightly_capfilt": ["ingest", "run", "report", "night"],
    "pretrain_blip": ["train"],
    "pretrain_blip2": ["stage1", "stage2"],
}


def test_airflow_imports_every_dag_with_its_steps_in_their_order() -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(JOBS))
    assert bag.import_errors == {}
    assert set(bag.dags) == set(DAGS)
    for name, steps in DAGS.items():
        dag = bag.dags[name]
        assert [task.task_id for task in dag.topological_sort()] == steps
        for task, following in zip(steps, [*steps[1:], None], strict=True):
            found = dag.get_task(task)
            assert found.downstream_task_ids >= ({following} if following else set())
            if task != "night":
                assert found.bash_command == f"bash {JOBS / name / 'run.sh'} {task}"
        assert (dag.max_active_runs, dag.catchup) == (1, False)


@pytest.mark.parametrize(
    ("name", "failing", "done"),
    [
        ("nightly_capfilt", "ingest", ["ingest", "run", "report"]),
        ("nightly_capfilt", "run", ["ingest", "run", "report"]),
        ("nightly_capfilt", "none", ["ingest", "run", "report"]),
        ("pretrain_blip2", "stage1", ["stage1"]),
    ],
)
def test_night_goes_on_beside_what_failed_and_has_failed(
    name: str, failing: str, done: list[str], tmp_path: Path
) -> None:
    """As run.sh does, which a stand-in takes the place of; a training's stages need each other."""
    job = shutil.copytree(JOBS / name, tmp_path / "dags" / name)
    (job / "run.sh").write_text(f"echo $1 >> {tmp_path}/done\ntest $1 != {failing}\n")
    dag = (job / "airflow_dag.py").read_text()
    assert '"retries": 2' in dag
    (job / "airflow_dag.py").write_text(dag.replace('"retries": 2', '"retries": 0'))
    env = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    airflow = [sys.executable, "-m", "airflow"]
    subprocess.run([*airflow, "db", "migrate"], env=env, check=True, capture_output=True)
    ended = subprocess.run(
        [*airflow, "dags", "test", name], env=env, capture_output=True, text=True
    )
    assert (tmp_path / "done").read_text().split() == done, ended.stderr
    assert (ended.returncode == 0) == (failing == "none")
