"""Each setting of Flink that is unsafe for a stream is refused, and a job gets safe ones where it says nothing (docs/runners.md)."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from support.streams import Part, Scripted, piece
from tiebeam import cli
from tiebeam.errors import ConfigError
from tiebeam.io._endless import ReadEndless
from tiebeam.pipelines import _runner
from tiebeam.rows import RowBatch

CLUSTER = ["--runner=FlinkRunner", "--flink_master=flink.example:8081"]
SAFE = {
    "streaming": None,
    "checkpointing_interval": "10000",
    "finish_bundle_before_checkpointing": None,
    "min_pause_between_checkpoints": "500",
    "num_concurrent_checkpoints": "1",
}


def flags(**changed: str | None) -> list[str]:
    """Those of a safe stream with some changed, or left out where `-`."""
    told = {name: value for name, value in {**SAFE, **changed}.items() if value != "-"}
    return ["--runner=FlinkRunner", *(f"--{name}" if value is None else f"--{name}={value}" for name, value in told.items())]


def on_cluster(**changed: str | None) -> list[str]:
    return flags(**{"flink_master": "flink.example:8081", **changed})


@pytest.mark.parametrize(
    "given",
    [
        on_cluster(),
        on_cluster(num_concurrent_checkpoints="-"),
        on_cluster(finish_bundle_before_checkpointing="true"),
        on_cluster(environment_type="DOCKER"),
        on_cluster(environment_type="PROCESS", environment_config='{"command": "/opt/boot"}'),
        on_cluster(environment_type="EXTERNAL", environment_config="pool.example:50000"),
        on_cluster(environment_type="EXTERNAL", environment_config='{"url": "pool.example:50000"}'),
        flags(flink_master="http://localhost:8081", environment_type="LOOPBACK"),
        flags(flink_master="127.0.0.1:8081", environment_type="EXTERNAL", environment_config="localhost:50000"),
        flags(job_endpoint="jobs.example:8099"),
        on_cluster(flink_job_server_jar="/opt/beam-runners-flink-1.19-job-server-2.77.0.jar", flink_version="1.19"),
        on_cluster(flink_job_server_jar="/opt/beam-runners-flink-1.19-job-server-2.77.0.jar"),
        on_cluster(flink_job_server_jar="/opt/flink-2.0/own.jar", flink_version="1.20"),
        ["--runner=FlinkRunner"],  # a batch job may run in a Flink of its own
        ["--runner=PrismRunner", "--experiments=prism_disable_sdf_split", "--streaming"],
    ],
)
def test_safe_settings_pass(given):
    assert _runner.check(given) == []


@pytest.mark.parametrize(
    ("given", "where", "what", "fix"),
    [
        (flags(), "--flink_master", "ends with it", "HOST:PORT"),
        (flags(flink_master="[local]"), "--flink_master", "ends with it", "HOST:PORT"),
        (flags(flink_master="[auto]"), "--flink_master", "ends with it", "HOST:PORT"),
        (on_cluster(checkpointing_interval="-"), "--checkpointing_interval", "checkpoints are off", "=10000"),
        (on_cluster(checkpointing_interval="0"), "--checkpointing_interval", "checkpoints are off", "=10000"),
        (on_cluster(checkpointing_interval="-1"), "--checkpointing_interval", "checkpoints are off", "=10000"),
        (on_cluster(checkpointing_interval="10s"), "--checkpointing_interval", "checkpoints are off", "milliseconds"),
        (on_cluster(finish_bundle_before_checkpointing="-"), "--finish_bundle_before_checkpointing", "dropped as late", "add the flag"),
        (on_cluster(finish_bundle_before_checkpointing="false"), "--finish_bundle_before_checkpointing", "dropped as late", "add the flag"),
        (on_cluster(num_concurrent_checkpoints="2"), "--num_concurrent_checkpoints", "overlap", "=1"),
        (on_cluster(min_pause_between_checkpoints="-"), "--min_pause_between_checkpoints", "less than 500 ms", "=500"),
        (on_cluster(min_pause_between_checkpoints="0"), "--min_pause_between_checkpoints", "less than 500 ms", "=500"),
        (on_cluster(environment_type="LOOPBACK"), "--environment_type", "do not find it", "PROCESS"),
        (flags(job_endpoint="jobs.example:8099", environment_type="LOOPBACK"), "--environment_type", "do not find it", "PROCESS"),
        (
            on_cluster(environment_type="EXTERNAL", environment_config="localhost:50000"),
            "--environment_config",
            "another machine on each worker",
            "workers can reach",
        ),
        (
            on_cluster(environment_type="EXTERNAL", environment_config='{"url": "127.0.0.1:50000"}'),
            "--environment_config",
            "another machine on each worker",
            "workers can reach",
        ),
        (
            on_cluster(environment_type="EXTERNAL", environment_options="external_service_address=localhost:50000"),
            "--environment_config",
            "another machine on each worker",
            "workers can reach",
        ),
        (
            on_cluster(flink_job_server_jar="/opt/beam-runners-flink-1.19-job-server-2.77.0.jar", flink_version="1.20"),
            "--flink_version",
            "for Flink 1.19",
            "--flink_version=1.19",
        ),
    ],
)
def test_an_unsafe_setting_of_a_stream_is_refused_with_reason_and_fix(given, where, what, fix):
    (problem,) = _runner.check(given)
    assert problem.where == where
    assert what in problem.what
    assert fix in problem.fix
    assert _runner.check([flag for flag in given if flag != "--streaming"]) == []


def test_a_job_gets_safe_settings_where_it_says_nothing():
    given = [*CLUSTER, "--streaming"]
    assert len(_runner.check(given)) == 3
    full = _runner.with_safe_flags(given)
    assert _runner.check(full) == []
    assert full[: len(given)] == given
    assert sorted(full[len(given) :]) == [
        "--checkpointing_interval=10000",
        "--finish_bundle_before_checkpointing",
        "--flink_submit_uber_jar",
        "--max_parallelism=128",
        "--min_pause_between_checkpoints=500",
        "--num_concurrent_checkpoints=1",
    ]
    assert _runner.with_safe_flags(full) == full


def test_what_a_job_says_itself_stays():
    given = [*CLUSTER, "--checkpointing_interval=60000", "--max_parallelism=1024", "--finish_bundle_before_checkpointing=false"]
    full = _runner.with_safe_flags(given)
    assert [flag for flag in full if "checkpointing" in flag or "max_parallelism" in flag] == given[2:]


@pytest.mark.parametrize("where", [[], ["--flink_master=[local]"], ["--flink_master=flink.example:8081", "--job_endpoint=jobs.example:1"]])
def test_only_a_cluster_that_is_named_gets_the_job_as_one_jar(where):
    assert "--flink_submit_uber_jar" not in _runner.with_safe_flags(["--runner=FlinkRunner", *where])


@pytest.mark.parametrize("runner", [[], ["--runner=PrismRunner"], ["--runner=SparkRunner"], ["--runner=DataflowRunner"]])
def test_other_runners_get_nothing(runner):
    assert _runner.with_safe_flags([*runner, "--streaming"]) == [*runner, "--streaming"]


@pytest.mark.parametrize("missing", ["checkpointing_interval", "finish_bundle_before_checkpointing", "min_pause_between_checkpoints"])
def test_a_source_without_end_is_refused_when_the_graph_is_built(missing):
    """Also where nobody said that the job is a stream."""
    rows = RowBatch.from_pydict({"n": pa.array([1])})
    source = Scripted((Part((piece(rows, 0),)),))
    safe = [flag for flag in on_cluster() if flag != "--streaming"]
    _ = beam.Pipeline(options=PipelineOptions(safe)) | ReadEndless(source)
    with pytest.raises(ConfigError, match=missing):
        _ = beam.Pipeline(options=PipelineOptions([flag for flag in safe if missing not in flag])) | ReadEndless(source)


def test_an_unsafe_stream_ends_before_anything_is_submitted(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("id\n1\n")
    job = ["run", "ingest", "--source=csv", f"--source_path={tmp_path}/rows.csv", "--sink=parquet", f"--sink_path={tmp_path}/out"]
    nowhere = ["--runner=FlinkRunner", "--flink_master=localhost:1"]  # reaching it would end with another error
    assert cli.main([*job, *nowhere, "--streaming", "--checkpointing_interval=0"]) == 2
    assert "checkpoints are off" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
