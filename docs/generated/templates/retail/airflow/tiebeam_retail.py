"""Retail: a year of real supermarket purchases to tables, a DuckDB warehouse and a report.

The pipeline `retail` of tiebeam as a DAG for Airflow 3, and a second one that replays what was rejected. Written by
`tiebeam template build retail --target=airflow`. tiebeam runs in an environment of its own: nothing of it is installed in Airflow's.

A run has the name of its interval. A task that is tried again, cleared or backfilled runs under the same name, and what was
published already is not published twice.
"""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

TIEBEAM = "/opt/tiebeam/bin/tiebeam"
FLAGS = [

]
# retail has no --from and --to: every run reads all of its input.
BOUND_TO_INTERVAL = False
MOST_REJECTED = 0  # more rejected rows than this make the check fail; the rows that are good are published all the same


def call(*command: str) -> dict:
    """Runs tiebeam and gives its account; a wrong configuration, or too many rejected rows, is not tried again."""
    done = subprocess.run([TIEBEAM, *command, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode in (2, 3):
        raise AirflowFailException(f"tiebeam ended with {done.returncode}; its log above says why")
    if done.returncode:
        raise RuntimeError(f"tiebeam ended with {done.returncode}; its log above says why")
    return json.loads(done.stdout)


with DAG(
    "tiebeam_retail",
    description="Retail: a year of real supermarket purchases to tables, a DuckDB warehouse and a report.",
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),  # a bare cron text has no interval in Airflow 3
    start_date=datetime.fromisoformat("2026-01-01T00:00:00+00:00"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=300), "retry_exponential_backoff": True},
    tags=["tiebeam"],
) as pipeline:

    @task
    def run() -> dict:
        """Moves the rows of the interval."""
        context = get_current_context()
        start, end = context["data_interval_start"], context["data_interval_end"]
        interval = [f"--from={start.isoformat()}", f"--to={end.isoformat()}"] if BOUND_TO_INTERVAL else []
        return call("run", "retail", *FLAGS, *interval, f"--run_id=retail-{start:%Y%m%dT%H%M%S}-{end:%Y%m%dT%H%M%S}")

    @task(retries=0)
    def check_dead_letters(account: dict) -> int:
        """Fails when more rows were rejected than are let pass: mend the contract or the source, then run the DAG that replays."""
        if account["rejected"] > MOST_REJECTED:
            raise AirflowFailException(
                f"{account['rejected']} rows were rejected and wait in {account['dead_letters']}: tiebeam_retail_replay runs them again"
            )
        return account["rejected"]

    check_dead_letters(run())

with DAG(
    "tiebeam_retail_replay",
    description="Runs what tiebeam_retail rejected again; started by hand",
    schedule=None,
    start_date=datetime.fromisoformat("2026-01-01T00:00:00+00:00"),
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=300)},
    params={
        "dead_letters": Param("out.rejected", type="string", description="The store, as check_dead_letters names it"),
        "flags": Param([], type="array", description="Flags that override those of the first run: --contract=mended.odcs.yaml"),
    },
    tags=["tiebeam"],
) as replaying:

    @task
    def replay() -> dict:
        """Runs the waiting letters through their pipeline; those rejected again go back. A replay that died is taken up where it stopped."""
        params = get_current_context()["params"]
        return call("replay", f"--dead_letters={params['dead_letters']}", *params["flags"])

    replay()
