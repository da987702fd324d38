"""Rollup: declared aggregates of any source, per window and key, to any sink.

    tiebeam run rollup --source=jsonl --source_path='in/*.jsonl' --source_event_time=at \\
        --sink=parquet --sink_path=out/ --by=shop --window=1h \\
        --aggregates='total=sum(amount),n=count()'

An endless source is rolled up as it comes: each window is written when it is over. Rows that come
later than `--lateness` allows go to the sink `--late`, or are kept with the dead letters.
"""

from __future__ import annotations

import sys
from typing import Any

from tiebeam.connectors import Sink, Source
from tiebeam.options import option, role
from tiebeam.pipelines import _declared, _interval, _job
from tiebeam.transforms.aggregate import Aggregate
from tiebeam.transforms.filter import Filter

ACCEPTS = "Read"


class Options(_interval.IntervalOptions):
    """What `rollup` reads, what it computes of it, and where that goes."""

    source: Source = role("source", help="Where rows come from", example="jsonl")
    sink: Sink = role("sink", help="Where the aggregates go", example="parquet")
    by: tuple[str, ...] = option((), help="Columns that tell groups apart", example="shop,kind")
    window: str | None = option(None, help=f"Windows of event time: {_declared.WINDOWS}; none: the whole input", example="1h")
    aggregates: tuple[str, ...] = option(
        help=f"What to compute: name=function(column), where function is {_declared.AGGREGATES}", example="total=sum(amount),n=count()"
    )
    where: str | None = option(None, help="Only rows for which this holds, in DuckDB's SQL", example="amount > 0")
    late: Sink | None = role("sink", None, help="Where rows of windows that are over go; default: they are dead letters", example="jsonl")
    lateness: str = option("0s", help="How long windows of an endless source stay open for late rows", example="5m")


def build(p: Any, options: Options) -> None:
    window = _declared.window(options.window)
    reducers: dict[str, Any] = _declared.reducers(options.aggregates, "--aggregates")
    late = "output" if options.late is not None else "reject"
    aggregate = Aggregate(by=options.by, window=window, lateness=options.lateness, late=late, **reducers)
    _job.check_rows(options.source, aggregate.output_schema, *_interval.checks(options))
    rows = _interval.within(p | "Read" >> options.source, options)
    if options.where:
        rows = rows | "Where" >> Filter(options.where)
    told = rows | "Aggregate" >> aggregate
    if options.late is not None:
        told.late | "Write late" >> options.late
        told = told.rows
    told | "Write" >> options.sink


def run(argv: list[str] | None = None) -> int:
    """Runs `rollup` from its flags and returns the exit code."""
    return _job.run("rollup", argv)


if __name__ == "__main__":
    sys.exit(run())
