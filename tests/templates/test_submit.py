"""Jobs handed to Dataflow, against a stand-in for its REST service and Cloud Storage: what arrives, and what becomes of it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from apache_beam.internal.gcp import auth
from apache_beam.portability.api import beam_runner_api_pb2

from support import dataflow
from tiebeam import cli, wheel
from tiebeam.pipelines import _runner
from tiebeam.runners import not_to_submit

SRC = Path(__file__).parents[2] / "src"
ROWS = b"".join(b'{"shop":"s%d","amount":%d,"at":"2026-01-01T00:%02d:00Z"}\n' % (n % 3, n, n) for n in range(30))
SOURCE = ["--source=jsonl", "--source_path=gs://data/in/*.jsonl", "--source_event_time=at"]
SINK = ["--sink=parquet", "--sink_path=gs://data/out"]
IMAGE = "europe-west1-docker.pkg.dev/p/tiebeam/ingest:1"


@pytest.fixture
def service(monkeypatch, tmp_path):
    with dataflow.serving() as service:
        service.objects["data/in/rows.jsonl"] = ROWS
        for name, value in service.env(tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(auth._Credentials, "_credentials_init", False)  # Beam keeps those it found first
        yield service
        auth._Credentials._credentials_init = False


def submit(service, capsys, pipeline, *flags):
    assert cli.main(["submit", pipeline, *SOURCE, *SINK, *service.flags(), *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def packages(job):
    return [p for pool in job["environment"]["workerPools"] for p in pool.get("packages", [])]


def test_a_submission_is_whole_and_the_job_can_be_looked_at_and_ended(service, capsys):
    told = submit(service, capsys, "ingest")
    (job,) = service.jobs.values()
    assert (told["job"], told["run_id"]) == (job["id"], job["name"])
    assert told["page"] == f"https://console.cloud.google.com/dataflow/jobs/europe-west1/{job['id']}?project=some-project"
    assert job["type"] == "JOB_TYPE_BATCH"
    assert {p["name"] for p in packages(job)} >= {wheel.name()}
    for package in packages(job):
        assert service.objects[package["location"].removeprefix("storage.googleapis.com/")], package
    staged = next(data for name, data in service.objects.items() if name.endswith(".whl"))
    with zipfile.ZipFile(io.BytesIO(staged)) as whole:
        assert whole.testzip() is None
        assert "tiebeam/pipelines/ingest.py" in whole.namelist()
    graph = beam_runner_api_pb2.Pipeline.FromString(next(data for name, data in service.objects.items() if name.endswith("pipeline.pb")))
    steps = {t.unique_name.partition("/")[0] for t in graph.components.transforms.values() if t.unique_name}
    assert {"Read", "Conform", "Write"} <= steps
    kept = json.loads(next(data for name, data in service.objects.items() if "out.rejected/_jobs/" in name))
    assert kept["pipeline"] == "ingest"
    at = ["--project=some-project", "--region=europe-west1", f"--dataflow_endpoint=http://{service.address}"]
    assert cli.main(["status", job["id"], *at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "running"
    assert cli.main(["savepoint", job["id"], *at]) == 0
    assert "snapshot-1" in capsys.readouterr().out
    assert cli.main(["drain", job["id"], *at]) == 2
    assert "a batch job ends by itself" in capsys.readouterr().err
    job["type"] = "JOB_TYPE_STREAMING"
    assert cli.main(["drain", job["id"], *at]) == 0
    assert "draining" in capsys.readouterr().out
    assert cli.main(["cancel", job["id"], *at]) == 0
    assert job["requestedState"] == "JOB_STATE_CANCELLED"
    assert cli.main(["status", "no-such-job", *at]) == 2
    assert "404" in capsys.readouterr().err


def test_an_update_goes_over_by_labels_and_one_that_loses_steps_leaves_the_job_as_it_was(service, capsys):
    first = submit(service, capsys, "rollup", "--aggregates=n=count()", "--by=shop", f"--sdk_container_image={IMAGE}", "--streaming")
    job = service.jobs[first["job"]]
    assert not packages(job) or all("whl" not in p["name"] for p in packages(job))  # the image has all of it
    assert IMAGE in json.dumps(job["environment"]["workerPools"])
    flags = [*SOURCE, *SINK, *service.flags(), f"--sdk_container_image={IMAGE}", "--streaming"]
    assert cli.main(["update", first["job"], "ingest", *flags]) == 2
    said = capsys.readouterr().err
    assert "missing steps" in said
    assert f"{first['job']} runs on as it was" in said
    assert job["currentState"] == "JOB_STATE_RUNNING"
    assert cli.main(["update", first["job"], "rollup", *flags, "--aggregates=n=count(),total=sum(amount)", "--by=shop"]) == 0
    new = service.jobs[re.search(r"job +(\S+)", capsys.readouterr().out)[1]]
    assert (new["replaceJobId"], new["name"]) == (job["id"], job["name"])
    assert job["currentState"] == "JOB_STATE_UPDATED"


def test_the_launcher_of_a_flex_template_gets_its_job(service, tmp_path):
    """Played as the launcher does it: its environment, its flags, the parameters, and the job's file taken from where it asked for it."""
    assert cli.main(["template", "build", "ingest", "--target=dataflow", f"--output={tmp_path}/template"]) == 0
    place = "gs://work/staging/template_launches/2026-11-27_00_00_00-1/job_object"
    parameters = [*SOURCE, *SINK, "--contract=", "--max_rejected_ratio=0.5"]
    launcher = [flag for flag in service.flags() if "endpoint" not in flag]
    env = {**os.environ, "PYTHONPATH": str(SRC), "WORKER_IMAGE": IMAGE, "FLEX_TEMPLATE_PYTHON_PY_FILE": "/template/launch.py"}
    command = [sys.executable, "launch.py", *launcher, "--job_name=my-job", f"--template_location={place}", *parameters]
    ran = subprocess.run(command, cwd=tmp_path / "template", env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    job = json.loads(service.objects[place.removeprefix("gs://")])
    assert job["name"] == "my-job"
    assert IMAGE in json.dumps(job["environment"]["workerPools"])
    assert service.jobs == {}  # it is the launcher that starts it
    ran = subprocess.run([*command, "--source_pth=x"], cwd=tmp_path / "template", env=env, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "did you mean --source_path?" in ran.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--sink_path=out"], "out is a path of one machine"),
        (["--dead_letters=rejected"], "--dead_letters: rejected is a path of one machine"),
        (["--sink=duckdb", "--sink_path=shop.duckdb", "--sink_table=t"], "on the disk of one machine"),
        (["--output_executable_path=job.jar"], "only jobs for Flink are kept as a jar"),
    ],
)
def test_places_of_one_machine_are_refused(service, capsys, flags, told):
    assert cli.main(["submit", "ingest", *SOURCE, *SINK, *service.flags(), *flags]) == 2
    assert told in capsys.readouterr().err
    assert service.jobs == {}
    assert list(service.objects) == ["data/in/rows.jsonl"]


@pytest.mark.parametrize(
    ("runner", "flags", "told"),
    [
        ("FnApiRunner", {}, "inside this process"),
        ("PrismRunner", {}, "inside this process"),
        ("FlinkRunner", {}, "a Flink inside this process"),
        ("FlinkRunner", {"flink_master": "h:8081", "environment_type": "LOOPBACK"}, "LOOPBACK"),
        ("SparkRunner", {}, "the job server is not named"),
    ],
)
def test_what_ends_with_the_process_is_not_submitted(runner, flags, told):
    assert [told in problem.what for problem in not_to_submit(runner, flags)] == [True]


def test_jobs_have_names_that_dataflow_takes():
    assert _runner.job_name("DataflowRunner", "2026-11-24T00:00_X") == "run-2026-11-24t00-00-x"
    assert _runner.job_name("DataflowRunner", "ingest-0123") == "ingest-0123"
    assert _runner.job_name("FlinkRunner", "2026-11-24") == "2026-11-24"
