"""Aggregates of windows: what they say, and, over an endless input, the folds that find it tick by tick.

What is remembered, and what waits for its tick, are partial results by pane and key (tiebeam.transforms._partials), not rows: so
many rows of one key cost no more than as many keys with few rows do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from tiebeam.rows import ROW_TIME, RowBatch, batches, one_batch
from tiebeam.transforms._fold import BEGIN, END, Fold, Folded, Tables, times_of
from tiebeam.transforms._partials import Partials, Parts
from tiebeam.transforms._session_fold import SessionFold
from tiebeam.transforms._states import KEY, agree, combine, plain
from tiebeam.transforms._windows import WINDOW_END, WINDOW_START, Sliding, Windowing

PANE, EARLY, ON_TIME = "pane", "early", "on_time"
_START = KEY + WINDOW_START
_PART, _TYPE, _CLOCK, _FRESH = "part ", "type:", "clock", "max:fresh:"


class Windows:
    """What is asked of windows: which they are, by which keys, and what is computed of each."""

    def __init__(self, by: tuple[str, ...], windowing: Windowing, partials: Partials, panes: bool):
        self.by = by
        self.windowing = windowing
        self.partials = partials
        self.panes = panes

    def lift(self, rows: RowBatch) -> tuple[Parts, pa.Schema]:
        """The partial results of rows by pane and key, and the types of the columns that they are of."""
        panes = times_of(self.windowing.panes(rows.column(ROW_TIME).cast(pa.int64()).to_numpy()))
        read = self.partials.read(rows)
        return self.partials.lift(read, {WINDOW_START: panes} | {key: plain(rows.column(key)) for key in self.by}), read.schema

    def of_panes(self, parts: Parts, after: int = BEGIN, upto: int = END) -> Parts:
        """The partial results of the windows that end in (after, upto]."""
        found = {}
        for name, table in parts.items():
            panes = table.column(_START).cast(pa.int64()).to_numpy()
            number, starts = self.windowing.windows(panes)
            ends = self.windowing.ends(starts)
            asked = (ends > after) & (ends <= upto)
            chosen = table.take(pa.array(number[asked]))
            chosen = chosen.set_column(chosen.schema.get_field_index(_START), _START, times_of(starts[asked]))
            found[name] = chosen if starts is panes else combine(chosen)
        return found

    def told(self, parts: Parts, types: pa.Schema, pane: str = ON_TIME, at: int | None = None) -> Iterator[RowBatch]:
        """The rows of windows; their `row_time` is the last microsecond of each, unless it is given."""
        if not len(parts[""]):
            return
        lowered = self.partials.lower(parts, types)
        ends = self.windowing.ends(lowered.column(_START).cast(pa.int64()).to_numpy())
        columns = {WINDOW_START: lowered.column(_START), WINDOW_END: times_of(ends)}
        columns |= {key: lowered.column(KEY + key) for key in self.by}
        columns |= {name: lowered.column(name).cast(kind) for name, kind in self.partials.types(types).items()}
        columns |= {PANE: pa.array([pane] * len(lowered))} if self.panes else {}
        yield from batches(pa.table(columns | {ROW_TIME: times_of(ends - 1 if at is None else np.full(len(ends), at))}))


class WindowFold(Fold):
    """Remembers the partial results of open windows by part; `clock` says up to when windows were told.

    With early panes each tick also tells what is known of the windows that changed in it; with `discarding` panes what came new, and
    then nothing need be remembered.
    """

    def __init__(self, windows: Windows, discarding: bool):
        self.keys = {"rows": windows.by}
        self.windows = windows
        self.partials = windows.partials
        self.early = windows.panes
        self.discarding = discarding
        self.condenses = not any(reducer.fine_grained for reducer in self.partials.reducers.values())

    def ticks(self, times: np.ndarray, tick: int) -> np.ndarray:
        """That in which the window ends, where windows do not overlap: a month need not be looked at every quarter of an hour."""
        windowing = self.windows.windowing
        if self.early or isinstance(windowing, Sliding):
            return super().ticks(times, tick)
        return (windowing.ends(windowing.panes(times)) - 1) // tick

    def check(self, name: str, rows: pa.Schema) -> None:
        self.partials.check(rows)

    def trim(self, name: str, rows: RowBatch) -> RowBatch:
        needed = dict.fromkeys([*self.windows.by, ROW_TIME, *self.partials.columns])
        return rows.select([c for c in needed if c in rows.schema.names])

    def condense(self, name: str, rows: RowBatch) -> RowBatch:
        return _packed(*self._reduced(rows)) if self.condenses else rows

    def _reduced(self, rows: RowBatch) -> tuple[pa.Table, pa.Schema]:
        """The coarse part of rows, which may have been condensed before."""
        if _START not in rows.schema.names:
            parts, types = self.windows.lift(rows)
            return parts[""], types
        part, types = _unpacked(rows)
        return combine(part), types

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        fresh = rows.get("rows")
        if fresh is None and not state:
            return Folded()
        parts, types = self._known(state, fresh, upto)
        after = int(state[_CLOCK].column(ROW_TIME).cast(pa.int64())[0].as_py()) if state else BEGIN
        told = [self.windows.told(_without_mark(self.windows.of_panes(parts, after, upto)), types)]
        if self.early:
            changed = {name: _changed(table, upto) for name, table in self.windows.of_panes(parts, upto).items()}
            told.append(self.windows.told(_without_mark(changed), types, EARLY, upto - 1))
        results = (batch for pane in told for batch in pane)
        return Folded(results, *(({}, None) if self.discarding else self._left(parts, types, upto)))

    def _known(self, state: Tables, fresh: RowBatch | None, upto: int) -> tuple[Parts, pa.Schema]:
        """All that is known by pane and key; what is fresh carries the mark `upto`."""
        known: dict[str, list[pa.Table]] = {}
        types: pa.Schema | None = None
        if state:
            _, types = _unpacked(state[_PART])
            known = {name.removeprefix(_PART): [_unpacked(rows)[0]] for name, rows in state.items() if name != _CLOCK}
        if fresh is not None:
            if self.condenses:
                table, read = self._reduced(fresh)
                parts = {"": table}
            else:
                parts, read = self.windows.lift(fresh)
            types = read if types is None else agree(types, read)
            for name, table in parts.items():
                marked = table.append_column(_FRESH, pa.array(np.full(len(table), upto))) if self.early else table
                known.setdefault(name, []).append(marked)
        assert types is not None
        return {name: _merged(tables) for name, tables in known.items()}, types

    def _left(self, parts: Parts, types: pa.Schema, upto: int) -> tuple[Tables, int | None]:
        windowing, left, due = self.windows.windowing, {}, END
        for name, table in parts.items():
            number, starts = windowing.windows(table.column(_START).cast(pa.int64()).to_numpy())
            ends = windowing.ends(starts)
            stay = np.zeros(len(table), bool)
            stay[number[ends > upto]] = True
            if stay.any():
                left[_PART + name] = _packed(table.filter(pa.array(stay)), types)
                due = min(due, int(ends[ends > upto].min()))
        return (left | {_CLOCK: RowBatch.from_pydict({ROW_TIME: times_of(np.array([upto]))})}, due) if left else ({}, None)


class SessionWindowFold(SessionFold):
    """Sessions as windows: they begin with their first row and end a gap behind their last."""

    def __init__(self, by: tuple[str, ...], gap: int, partials: Partials):
        super().__init__(by, gap, 0, False, partials)

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        folded = super().fold(state, rows, upto)
        return Folded(map(self._window, folded.rows), folded.state, folded.due)

    def _window(self, session: RowBatch) -> RowBatch:
        over = session.column(ROW_TIME)
        columns = {WINDOW_START: session.column("session_start"), WINDOW_END: times_of(over.cast(pa.int64()).to_numpy() + 1)}
        names = [*self.by, *self.partials.reducers, ROW_TIME]
        return RowBatch.from_pydict(columns | {name: session.column(name) for name in names})


def _merged(tables: list[pa.Table]) -> pa.Table:
    return combine(pa.concat_tables(tables, promote_options="default")) if len(tables) > 1 else tables[0]


def _changed(table: pa.Table, upto: int) -> pa.Table:
    return table.filter(pa.array(table.column(_FRESH).fill_null(BEGIN).to_numpy() == upto))


def _without_mark(parts: Parts) -> Parts:
    return {name: table.drop_columns([_FRESH]) if _FRESH in table.column_names else table for name, table in parts.items()}


def _packed(part: pa.Table, types: pa.Schema) -> RowBatch:
    """A part as a batch, which says the types of the columns that it is of by columns without values."""
    for field in types:
        part = part.append_column(_TYPE + field.name, pa.nulls(len(part), field.type))
    return one_batch(part)


def _unpacked(rows: RowBatch) -> tuple[pa.Table, pa.Schema]:
    told = [name for name in rows.schema.names if name.startswith(_TYPE)]
    types = pa.schema([(name.removeprefix(_TYPE), rows.schema.field(name).type) for name in told])
    return pa.Table.from_batches([rows.drop_columns(told) if told else rows]), types
