"""Beam's own queries, as they ship with it, on the same lines of JSON and the same runner."""

from __future__ import annotations

import importlib
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.benchmarks.nexmark import nexmark_util
from apache_beam.transforms.window import TimestampedValue

SETTINGS = {
    "auction_skip": 123, "window_size_sec": 10, "window_period_sec": 5, "fanout": 5, "num_max_workers": 5, "max_log_events": 100_000,
    "occasional_delay_sec": 3, "max_auction_waiting_time": 600,
}  # fmt: skip
"""As nexmark_launcher.py of Beam has them."""

WINNERS = "FnApiRunner merges windows of its own kind and hands its coder an _OpaqueWindow: a TypeError, as of Beam 2.77"
UNABLE = {
    4: WINNERS,
    6: WINNERS,
    9: WINNERS,
    12: "windows of processing time are not supported in batch, as its source says",
}
"""Queries that do not run on a bounded input, and why."""


def run(query: int, path: str) -> Any:
    """Runs one query; its rows are counted, as Beam's launcher does."""
    nexmark_util.setup_coder()
    options = PipelineOptions(["--runner=FnApiRunner", "--allow_unsafe_triggers"])
    module = importlib.import_module(f"apache_beam.testing.benchmarks.nexmark.queries.query{query}")
    with beam.Pipeline(options=options) as p:
        parsed = p | beam.io.ReadFromText(path) | beam.ParDo(nexmark_util.ParseJsonEventFn())
        timed = parsed | beam.Map(lambda event: TimestampedValue(event, event.date_time))
        _ = module.load(timed, SETTINGS, options) | nexmark_util.CountAndLog()
