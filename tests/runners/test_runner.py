"""Which runner runs a job, which flags are Beam's, and which modes are refused (why: test_losses.py)."""

from __future__ import annotations

import logging

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tiebeam.pipelines import _runner

SAFE_PRISM = "--experiments=prism_disable_sdf_split"


@pytest.mark.parametrize(
    ("flags", "runner"),
    [
        ([], "FnApiRunner"),
        (["--direct_num_workers=2"], "FnApiRunner"),
        (["--runner=DirectRunner"], "FnApiRunner"),
        (["--runner=direct"], "FnApiRunner"),
        (["--runner=SwitchingDirectRunner"], "FnApiRunner"),
        (["--runner=apache_beam.runners.direct.direct_runner.DirectRunner"], "FnApiRunner"),
        (["--runner=prism"], "PrismRunner"),
        (["--runner=FLINKRUNNER"], "FlinkRunner"),
        (["--runner=spark", "--runner=flink"], "FlinkRunner"),
        (["--runner=my.own.Runner"], "my.own.Runner"),
    ],
)
def test_the_runner_has_one_name(flags, runner):
    assert _runner.runner_of(flags) == runner
    assert _runner.without_runner([*flags, "--streaming"]) == [f for f in flags if "runner=" not in f] + ["--streaming"]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
        ["--runner=PrismRunner", SAFE_PRISM],
        ["--runner=PrismRunner", "--experiments=other,prism_disable_sdf_split", "--experiments=more", "--streaming"],
        ["--runner=SparkRunner"],
        ["--runner=FlinkRunner", "--checkpointing_interval=1000"],
        ["--runner=my.own.Runner"],
    ],
)
def test_safe_modes_pass(flags):
    assert _runner.check(flags) == []


@pytest.mark.parametrize(
    ("flags", "where", "what", "fix"),
    [
        (["--direct_running_mode=multi_threading"], "--direct_running_mode", "loses rows with worker threads", "multi_processing"),
        (["--runner=PrismRunner"], "--runner=PrismRunner", "state is overwritten", f"add {SAFE_PRISM}"),
        (["--runner=prism", "--experiments=other"], "--runner=PrismRunner", "state is overwritten", f"add {SAFE_PRISM}"),
        (["--runner=BundleBasedDirectRunner"], "--runner", "do not hold back the watermark", "--runner=FnApiRunner"),
        (["--runner=apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"], "--runner", "do not hold", "FnApiRunner"),
        (["--runner=spark", "--streaming"], "--runner", "cannot run streams", "Flink"),
        (["--runner=Flnk"], "--runner", "there is no runner called 'Flnk'", "did you mean FlinkRunner?"),
        (["--direct_num_workers=two"], "flags of Beam", "invalid int value: 'two'", ""),
        (["--direct_running_mode=fast"], "flags of Beam", "invalid choice: 'fast'", ""),
    ],
)
def test_modes_that_lose_rows_and_bad_values_are_refused_with_reason_and_fix(flags, where, what, fix, capfd):
    (problem,) = _runner.check(flags)
    assert problem.where == where
    assert what in problem.what
    assert fix in problem.fix
    assert capfd.readouterr().err == ""


def test_every_refusal_is_told_at_once():
    flags = ["--runner=PrismRunner", "--direct_running_mode=multi_threading"]
    assert len(_runner.check(flags)) == 2


def test_every_flag_of_beam_is_known():
    known = _runner.known_flags()
    assert {"runner", "experiments", "no_wait_until_finish", "parallelism", "prism_location", "gcp_oauth_scopes", "s3_region_name"} <= known
    assert {"checkpointing_interval", "finish_bundle_before_checkpointing", "max_parallelism", "flink_version"} <= known


def test_flags_of_subclasses_of_subclasses_are_known():
    class Outer(PipelineOptions):
        @classmethod
        def _add_argparse_args(cls, parser):
            parser.add_argument("--outer_flag_of_a_test")

    class Inner(Outer):
        @classmethod
        def _add_argparse_args(cls, parser):
            parser.add_argument("--inner_flag_of_a_test")

    assert {"outer_flag_of_a_test", "inner_flag_of_a_test"} <= _runner.known_flags()


def test_checking_flags_of_job_servers_makes_no_noise(caplog):
    with caplog.at_level(logging.WARNING):
        assert _runner.check(["--runner=FlinkRunner", "--checkpointing_interval=1000"]) == []
    assert caplog.records == []
