"""What runners cannot do: the modes in which Beam loses rows, the runners on which no stream without end can be read, and draining.

Each refusal of a lossy mode has a test that shows the loss (tests/runners), so that an upgrade of Beam tells when it can go.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from tiebeam.errors import Problem

DRAIN = threading.Event()
"""Set to have the sources of this process end where they are caught up, which is how a local stream is drained."""

PRISM_RULE = "prism_disable_sdf_split"
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
