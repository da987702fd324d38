"""Sessions: rows of a key that follow one another closely, in event time.

A session ends when no row comes for `gap`, as in Beam's `Sessions`: a row exactly `gap` after the last begins a new one. With
`longest` it also ends that long after it began, whatever comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, concat, one_batch, with_column
from tiebeam.transforms._fold import Fold, Folded, Tables, names, times_of
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._order import Runs, runs_of
from tiebeam.transforms._partials import Partials, Parts
from tiebeam.transforms._reducers import Reducer
from tiebeam.transforms._search import leaps
from tiebeam.transforms._shards import SHARDS, ids_of
from tiebeam.transforms._states import KEY, combine
from tiebeam.transforms._windows import lengths

ID, START, END, ROWS, ROW = "session_id", "session_start", "session_end", "session_rows", "session_row"
_NUMBER = KEY + "session"
_OPEN, _TYPES, _PART = "open", "types", "part "


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


class SessionFold(Fold):
    """Remembers the open sessions of a shard: `open` has one row each, its `row_time` the last row's."""

    def __init__(self, by: tuple[str, ...], gap: int, longest: int, rows_out: bool, partials: Partials):
        self.keys = {"rows": by}
        self.by = by
        self.gap = gap
        self.longest = longest
        self.rows_out = rows_out
        self.partials = partials

    def check(self, name: str, rows: pa.Schema) -> None:
        missing = [c for c in self.partials.columns if c not in rows.names and c != ROW_POSITION]
        problems = [Problem(f"there is no column {c!r}", "Sessionize", f"the rows have: {', '.join(rows.names)}") for c in missing]
        if self.rows_out:
            taken = [c for c in (ID, START, ROW) if c in rows.names]
            problems += [Problem(f"the rows have a column {c!r} already", "Sessionize", "rename it before") for c in taken]
        if problems:
            raise ConfigError(*problems)
        self.partials.types(rows)

    def trim(self, name: str, rows: RowBatch) -> RowBatch:
        if self.rows_out:
            return rows
        needed = dict.fromkeys([*self.by, ROW_TIME, *self.partials.columns])
        return rows.select([c for c in needed if c in rows.schema.names])

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        opened, fresh = state.get(_OPEN), rows.get("rows")
        known = ([opened.select([*self.by, ROW_TIME])] if opened is not None else []) + ([fresh] if fresh is not None else [])
        if not known:
            return Folded()
        together = concat(known)
        found = self._sessions(runs_of(together, self.by), opened)
        table = together.select(self.by).take(pa.array(found.order[found.first]))
        ends = found.last + self.gap
        ends = np.minimum(ends, found.starts + self.longest) if self.longest else ends
        over = ends <= upto
        parts, types = self._parts(state, fresh, found) if self.partials.reducers else ({}, None)
        told = self._rows(fresh, table, found) if self.rows_out else self._told(table, found, ends, over, parts, types)
        return Folded(told, self._left(table, found, ~over, parts, types), int(ends[~over].min()) if (~over).any() else None)

    def _sessions(self, runs: Runs, opened: RowBatch | None) -> _Sessions:
        """Where sessions begin. What was open before is the first row of its key."""
        old = opened.num_rows if opened is not None else 0
        order, times = runs.order, runs.times
        before = np.flatnonzero(order < old)
        starts, counts = times.copy(), np.ones(len(times), np.int64)
        if opened is not None:
            starts[before] = _micros(opened.column(START))[order[before]]
            counts[before] = opened.column(ROWS).to_numpy()[order[before]]
        begins = (np.diff(runs.run, prepend=-1) != 0) | (np.diff(times, prepend=times[0]) >= self.gap)
        first = np.flatnonzero(begins)
        if self.longest:
            begins = leaps(times, first, np.append(first, len(times))[1:], starts[first], self.longest)
            first = np.flatnonzero(begins)
        last = times[np.append(first, len(times))[1:] - 1]
        return _Sessions(order, np.cumsum(begins) - 1, first, starts[first], last, np.add.reduceat(counts, first), counts, old)

    def _parts(self, state: Tables, fresh: RowBatch | None, found: _Sessions) -> tuple[Parts, pa.Schema]:
        """What the reducers know of each session, by its number."""
        number = np.empty(len(found.order), np.int64)
        number[found.order] = found.number
        parts = {name: [table] for name, table in _kept(state, number[: found.old]).items()}
        known = [state[_TYPES]] if _TYPES in state else []
        if fresh is not None:
            read = self.partials.read(fresh)
            for name, table in self.partials.lift(read, {"session": pa.array(number[found.old :])}).items():
                parts.setdefault(name, []).append(table)
            known.append(RowBatch.from_arrays([pa.nulls(1, field.type) for field in read.schema], schema=read.schema))
        merged = {name: combine(pa.concat_tables(tables, promote_options="default")) for name, tables in parts.items()}
        return merged, concat(known).schema

    def _told(self, table: RowBatch, found: _Sessions, ends: np.ndarray, over: np.ndarray, parts: Parts, types: pa.Schema | None):
        if not over.any():
            return
        columns = self._named(table, found) | {END: times_of(found.last), ROWS: pa.array(found.counts)}
        told = RowBatch.from_pydict(columns | {ROW_TIME: times_of(ends - 1)}).filter(pa.array(over))
        if types is not None:
            chosen = {name: part.filter(over[part.column(_NUMBER).to_numpy()]) for name, part in parts.items()}
            lowered = self.partials.lower(chosen, types)
            place = told.num_columns - 1
            for i, (name, kind) in enumerate(self.partials.types(types).items()):
                column = lowered.column(name).cast(kind).combine_chunks()
                told = told.add_column(place + i, pa.field(name, kind), column)
        yield told

    def _named(self, table: RowBatch, found: _Sessions) -> dict[str, pa.Array]:
        start = times_of(found.starts)
        keys = dict(zip(self.by, table.columns, strict=True))
        return keys | {ID: ids_of([*keys.values(), start]), START: start}

    def _rows(self, fresh: RowBatch | None, table: RowBatch, found: _Sessions) -> Iterator[RowBatch]:
        if fresh is None:
            return
        new = found.order >= found.old
        number = found.number[new]
        running = np.cumsum(found.each)
        nth = (running - (running - found.each)[found.first][found.number])[new]
        named = self._named(table, found)
        rows = fresh.take(pa.array(found.order[new] - found.old))
        for name, column in ((ID, named[ID].take(pa.array(number))), (START, named[START].take(pa.array(number))), (ROW, pa.array(nth))):
            rows = with_column(rows, name, column)
        yield rows

    def _left(self, table: RowBatch, found: _Sessions, stay: np.ndarray, parts: Parts, types: pa.Schema | None) -> Tables:
        """The sessions that are not over, numbered anew."""
        if not stay.any():
            return {}
        columns = dict(zip(self.by, table.columns, strict=True))
        columns |= {ROW_TIME: times_of(found.last), START: times_of(found.starts), ROWS: pa.array(found.counts)}
        left = {_OPEN: RowBatch.from_pydict(columns).filter(pa.array(stay))}
        if types is None:
            return left
        anew = np.cumsum(stay) - 1
        for name, part in parts.items():
            number = part.column(_NUMBER).to_numpy()
            chosen = part.filter(pa.array(stay[number]))
            left[_PART + name] = one_batch(_renumbered(chosen, anew))
        return left | {_TYPES: RowBatch.from_arrays([pa.nulls(1, field.type) for field in types], schema=types)}


@dataclass(frozen=True)
class _Sessions:
    """Sessions over ordered rows, of which the first `old` came from the state: the number of each row's session, and of each session
    its first row, when it began, the time of its last row, and its rows; `each` is how many rows an ordered row stands for."""

    order: np.ndarray
    number: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    last: np.ndarray
    counts: np.ndarray
    each: np.ndarray
    old: int


def _kept(state: Tables, numbers: np.ndarray) -> Parts:
    parts = {name.removeprefix(_PART): pa.Table.from_batches([rows]) for name, rows in state.items() if name.startswith(_PART)}
    return {name: _renumbered(part, numbers) for name, part in parts.items()}


def _renumbered(part: pa.Table, anew: np.ndarray) -> pa.Table:
    at = part.schema.get_field_index(_NUMBER)
    return part.set_column(at, _NUMBER, pa.array(anew[part.column(_NUMBER).to_numpy()]))


def _micros(times: pa.Array) -> np.ndarray:
    return times.cast(pa.int64()).to_numpy()
