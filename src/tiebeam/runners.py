"""What runners cannot do: the modes in which Beam loses rows, those on which no stream without end runs, Flink's settings, and draining.

Each refusal of a lossy mode has a test that shows the loss (tests/runners), so that an upgrade of Beam tells when it can go.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from tiebeam.errors import Problem

DRAIN = threading.Event()
"""Set to have the sources of this process end where they are caught up, which is how a local stream is drained."""

PRISM_RULE = "prism_disable_sdf_split"
MIN_PAUSE_MS = 500
# What a job on Flink runs with unless it says otherwise; a flag without a value is only there or not.
SAFE_ON_FLINK = {
    "checkpointing_interval": "10000",
    "finish_bundle_before_checkpointing": "",
    "min_pause_between_checkpoints": str(MIN_PAUSE_MS),
    "num_concurrent_checkpoints": "1",
    "max_parallelism": "128",
}
STREAMING = "--runner=PrismRunner on one machine, or Flink or Dataflow; or give the source an end"


def lossy(runner: str, flags: Mapping[str, Any]) -> Iterator[Problem]:
    """Says why a job would lose rows on this runner with these flags of Beam (`PipelineOptions.get_all_options`)."""
    if runner == "BundleBasedDirectRunner":
        yield Problem(
            "BundleBasedDirectRunner loses rows: its timers do not hold back the watermark",
            "--runner",
            "--runner=FnApiRunner for bounded input, --runner=PrismRunner for streams",
        )
    if flags["direct_running_mode"] == "multi_threading":
        yield Problem(
            "FnApiRunner loses rows with worker threads: some never reach a GroupByKey",
            "--direct_running_mode",
            "leave it out (in_memory), or --direct_running_mode=multi_processing",
        )
    experiments = {part for value in flags["experiments"] or () for part in value.split(",")}
    if runner == "PrismRunner" and PRISM_RULE not in experiments:
        yield Problem(
            "Prism loses rows: it splits bundles inside a key, and state is overwritten",
            "--runner=PrismRunner",
            f"add --experiments={PRISM_RULE}",
        )


def without_streams(runner: str) -> Iterator[Problem]:
    """Says why a source that never ends cannot be read on this runner."""
    reasons = {
        "FnApiRunner": "FnApiRunner cannot run streams: it reads no watermark of a source, so no window ever closes",
        "DirectRunner": "DirectRunner picks one of three runners without saying which, and two of them cannot run streams",
        "SparkRunner": "Beam's portable Spark runner cannot run streams: unbounded sources and finalization fail there",
    }
    name = "DirectRunner" if runner == "SwitchingDirectRunner" else runner
    if name in reasons:
        yield Problem(reasons[name], "--runner", STREAMING)


def safe_flags(flags: Mapping[str, Any]) -> list[str]:
    """The flags to add to those given for a job on Flink, so that a stream is safe there; on a batch job they have no effect."""
    added = {name: value for name, value in SAFE_ON_FLINK.items() if name not in flags}
    if _flink(flags) and not flags.get("job_endpoint"):
        added |= {} if "flink_submit_uber_jar" in flags else {"flink_submit_uber_jar": ""}  # asks the cluster for its version
    return [f"--{name}={value}" if value else f"--{name}" for name, value in added.items()]


def unsafe_on_flink(flags: Mapping[str, Any]) -> Iterator[Problem]:
    """Says which settings of a stream on Flink lose or hold up its rows; `flags` are those given, without Beam's defaults."""
    if not _flink(flags) and not flags.get("job_endpoint") and not flags.get("output_executable_path"):
        yield Problem("a Flink inside this process ends with it, and the stream cannot go on", "--flink_master", "HOST:PORT of a cluster")
    yield from _unsafe_checkpoints(flags)
    yield from _unreachable_workers(flags)
    told = re.search(r"flink[-_:](\d+\.\d+)(?!\d)", str(flags.get("flink_job_server_jar") or "").rpartition("/")[2])
    if told and flags.get("flink_version", told[1]) != told[1]:
        yield Problem(f"the job server is for Flink {told[1]}", "--flink_version", f"--flink_version={told[1]}, or the other job server")


