"""The DAGs in a real Airflow: `make test-airflow`, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("airflow", reason="its own environment: make test-airflow")

JOBS = Path(__file__).resolve().parents[2] / "jobs"
DAGS = {
    "nightly_capfilt": ["ingest", "run", "report"],
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
            assert found.downstream_task_ids == ({following} if following else set())
            assert found.bash_command == f"bash {JOBS / name / 'run.sh'} {task}"
        assert (dag.max_active_runs, dag.catchup) == (1, False)
