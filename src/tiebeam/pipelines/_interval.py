"""An interval of event time, `--from` and `--to`: how a schedule has each run move the rows of its own hours or days."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.options import JobOptions, option
from tiebeam.rows import ROW_TIME
from tiebeam.transforms.filter import Filter

_EXAMPLE = "2026-01-01T00:00:00Z"


class IntervalOptions(JobOptions):
    """The options of a pipeline that can be held to an interval."""

    from_: str | None = option(None, help="Only rows whose event time is at or after this time", example=_EXAMPLE)
    to: str | None = option(None, help="Only rows whose event time is before this time", example="2026-01-02T00:00:00Z")

    def check(self) -> Iterable[Problem | tuple[str, ...]]:
        yield from super().check()
        bounds = {flag: _time(text) for flag, text in (("from", self.from_), ("to", self.to)) if text is not None}
        for flag in (flag for flag, time in bounds.items() if time is None):
            yield "is no time with a zone", flag, f"--{flag}={_EXAMPLE}"
        start, end = bounds.get("from"), bounds.get("to")
        if start and end and start >= end:
            yield f"the interval from {self.from_} to {self.to} holds no moment", "to", "name a later end"


def within(rows: beam.PCollection, options: IntervalOptions) -> beam.PCollection:
    """The rows of the interval, all where none was asked for; those left out are counted."""
    condition = _condition(options)
    return rows | "Within" >> Filter(condition) if condition else rows


def checks(options: IntervalOptions) -> list[Any]:
    """What the first rows of a source are held to: that they have an event time, if an interval was asked for."""
    return [_has_time] if _condition(options) else []


def _has_time(schema: pa.Schema) -> None:
    if ROW_TIME not in schema.names:
        what = "an interval is one of event time, and the rows have none"
        raise ConfigError(Problem(what, "--from, --to", "name the column that holds it: --source_event_time=COLUMN"))


def _condition(options: IntervalOptions) -> str:
    bounds = ((">=", options.from_), ("<", options.to))
    return " AND ".join(f"{ROW_TIME} {sign} TIMESTAMPTZ '{_time(text)}'" for sign, text in bounds if text is not None)


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None
