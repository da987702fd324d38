"""Sessions: rows of a key that follow one another closely, in event time.

A session ends when no row comes for `gap`, as in Beam's `Sessions`: a row exactly `gap` after the last begins a new one. With
`longest` it also ends that long after it began, whatever comes.
"""

from __future__ import annotations

from collections.abc import Iterable

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_TIME
from tiebeam.transforms._fold import names
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._partials import Partials
from tiebeam.transforms._reducers import Reducer
from tiebeam.transforms._session_fold import END, ID, ROW, ROWS, START, SessionFold
from tiebeam.transforms._shards import SHARDS
from tiebeam.transforms._windows import lengths


class Sessionize(Keyed):
    """Finds the sessions of each key.

    `by` are the key columns (null is a key like any other), `gap` and `longest` lengths of time. With `emit="sessions"` reducers,
    as `Aggregate` takes them, can say more of each session: `pages=Count("page")`, `first=First("page")`.
    In: rows with the key columns and `row_time`.
    Out: with `emit="sessions"` one row per session: the key columns, `session_id`, `session_start` and `session_end` (the times of
    its first and last row), `session_rows`, the reducers' results, and `row_time`, the last microsecond in which it could have had
    a row. With `emit="rows"` the rows as they are, with `session_id`, `session_start` and `session_row`, the row's number from 1.
    `session_id` is a hash of key and start, so it is the same whenever and wherever the rows are read again.
    Errors: `no_event_time`, `time_out_of_range`, `late`.
    State: one row per key with an open session, and what the reducers know of it; gone when the session is over.
    Time: event time; a session is told when it is over.

    Example:
        >>> import apache_beam as beam
        >>> from datetime import datetime, timezone
        >>> import pyarrow as pa
        >>> from tiebeam.rows import RowBatch
        >>> at = [datetime(2026, 1, 1, 9, minute, tzinfo=timezone.utc) for minute in (0, 10, 55)]
        >>> clicks = RowBatch.from_pydict({"user": ["ann"] * 3, "row_time": pa.array(at, pa.timestamp("us", tz="UTC"))})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     sessions = p | beam.Create([clicks]) | Sessionize(by="user", gap="30m")
        ...     told = sessions | beam.FlatMap(RowBatch.to_pylist)
        ...     _ = told | beam.Map(lambda s: print(s["user"], f"{s['session_start']:%H:%M} {s['session_end']:%H:%M}", s["session_rows"]))
        ann 09:00 09:10 2
        ann 09:55 09:55 1
    """

    def __init__(
        self,
        by: str | Iterable[str],
        gap: str | float = "30m",
        longest: str | float | None = None,
        emit: str = "sessions",
        *,
        tick: str | float = "1m",
        shards: int = SHARDS,
        lateness: str | float = 0,
        late: str = "reject",
        **reducers: Reducer,
    ):
        problems: list[Problem] = []
        gap_micros, longest_micros, tick_micros = lengths(problems, gap=gap, longest=longest, tick=tick)
        (lateness_micros,) = lengths(problems, 0, lateness=lateness)
        fold = SessionFold(names(by), gap_micros, longest_micros, emit == "rows", Partials(reducers))
        if emit not in ("sessions", "rows"):
            problems.append(Problem(f"{emit!r} is not one of sessions, rows", "emit"))
        if emit == "rows" and reducers:
            problems.append(Problem("rows leave before their session is over", next(iter(reducers)), 'use emit="sessions"'))
        problems += fold.partials.problems([*names(by), ID, START, END, ROWS, ROW_TIME])
        taken = {ID, START, END, ROWS, ROW, ROW_TIME} & set(names(by))
        problems += [Problem(f"{name!r} is a column of the result", "by", "rename it before") for name in sorted(taken)]
        if problems:
            raise ConfigError(*problems)
        super().__init__(fold, tick=tick_micros, shards=shards, lateness=lateness_micros, late=late)
