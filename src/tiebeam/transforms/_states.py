"""States: what `Aggregate` knows of a group before all of it was seen, as columns that merge in any order and grouping.

A state is some columns called `kind:column:part`, one row per group; groups stand in the columns `key:NAME` and `fine:`.
The kind alone says how two states merge, so that `combine` serves all reducers at once, and reducers of the same column
share their states. Digits of exact sums are `sum:amount:-1` (tiebeam.transforms._sums).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from tiebeam.errors import ConfigError, Problem
from tiebeam.transforms._sums import Digits, carry

FINE = "fine:"
KEY = "key:"
MERGE_ROWS = 100_000
_MERGE = {"count": "sum", "sum": "sum", "floats": "sum", "squares": "sum", "min": "min", "max": "max"}
_PICKS = ("first", "last")


def plain(array: pa.Array) -> pa.Array:
    """The values in the one form that every kernel takes: no dictionary, no view, one zero and one NaN."""
    kind = array.type
    if pt.is_dictionary(kind):
        return plain(array.cast(kind.value_type))
    if pt.is_large_string(kind) or pt.is_string_view(kind):
        return array.cast(pa.string())
    if pt.is_large_binary(kind) or pt.is_binary_view(kind):
        return array.cast(pa.binary())
    if pt.is_decimal32(kind) or pt.is_decimal64(kind):
        return array.cast(pa.decimal128(kind.precision, kind.scale))
    if pt.is_floating(kind):
        wide = array.cast(pa.float32()) if pt.is_float16(kind) else array
        return pc.if_else(pc.is_nan(wide), pa.scalar(np.nan, wide.type), pc.add(wide, pa.scalar(0.0, wide.type)))
    return array


def is_view(kind: pa.DataType) -> bool:
    """Whether it is a type of which Arrow cannot take rows (as of 25.0)."""
    return pt.is_string_view(kind) or pt.is_binary_view(kind)


class Rows:
    """A batch as reducers see it: plain columns."""

    def __init__(self, columns: dict[str, pa.Array], n: int):
        self.columns = columns
        self.n = n
        self.schema = pa.schema([(name, array.type) for name, array in columns.items()])

    def column(self, name: str) -> pa.Array:
        return self.columns[name]

    def valid(self, name: str | None) -> pa.Array:
        """1 for every row that has a value, 0 for null."""
        if name is None or not self.columns[name].null_count:
            return pa.array(np.ones(self.n, np.int8))
        return self.columns[name].is_valid().cast(pa.int8())

    def doubles(self, name: str) -> np.ndarray:
        column = pc.cast(self.columns[name], pa.float64(), safe=False)
        return column.fill_null(0).to_numpy(zero_copy_only=False)


class States:
    """Merged states, one row per group."""

    def __init__(self, table: pa.Table):
        self.table = table
        self.n = table.num_rows

    def column(self, name: str) -> pa.Array:
        return whole(self.table.column(name))

    def numbers(self, name: str) -> np.ndarray:
        """A state of numbers; zeros where no batch had it."""
        if name not in self.table.column_names:
            return np.zeros(self.n, np.int64)
        return self.table.column(name).fill_null(0).to_numpy()

    def digits(self, kind: str, column: str) -> Digits:
        found = {}
        for name in self.table.column_names:
            subject, _, part = name.rpartition(":")
            if subject == f"{kind}:{column}" and _is_place(part):
                found[int(part)] = self.numbers(name)
        return found

    def group(self, i: int) -> dict[str, Any]:
        """The keys of a group, for people."""
        return {c.removeprefix(KEY): self.table.column(c)[i].as_py() for c in self.table.column_names if c.startswith(KEY)}


def _is_place(part: str) -> bool:
    return part.lstrip("-").isdigit()


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def combine(states: pa.Table) -> pa.Table:
    """Merges the states of each group."""
    groups = [c for c in states.column_names if c.startswith((KEY, FINE))]
    merges = [(c, _MERGE[kind]) for c in states.column_names if (kind := c.partition(":")[0]) in _MERGE]
    picks = sorted({c.rpartition(":")[0] for c in states.column_names if c.partition(":")[0] in _PICKS})
    orders = {}
    ranked = states.select([*groups, *(c for c, _ in merges)])
    for pick in picks:
        orders[pick] = _order(states, pick)
        rank = np.empty(len(states), np.int64)
        rank[orders[pick]] = np.arange(len(states))
        ranked = ranked.append_column(pick, pa.array(rank))
    asked = merges + [(pick, "max") for pick in picks]
    merged = pa.TableGroupBy(ranked, groups, use_threads=False).aggregate(asked)
    columns = {c: merged.column(c) for c in groups} | {c: merged.column(f"{c}_{how}") for c, how in asked}
    for pick, order in orders.items():
        chosen = pa.array(order[columns.pop(pick).to_numpy()])
        columns |= {c: states.column(c).take(chosen) for c in states.column_names if c.startswith(f"{pick}:")}
    return pa.table(_carried(columns))


def _order(states: pa.Table, pick: str) -> np.ndarray:
    """Sorts states so that the one to pick comes last; what is null comes first."""
    direction = "descending" if pick.startswith("first:") else "ascending"
    value, time, position = (states.column(f"{pick}:{part}") for part in ("value", "time", "position"))
    keys = {"0": value.is_valid().cast(pa.int8()), "1": time.is_valid().cast(pa.int8()), "2": time}
    keys |= {"3": position.is_valid().cast(pa.int8()), "4": pc.binary_length(position), "5": position, "6": value}
    table = pa.table({name: column for name, column in keys.items() if not pt.is_null(column.type)})
    how = [(name, "ascending" if name in "013" else direction) for name in table.column_names]
    return pc.sort_indices(table, sort_keys=how).to_numpy()


def _carried(columns: dict[str, Any]) -> dict[str, Any]:
    digits: dict[str, Digits] = {}
    for name in list(columns):
        subject, _, part = name.rpartition(":")
        if _MERGE.get(name.partition(":")[0]) == "sum" and _is_place(part):
            digits.setdefault(subject, {})[int(part)] = columns.pop(name).fill_null(0).to_numpy()
    for subject, places in digits.items():
        columns |= {f"{subject}:{place}": pa.array(digit) for place, digit in carry(places).items()}
    return columns


class Pile:
    """Partial states, kept small by merging them whenever they have doubled.

    They come in parts: `""` for all reducers that need no finer groups, and one part per fine reducer.
    """

    def __init__(self):
        self.parts: dict[str, list[pa.Table]] = {}
        self.schema: pa.Schema | None = None
        self.rows = 0
        self._merge_at = MERGE_ROWS

    def add(self, part: str, states: pa.Table, schema: pa.Schema) -> None:
        self.schema = schema if self.schema in (None, schema) else agree(self.schema, schema)
        self.parts.setdefault(part, []).append(states)
        self.rows += len(states)
        if self.rows > self._merge_at:
            self.merge()

    def merge(self) -> dict[str, pa.Table]:
        """Merges all states of the same groups; afterwards each part is one table."""
        for part, tables in self.parts.items():
            if len(tables) > 1:
                self.parts[part] = [combine(pa.concat_tables(tables, promote_options="default"))]
        self.rows = sum(len(tables[0]) for tables in self.parts.values())
        self._merge_at = 2 * self.rows + MERGE_ROWS
        return {part: tables[0] for part, tables in self.parts.items()}


def agree(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """What both schemas have in common, null where neither has values; raises ConfigError when they differ."""
    for a, b in zip(one, other, strict=True):
        if a.type != b.type and not pa.types.is_null(a.type) and not pa.types.is_null(b.type):
            what = f"the column {a.name!r} is {a.type} in some batches and {b.type} in others"
            raise ConfigError(Problem(what, "Aggregate", "give it one type before, by a contract"))
    return pa.schema([b if pa.types.is_null(a.type) else a for a, b in zip(one, other, strict=True)])