def not_to_submit(runner: str, flags: Mapping[str, Any]) -> Iterator[Problem]:
    """Says why a job cannot be handed over with these flags: what runs it would end with this process, or is not named."""
    file = flags.get("output_executable_path")
    if runner in ("FnApiRunner", "PrismRunner"):
        yield Problem(
            f"{runner} runs a job inside this process", "--runner", "tiebeam run, or --runner=FlinkRunner, SparkRunner or DataflowRunner"
        )
        return
    if str(flags.get("environment_type") or "").upper() == "LOOPBACK":
        reason = "LOOPBACK runs the Python of the job in this process, which ends before the job"
        yield Problem(reason, "--environment_type", "--environment_type=DOCKER, EXTERNAL or PROCESS")
    if runner == "FlinkRunner" and not (_flink(flags) or flags.get("job_endpoint") or file):
        yield Problem("a Flink inside this process ends with it", "--flink_master", "HOST:PORT of a cluster")
    if runner == "SparkRunner" and not flags.get("job_endpoint"):
        yield Problem("the job server is not named", "--job_endpoint", "HOST:PORT of Beam's job server for Spark")
    if file and runner != "FlinkRunner":
        yield Problem("only jobs for Flink are kept as a jar here", "--output_executable_path", "leave it out")


def _unsafe_checkpoints(flags: Mapping[str, Any]) -> Iterator[Problem]:
    if _number(flags, "checkpointing_interval", 0) <= 0:
        reason = "checkpoints are off, so nothing is recovered, and sources and sinks never hear that rows are safe"
        yield Problem(reason, "--checkpointing_interval", "--checkpointing_interval=10000 (milliseconds)")
    if str(flags.get("finish_bundle_before_checkpointing", False)).lower() != "true":
        reason = "a bundle that a checkpoint closes lets the watermark pass its own rows, which are then dropped as late"
        yield Problem(reason, "--finish_bundle_before_checkpointing", "add the flag, without a value")
    if _number(flags, "num_concurrent_checkpoints", 1) > 1:
        reason = "checkpoints overlap, and it cannot be told which rows the finished one holds"
        yield Problem(reason, "--num_concurrent_checkpoints", "--num_concurrent_checkpoints=1")
    if _number(flags, "min_pause_between_checkpoints", 0) < MIN_PAUSE_MS:
        reason = f"with less than {MIN_PAUSE_MS} ms between checkpoints a slow one is followed by the next at once, and rows wait"
        yield Problem(reason, "--min_pause_between_checkpoints", f"--min_pause_between_checkpoints={MIN_PAUSE_MS}")


def _unreachable_workers(flags: Mapping[str, Any]) -> Iterator[Problem]:
    """LOOPBACK runs the Python of a job in the process that submits it; EXTERNAL, at an address."""
    kind = str(flags.get("environment_type") or "").upper()
    if _is_here(str(flags.get("job_endpoint") or _flink(flags) or "localhost")):
        return
    if kind == "LOOPBACK":
        reason = "LOOPBACK runs Python in this process, where the workers of another machine do not find it"
        yield Problem(reason, "--environment_type", "--environment_type=DOCKER, or PROCESS with a boot program on the workers")
    elif kind == "EXTERNAL" and (at := _external(flags)) and _is_here(at):
        reason = f"{at} is another machine on each worker"
        yield Problem(reason, "--environment_config", "an address that the workers can reach, or localhost with a worker pool beside each")


def _flink(flags: Mapping[str, Any]) -> str | None:
    """The address of the cluster; none for Beam's `[auto]` and `[local]`, which start one inside the process."""
    master = str(flags.get("flink_master") or "[auto]").strip()
    return None if master in ("[auto]", "[local]") else master


def _external(flags: Mapping[str, Any]) -> str:
    """Where the workers of an EXTERNAL environment are."""
    for option in flags.get("environment_options") or ():
        if option.startswith("external_service_address="):
            return option.partition("=")[2]
    config = str(flags.get("environment_config") or "")
    try:
        return str(json.loads(config)["url"])
    except (ValueError, KeyError, TypeError):
        return config


def _is_here(address: str) -> bool:
    host = re.sub(r"^https?://", "", address.strip()).rpartition(":")[0] or address
    return host in ("localhost", "127.0.0.1", "[::1]")


def _number(flags: Mapping[str, Any], name: str, default: int) -> int:
    """A flag that counts; what is no number is as good as none."""
    try:
        return int(flags.get(name, default))
    except (TypeError, ValueError):
        return default
