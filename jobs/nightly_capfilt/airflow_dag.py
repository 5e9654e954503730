"""Airflow 3: each night what is new is ingested, run and reported.

This folder goes into Airflow's dags folder: capfilt copy jobs/nightly_capfilt "$AIRFLOW_HOME/dags".
Its workers have capfilt on their PATH; job.env says where Ray is.
"""

from datetime import datetime, timedelta
from pathlib import Path
from shlex import quote

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, chain

RUN = Path(__file__).resolve().parent / "run.sh"
STEPS = ("ingest", "run", "report")

with DAG(
    "nightly_capfilt",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
) as dag:
    # Airflow ends a task by SIGTERM, which run.sh hands on. As there, a step goes on beside what
    # failed before it; the night has failed if any has.
    steps = [
        BashOperator(
            task_id=step,
            bash_command=f"bash {quote(str(RUN))} {step}",
            trigger_rule="all_done",
        )
        for step in STEPS
    ]
    chain(*steps)
    chain(steps, EmptyOperator(task_id="night"))
