"""The fold of sessions: what is remembered of those that are open, and what is told of each row or of each that is over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, concat, one_batch, with_column
from tiebeam.transforms._fold import Fold, Folded, Tables, times_of
from tiebeam.transforms._order import Runs, runs_of
from tiebeam.transforms._partials import Partials, Parts
from tiebeam.transforms._search import leaps
from tiebeam.transforms._shards import ids_of
from tiebeam.transforms._states import KEY, combine

ID, START, END, ROWS, ROW = "session_id", "session_start", "session_end", "session_rows", "session_row"
_NUMBER = KEY + "session"
_OPEN, _TYPES, _PART = "open", "types", "part "


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
