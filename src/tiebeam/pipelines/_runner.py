"""Which runner runs a job, which flags it understands, and which are refused: bad ones, and modes that lose rows (tiebeam.runners).

Without `--runner`, and for `DirectRunner`, the runner is `FnApiRunner`, in memory, and `PrismRunner` for a source that never ends. Beam's
own DirectRunner chooses among three runners without saying which.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, _BeamArgumentParser

from tiebeam.errors import Problem
from tiebeam.runners import lossy, safe_flags, unsafe_on_flink, without_streams

LOCAL = "FnApiRunner"

# Beam's Python classes do not declare what only a job server reads (FlinkPipelineOptions, SparkPipelineOptions in Java).
FLAGS_OF_JOB_SERVERS = frozenset(
    [
        "allow_non_restored_state",
        "auto_watermark_interval",
        "cache_disabled",
        "checkpoint_dir",
        "checkpoint_timeout_millis",
        "checkpointing_interval",
        "checkpointing_mode",
        "disable_metrics",
        "enable_spark_metric_sinks",
        "enable_stable_input_drain",
        "execution_mode_for_batch",
        "execution_retry_delay",
        "externalized_checkpoints_enabled",
        "fail_on_checkpointing_errors",
        "faster_copy",
        "finish_bundle_before_checkpointing",
        "force_unaligned_checkpoint_enabled",
        "latency_tracking_interval",
        "max_bundle_size",
        "max_bundle_time_mills",
        "max_parallelism",
        "min_pause_between_checkpoints",
        "num_concurrent_checkpoints",
        "number_of_execution_retries",
        "object_reuse",
        "operator_chaining",
        "retain_externalized_checkpoints_on_cancellation",
        "savepoint_path",
        "shutdown_sources_after_idle_ms",
        "spark_master",
        "state_backend",
        "state_backend_storage_path",
        "storage_level",
        "unaligned_checkpoint_enabled",
    ]
)


def known_flags() -> set[str]:
    """Every flag that Beam or one of its job servers understands, as spelt after the two dashes."""
    parser = _BeamArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for declaring in _below(PipelineOptions):
        declaring._add_argparse_args(parser)
    spelt = (name for action in parser._actions for name in action.option_strings)
    return {name.removeprefix("--") for name in spelt} | FLAGS_OF_JOB_SERVERS


def _below(cls: Any) -> Iterator[Any]:
    for child in cls.__subclasses__():
        yield child
        yield from _below(child)


def runner_of(beam_argv: list[str]) -> str:
    """The name of the runner that runs the job, never DirectRunner; what is no name of Beam's stays as it is."""
    given = [value for name, value in map(_parted, beam_argv) if name == "runner"]
    return _named(given[-1]) if given else LOCAL


def job_name(runner: str, run_id: str) -> str:
    """What a job is called: as its run, and on Dataflow in small letters, digits and hyphens, a letter in front."""
    if runner != "DataflowRunner":
        return run_id
    name = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    return name if name[:1].isalpha() else f"run-{name}"


def without_runner(beam_argv: list[str]) -> list[str]:
    """The flags but for those that name the runner."""
    return [flag for flag in beam_argv if _parted(flag)[0] != "runner"]


def with_safe_flags(beam_argv: list[str]) -> list[str]:
    """The flags with those that make a job on Flink safe, where they say nothing else; for other runners, as they are."""
    return [*beam_argv, *safe_flags(dict(map(_parted, beam_argv)))] if runner_of(beam_argv) == "FlinkRunner" else beam_argv


def for_streams(beam_argv: list[str]) -> list[str]:
    """The flags for a job that never ends: Prism where no runner is named, and for Prism where it is and how it loses nothing."""
    named = any(_parted(flag)[0] == "runner" for flag in beam_argv)
    if runner_of(beam_argv) in ("FlinkRunner", "DataflowRunner") and not any(_parted(flag)[0] == "streaming" for flag in beam_argv):
        return [*beam_argv, "--streaming"]
    if named and runner_of(beam_argv) != "PrismRunner":
        return beam_argv
    if any(_parted(flag)[0] == "prism_location" for flag in beam_argv):
        return beam_argv
    from tiebeam.lab import prism

    rule = prism.obtain().flags()
    return [*without_runner(beam_argv), *(flag for flag in rule if flag not in beam_argv)]


def check(beam_argv: list[str]) -> list[Problem]:
    """Says what is wrong with flags meant for Beam (written --name=value): bad values, and modes that lose rows."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            options = PipelineOptions(beam_argv)
            flags = options.get_all_options(retain_unknown_options=True)
            given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    except SystemExit:  # Beam's parser ends the process at the first bad value
        what = said.getvalue().strip().rpartition("error: ")[2]
        return [Problem(what or "these flags are not understood by Beam", "flags of Beam")]
    return list(_problems(runner_of(beam_argv), flags, given))


def _problems(runner: str, flags: dict[str, Any], given: dict[str, Any]) -> Iterator[Problem]:
    names = StandardOptions.KNOWN_RUNNER_NAMES
    if runner not in names and "." not in runner:
        near = difflib.get_close_matches(runner.lower().removesuffix("runner"), [n.lower().removesuffix("runner") for n in names], n=1)
        hint = f"did you mean {_named(near[0])}?" if near else f"one of {', '.join(names)}"
        yield Problem(f"there is no runner called {runner!r}", "--runner", hint)
    yield from lossy(runner, flags)
    if runner == "SparkRunner" and flags["streaming"]:
        yield from without_streams(runner)
    if runner == "FlinkRunner" and flags["streaming"]:
        yield from unsafe_on_flink(given)


def _parted(flag: str) -> tuple[str, str]:
    name, _, value = flag.removeprefix("--").partition("=")
    return name, value


def _named(runner: str) -> str:
    if "." in runner:
        last = runner.rpartition(".")[2]
        runner = last if last in StandardOptions.KNOWN_RUNNER_NAMES else runner
    known = {name.lower(): name for name in StandardOptions.KNOWN_RUNNER_NAMES}
    name = known.get(runner.lower()) or known.get(f"{runner.lower()}runner") or runner
    return LOCAL if name in ("DirectRunner", "SwitchingDirectRunner") else name
