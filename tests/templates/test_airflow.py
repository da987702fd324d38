"""The generated DAGs in a real Airflow 3: three intervals, tries that fail after they have published, rejected rows, their replay."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import duckdb
import pytest
import yaml

from support import services
from tiebeam import cli

SRC = Path(__file__).parents[2] / "src"
DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
# What a run was, with the state and the number of tries of each of its tasks.
RUNS = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("dags", sys.argv[1])
dags = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dags)
from airflow.sdk import timezone
told = []
for when in json.loads(sys.argv[3]):
    run = getattr(dags, sys.argv[2]).test(logical_date=timezone.parse(when), run_conf=json.loads(sys.argv[4]))
    tasks = {t.task_id: [str(t.state), t.try_number] for t in run.get_task_instances()}
    told.append({"start": run.data_interval_start.isoformat(), "state": str(run.state), "tasks": tasks})
print("TOLD" + json.dumps(told))
"""


def built(folder, *argv):
    assert cli.main(["template", "build", *argv, "--target=airflow", f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    return services.obtain("airflow").instance(tmp_path_factory.mktemp("airflow") / "home")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Four days of rows, one of them refused by the contract; a tiebeam that fails once for each run after its work is done."""
    folder = tmp_path_factory.mktemp("job")
    rows = [{"n": n, "amount": n, "at": f"2026-01-0{1 + n // 24}T{n % 24:02}:00:00Z"} for n in range(96)]
    rows[30]["amount"] = -1
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ["--source=jsonl", f"--source_path={folder}/in.jsonl", "--source_event_time=at"]
    sink = ["--sink=parquet", f"--sink_path={folder}/out"]
    assert cli.main(["plan", "ingest", *source, *sink, f"--write_contract={folder}/mended.yaml"]) == 0
    contract = yaml.safe_load((folder / "mended.yaml").read_text())
    amount = next(p for p in contract["schema"][0]["properties"] if p["name"] == "amount")
    amount["logicalTypeOptions"] = {"minimum": 0}
    (folder / "strict.yaml").write_text(yaml.safe_dump(contract))
    tiebeam = folder / "tiebeam"
    real = f'PYTHONPATH="{SRC}" "{sys.executable}" -m tiebeam "$@"'
    name = 'name="$(printf "%s" "$*" | tr -c "a-zA-Z0-9" _ | tail -c 200)"'
    once = f'mkdir "{folder}/failed-$name" 2>/dev/null && {{ {real} >/dev/null; exit 1; }}'
    tiebeam.write_text(f"#!/bin/bash\n{name}\n{once}\nexec env {real}\n")
    tiebeam.chmod(0o755)
    flags = [*source, *sink, f"--contract={folder}/strict.yaml", "--retries=2", "--retry_secs=1", f"--tiebeam={tiebeam}"]
    built(folder / "template", "ingest", *flags)
    return folder


@pytest.fixture(scope="module")
def told(airflow, job):
    """How three intervals went."""
    ends = [f"2026-01-0{day}T00:00:00Z" for day in (2, 3, 4)]
    return runs(airflow, job, "pipeline", ends)


def runs(airflow, job, dag, when, conf=None):
    file = airflow.folder / "dags" / "tiebeam_ingest.py"
    file.write_bytes((job / "template/tiebeam_ingest.py").read_bytes())
    said = airflow.call("-c", RUNS, str(file), dag, json.dumps(when), json.dumps(conf or {}))
    return json.loads(next(line for line in said.splitlines() if line.startswith("TOLD"))[4:])


def written(job):
    return [n for (n,) in duckdb.sql(f"SELECT n FROM '{job}/out/*.parquet' ORDER BY n").fetchall()]


def test_three_intervals_hold_each_row_once_though_each_first_try_failed(told, job):
    assert [run["start"] for run in told] == [f"{day}T00:00:00+00:00" for day in DAYS]
    assert [run["tasks"]["run"] for run in told] == [["success", 2]] * 3
    assert written(job) == [n for n in range(72) if n != 30]


def test_the_check_fails_where_rows_were_rejected(told):
    assert [run["state"] for run in told] == ["success", "failed", "success"]
    assert [run["tasks"]["check_dead_letters"][0] for run in told] == ["success", "failed", "success"]


def test_the_replay_runs_them_again_under_a_mended_contract(told, airflow, job):
    conf = {"dead_letters": f"{job}/out.rejected", "flags": [f"--contract={job}/mended.yaml"]}
    (run,) = runs(airflow, job, "replaying", ["2026-01-05T00:00:00Z"], conf)
    assert run["tasks"]["replay"] == ["success", 2]
    assert written(job) == list(range(72))


@pytest.mark.parametrize("name", ["ingest", "retail", "rollup", "sessions"])
def test_dags_are_python_and_hold_the_flags(tmp_path, name):
    text = (built(tmp_path, name) / f"tiebeam_{name}.py").read_text()
    tree = ast.parse(text)
    assert "@" not in "".join(n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)).replace(
        "@daily", ""
    )
    assert f"BOUND_TO_INTERVAL = {name in ('ingest', 'rollup')}" in text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--source=kafka"], "kafka goes on without end"),
        (["--schedule=every day"], "is no schedule of cron"),
        (["--start=2026-01-01"], "names no time zone"),
        (["--start=soon"], "is no time"),
        (["--retries=some"], "is a whole number"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, capsys, flags, told):
    assert cli.main(["template", "build", "ingest", "--target=airflow", f"--output={tmp_path}/out", *flags]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
