"""The files for Spark at work: a batch pipeline submitted by the generated script, to `local[2]` and to a standalone cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from support import services
from tiebeam import cli
from tiebeam.lab._boot import write_boot

SRC = Path(__file__).parents[2] / "src"
ROWS = 3_000


@pytest.fixture(scope="module")
def cluster():
    """A job server whose Spark is a master and two workers."""
    with services.obtain("spark").cluster(workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The template of a rollup of files, and the windows that this machine makes of them."""
    folder = tmp_path_factory.mktemp("job")
    rows = ({"at": f"2026-01-01T{n % 24:02}:{n % 60:02}:00Z", "shop": f"s{n % 7}", "amount": n} for n in range(ROWS))
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no row\n")
    flags = ["--source=jsonl", f"--source_path={folder}/in.jsonl", "--source_event_time=at", "--sink=parquet", f"--sink_path={folder}/out"]
    flags += ["--by=shop", "--window=1h", "--aggregates=n=count(),total=sum(amount)"]
    assert cli.main(["template", "build", "rollup", "--target=spark", f"--output={folder}/template", *flags]) == 0
    assert cli.main(["run", "rollup", *flags, f"--sink_path={folder}/here"]) == 0
    assert len(windows(folder / "here")) == 24 * 7
    return folder


def windows(folder):
    return duckdb.sql(f"SELECT window_start, shop, n, total FROM '{folder}/*.parquet' ORDER BY ALL").fetchall()


def submitted(server, job, out):
    env = {
        **os.environ,
        "TIEBEAM": str(Path(sys.executable).with_name("tiebeam")),
        "PYTHONPATH": str(SRC),
        "JOB_ENDPOINT": server.address,
        "FILES_TO_STAGE": server.jar,
    }
    where = [flag for flag in server.flags() if flag.startswith("--environment_") and "millis" not in flag]
    command = [str(job / "template/submit.sh"), *where, f"--sink_path={out}", "--json"]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_on_two_threads(spark, job, tmp_path):
    write_boot(tmp_path / "boot", tmp_path / "log")
    told = submitted(replace(spark, boot=str(tmp_path / "boot")), job, tmp_path / "out")
    assert (told["runner"], told["read"], told["rejected"]) == ("SparkRunner", ROWS + 1, 1)
    assert windows(tmp_path / "out") == windows(job / "here")


def test_on_a_standalone_cluster(cluster, job, tmp_path):
    told = submitted(cluster, job, tmp_path / "out")
    assert (told["runner"], told["read"], told["rejected"]) == ("SparkRunner", ROWS + 1, 1)
    assert windows(tmp_path / "out") == windows(job / "here")


def test_flags_that_do_not_go_together_are_told_as_such(job, tmp_path, capsys):
    flags = [
        "--runner=SparkRunner",
        "--job_endpoint=localhost:1",
        f"--options_file={job}/template/spark.yaml",
        "--environment_type=LOOPBACK",
    ]
    assert cli.main(["run", "rollup", f"--options_file={job}/template/job.yaml", *flags]) == 2
    assert "environment_config is not compatible with environment type LOOPBACK" in capsys.readouterr().err


def test_a_stream_is_refused_with_the_reason(tmp_path, capsys):
    flags = ["--source=kafka", "--source_servers=localhost:9092", "--source_topics=t", "--sink=parquet", f"--sink_path={tmp_path}/out"]
    assert cli.main(["template", "build", "ingest", "--target=spark", f"--output={tmp_path}/made", *flags]) == 2
    assert "Beam's portable Spark runner cannot run streams" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    assert cli.main(["template", "build", "ingest", "--target=spark", f"--output={tmp_path}/made", *flags, "--source_until=latest"]) == 0
