"""Partial results of reducers: of some rows, merged in any order and grouping, and what they say at last.

They come in parts, each a table of states (tiebeam.transforms._states): `""` for all reducers that need no finer groups, and
one part per fine reducer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, RowBatch
from tiebeam.transforms._reducers import First, Last, Reducer
from tiebeam.transforms._sketches import FineReducer
from tiebeam.transforms._states import FINE, KEY, Rows, States, combine, plain

Parts = dict[str, pa.Table]


class Partials:
    """What some reducers, by the names of their results, know of groups of rows."""

    def __init__(self, reducers: Mapping[str, Reducer]):
        self.reducers = dict(reducers)

    @cached_property
    def columns(self) -> list[str]:
        """The columns they read; a position may be absent."""
        read = {c for reducer in self.reducers.values() for c in reducer.columns()}
        picks = any(isinstance(r, First | Last) for r in self.reducers.values())
        return sorted(read | ({ROW_POSITION} if picks else set()))

    def problems(self, taken: Iterable[str]) -> Iterator[Problem]:
        """What is wrong with them; `taken` are the other columns of the result."""
        for name, reducer in self.reducers.items():
            if name in taken:
                yield Problem("is the name of a column of the result already", name, "choose another name")
            if isinstance(reducer, Reducer):
                yield from (Problem(trouble, name) for trouble in reducer.problems())
            else:
                yield Problem(f"{reducer!r} is no reducer", name, 'write Sum("amount"), Count(), …')

    def check(self, rows: pa.Schema) -> None:
        """Raises ConfigError when rows of a schema lack a column that is read, or cannot be reduced so."""
        missing = [c for c in self.columns if c not in rows.names and c != ROW_POSITION]
        if missing:
            there = f"the rows have: {', '.join(rows.names)}"
            raise ConfigError(*(Problem(f"there is no column {c!r}", fix=there) for c in missing))
        self.types(rows)

    def types(self, rows: pa.Schema) -> dict[str, pa.DataType]:
        """The types of the results for rows of a schema; raises ConfigError when they cannot be reduced so."""
        known = pa.schema([(field.name, plain(pa.nulls(0, field.type)).type) for field in rows])
        return {name: reducer.type_of(known) for name, reducer in self.reducers.items()}

    def read(self, batch: RowBatch) -> Rows:
        """The columns of a batch that the reducers read."""
        there = batch.schema.names
        return Rows({c: plain(batch.column(c)) if c in there else pa.nulls(batch.num_rows) for c in self.columns}, batch.num_rows)

    def lift(self, rows: Rows, keys: Mapping[str, pa.Array]) -> Parts:
        """The states of each group of rows."""
        groups = {KEY + name: column for name, column in keys.items()} or {KEY: pa.array(np.zeros(rows.n, np.int8))}
        parts: Parts = {}
        states: dict[str, pa.Array] = {}
        for name, reducer in self.reducers.items():
            if isinstance(reducer, FineReducer):
                parts[name] = combine(pa.table(groups | {FINE: reducer.fine(rows)} | reducer.lift(rows)))
            else:
                states |= reducer.lift(rows)
        return {"": combine(pa.table(groups | states))} | parts

    def lower(self, parts: Parts, rows: pa.Schema) -> pa.Table:
        """The results of merged states: the keys, then a column for each reducer, sorted by the keys."""
        coarse = _sorted(parts[""])
        keys = [c for c in coarse.column_names if c.startswith(KEY)]
        columns = {key: coarse.column(key) for key in keys}
        for name, reducer in self.reducers.items():
            if isinstance(reducer, FineReducer):
                fine, group = _by_group(parts[name])
                columns[name] = reducer.fold(States(fine), group, len(coarse), rows)
            else:
                columns[name] = reducer.lower(States(coarse), rows)
        return pa.table(columns)


def _sorted(states: pa.Table) -> pa.Table:
    keys = [c for c in states.column_names if c.startswith(KEY)]
    return states.take(pc.sort_indices(states, sort_keys=[(key, "ascending") for key in keys])).combine_chunks()


def _by_group(states: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The fine states that count, ordered by group as the coarse ones are, and the number of each one's group."""
    keys = [c for c in states.column_names if c.startswith(KEY)]
    numbered = states.select(keys).append_column("row", pa.array(np.arange(len(states))))
    groups = _sorted(pa.TableGroupBy(numbered, keys, use_threads=False).aggregate([("row", "list")])).column("row_list").combine_chunks()
    lists = groups.chunk(0) if isinstance(groups, pa.ChunkedArray) else groups
    rows = states.take(lists.flatten())
    counts = rows.column(FINE).is_valid()
    return rows.filter(counts).combine_chunks(), lists.value_parent_indices().filter(counts.combine_chunks()).to_numpy()
