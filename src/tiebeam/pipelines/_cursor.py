"""Runs by cursor: each reads only what is new since the last published one.

A run is called `JOB-HASH@UPTO`, where UPTO is the greatest value of the cursor when it was prepared. So the name that a sink notes as it
publishes is also where the next run goes on: rows and cursor become visible in one act. The hash is made of what is read, by which column,
and where it goes, and not of what is in there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from types import ModuleType
from typing import Any

from tiebeam.connectors import Sink, Source, Span
from tiebeam.delivery import CURSOR
from tiebeam.errors import ConfigError, Problem

_MODES = ("append", "upsert")


@dataclass(frozen=True)
class Progress:
    """Where a run begins and where it ends."""

    job: str
    span: Span
    cursor: str
    nulls: int

    @property
    def run_id(self) -> str:
        return f"{self.job}{CURSOR}{self.span.upto}"

    def lines(self) -> list[str]:
        """What is read and what is not, for people."""
        above = f"above {self.span.after}" if self.span.after is not None else "from the beginning"
        return [f"{self.cursor} {above} up to {self.span.upto}", *_unread(self.cursor, self.nulls)]


class NothingNewError(Exception):
    """Says that no row is above the cursor; `last` is the run that was published last, if any."""

    def __init__(self, cursor: str, nulls: int, sink: Sink, last: str | None):
        since = f"since {last}" if last else "to read"
        super().__init__("; ".join([f"nothing new {since}", *_unread(cursor, nulls)]))
        self.sink, self.last = sink, last

    def finish(self) -> None:
        """Has the last run finished, if it was killed while it was made visible."""
        if self.last is not None:
            self.sink.publish(self.last, [])


def go_on(module: ModuleType, options: Any, connectors: dict[str, Any]) -> Progress | None:
    """Sets the one source that has a cursor to what is new; None when none has. Raises ConfigError and NothingNewError."""
    sources = {role: c for role, c in connectors.items() if isinstance(c, Source) and (c.cursor or c.cursor_overlap_secs)}
    if not sources:
        return None
    [(role, source), *_], [sink, *_] = sources.items(), [c for c in connectors.values() if isinstance(c, Sink)]
    if problems := list(_problems(module, options, role, source, connectors)):
        raise ConfigError(*problems)
    name = module.__name__.rpartition(".")[2]
    told = json.dumps([name, source.origin(), source.cursor, type(sink).__name__, sink.location()])
    job = f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    last = max(sink.runs(f"{job}{CURSOR}"), key=_ended, default=None)
    after = last.rpartition(CURSOR)[2] if last else None
    upto, nulls = _newest(role, source, after)
    if upto is None:
        raise NothingNewError(source.cursor, nulls, sink, last)
    source.span = Span(_before(role, after, source.cursor_overlap_secs) if after else None, upto)
    return Progress(job, source.span, source.cursor, nulls)


def _problems(module: ModuleType, options: Any, role: str, source: Source, connectors: dict[str, Any]) -> Iterator[Problem]:
    sinks = {r: c for r, c in connectors.items() if isinstance(c, Sink)}
    if not source.cursor:
        yield Problem("is an overlap of runs by cursor", f"--{role}_cursor_overlap_secs", f"name the column: --{role}_cursor=COLUMN")
        return
    flag = f"--{role}_cursor"
    if not hasattr(module, "BY_CURSOR"):
        yield Problem("this pipeline needs rows that were read before, too", flag, "leave it out, or ingest first")
    if len(connectors) - len(sinks) > 1 or len(sinks) > 1:
        yield Problem("a cursor is kept in one place, for one source", flag, "give one source and one sink")
    if options.run_id:
        yield Problem("a run by cursor is named by it", "--run_id", "leave it out")
    for to, sink in sinks.items():
        if not sink.tells_runs or sink.delivery != "exactly_once":
            what = "this sink cannot tell which run it published last, so the cursor has no place to be kept"
            yield Problem(what, f"--{to}", "write to files, duckdb, or bigquery with delivery=exactly_once")
        if sink.mode not in _MODES:
            yield Problem(f"mode={sink.mode} would leave the new rows only", f"--{to}_mode", f"one of {', '.join(_MODES)}")
        if source.cursor_overlap_secs and sink.mode != "upsert":
            what = "rows within the overlap come again, and would be doubled"
            yield Problem(what, f"--{role}_cursor_overlap_secs", f"--{to}_mode=upsert, with a key, if the sink has it")


def _newest(role: str, source: Source, after: str | None) -> tuple[str | None, int]:
    try:
        return source.newest(after)
    except ConfigError as e:
        raise ConfigError(*(Problem(p.what, f"--{role}_{p.where}", p.fix) for p in e.problems)) from None


def _unread(cursor: str, nulls: int) -> list[str]:
    return [f"{nulls:,} rows without {cursor} are not read, by any run"] if nulls else []


def _value(text: str) -> Decimal | date:
    try:
        return Decimal(text)
    except InvalidOperation:
        return datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)


def _ended(run_id: str) -> Any:
    return _value(run_id.rpartition(CURSOR)[2])


def _before(role: str, text: str, secs: int) -> str:
    """A value so long before another; whole days of dates, rounded up."""
    value = _value(text)
    if not secs:
        return text
    if isinstance(value, Decimal):
        raise ConfigError(Problem("seconds before a number are nothing", f"--{role}_cursor_overlap_secs", "use a cursor that is a time"))
    span = timedelta(seconds=secs) if isinstance(value, datetime) else timedelta(days=-(-secs // 86_400))
    return (value - span).isoformat()
