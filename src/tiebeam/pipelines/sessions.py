"""Sessions: a clickstream to one row per session, and to a funnel of steps.

    tiebeam run sessions --source=jsonl --source_path='clicks/*.jsonl' --source_event_time=at \\
        --user=user --event=page --sink=parquet --sink_path=sessions/ \\
        --funnel=home,cart,paid --funnel_sink=parquet --funnel_sink_path=funnel/

The funnel has one row per day and furthest step: how many starts got so far within
`--funnel_within`, and no further. An endless source is read as it comes: a session is written when
it is over.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pyarrow as pa

from tiebeam.connectors import Sink, Source
from tiebeam.errors import ConfigError, Problem
from tiebeam.options import JobOptions, option, role
from tiebeam.pipelines import _job
from tiebeam.rows import RowBatch, with_column
from tiebeam.transforms.aggregate import Aggregate, Count, First, Last
from tiebeam.transforms.detect import Detect, Step
from tiebeam.transforms.frames import MapBatches
from tiebeam.transforms.sessionize import Sessionize
from tiebeam.transforms.timed import Timed

ACCEPTS = "Accept"


class Options(JobOptions):
    """What `sessions` reads, what a session is, and where sessions and funnel go."""

    source: Source = role("source", help="Where rows come from; they need an event time", example="jsonl")
    sink: Sink = role("sink", help="Where sessions go", example="parquet")
    funnel_sink: Sink | None = role("sink", None, help="Where the funnel goes", example="parquet")
    user: tuple[str, ...] = option(("user",), help="Columns that tell users apart", example="user,device")
    gap: str = option("30m", help="A session ends when no row comes for so long", example="30m")
    longest: str | None = option(None, help="A session ends so long after it began, whatever comes", example="1d")
    event: str | None = option(None, help="Column that says what was done; told of each session: the first and the last", example="page")
    funnel: tuple[str, ...] = option((), help="Values of the event column, in the order of the steps", example="home,cart,paid")
    funnel_within: str = option("1d", help="How long after the first step the others count", example="1d")


def build(p: Any, options: Options) -> None:
    if problems := _problems(options):
        raise ConfigError(*problems)
    of_events: dict[str, Any] = {"first_event": First(options.event), "last_event": Last(options.event)} if options.event else {}
    sessionize = Sessionize(options.user, options.gap, options.longest, **of_events)
    _job.check_rows(options.source, sessionize.check)
    rows = p | "Read" >> options.source | "Accept" >> Timed()
    rows | "Sessions" >> sessionize | "Write sessions" >> options.sink
    if options.funnel_sink is not None:
        steps = [Step(value, f"{_name(str(options.event))} = {_text(value)}") for value in options.funnel]
        starts = rows | "Funnel" >> Detect(options.user, steps, within=options.funnel_within, emit="furthest")
        furthest = starts | "Furthest steps" >> Aggregate(by="steps_reached", window="1d", starts=Count())
        named = furthest | "Name steps" >> MapBatches(partial(tell_step, steps=options.funnel), frame="arrow")
        named | "Write funnel" >> options.funnel_sink


def tell_step(furthest: RowBatch, steps: tuple[str, ...]) -> RowBatch:
    """Adds the name of the furthest step."""
    return with_column(furthest, "furthest_step", pa.array(steps).take(pa.array(furthest["steps_reached"].to_numpy() - 1)))


def _problems(options: Options) -> list[Problem]:
    problems = []
    if options.funnel and not options.event:
        problems.append(Problem("says nothing without the column of events", "--funnel", "add --event=COLUMN"))
    if bool(options.funnel) != (options.funnel_sink is not None):
        problems.append(Problem("a funnel needs its steps and a place to go", "--funnel, --funnel_sink", "give both, or none"))
    return problems


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def run(argv: list[str] | None = None) -> int:
    """Runs `sessions` from its flags and returns the exit code."""
    return _job.run("sessions", argv)


if __name__ == "__main__":
    sys.exit(run())
