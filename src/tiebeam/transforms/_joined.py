"""The rows of a join: the columns of the left row, then those of the right one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RESERVED, ROW_POSITION, ROW_TIME, RowBatch, with_column

RIGHT = "_right"


@dataclass(frozen=True)
class Joined:
    """How rows of two sides become one. Columns are named where a side may be missing: then nobody else tells its schema."""

    on_left: tuple[str, ...]
    on_right: tuple[str, ...]
    left_columns: pa.Schema | None
    right_columns: pa.Schema | None
    timed: bool

    def trim(self, name: str, rows: RowBatch) -> RowBatch:
        """The columns that are named, in their order, with the keys, time and position."""
        named = self.left_columns if name == "left" else self.right_columns
        if named is None:
            return rows
        keys = self.on_left if name == "left" else self.on_right
        wanted = dict.fromkeys([*named.names, *keys, ROW_TIME, ROW_POSITION])
        return rows.select([c for c in wanted if c in rows.schema.names])

    def check(self, name: str, rows: pa.Schema) -> None:
        named = self.left_columns if name == "left" else self.right_columns
        problems = []
        for field in named or ():
            where, fix = f"Join, {name}", f"name the columns of the {name} rows in {name}_columns"
            if field.name not in rows.names:
                problems.append(Problem(f"there is no column {field.name!r}", where, fix))
            elif rows.field(field.name).type not in (field.type, pa.null()):
                problems.append(Problem(f"{field.name!r} is {rows.field(field.name).type}, not {field.type}", where, fix))
        if problems:
            raise ConfigError(*problems)

    def pairs(self, left: RowBatch, right: RowBatch, once: bool = False) -> RowBatch:
        """Rows of pairs. A left row that has more than one partner does not name a result: both positions do."""
        rows = left
        for name, column in self._extras(right).items():
            rows = self._with(rows, name, column)
        if not once and ROW_POSITION in left.schema.names and ROW_POSITION in right.schema.names:
            both = pc.binary_join_element_wise(left.column(ROW_POSITION), right.column(ROW_POSITION), "+")
            rows = with_column(rows, ROW_POSITION, both)
        return rows

    def alone(self, left: RowBatch) -> RowBatch:
        """Left rows without a partner."""
        assert self.right_columns is not None
        fields = {field.name: field.type for field in self.right_columns} | ({ROW_TIME: RESERVED[ROW_TIME]} if self.timed else {})
        nothing = RowBatch.from_pydict({name: pa.nulls(left.num_rows, kind) for name, kind in fields.items()})
        return self.pairs(left, nothing, once=True)

    def strangers(self, right: RowBatch) -> RowBatch:
        """Right rows without a partner: they bring the keys, their time and their position."""
        assert self.left_columns is not None
        n = right.num_rows
        columns = {field.name: pa.nulls(n, field.type) for field in self.left_columns}
        for ours, theirs in zip(self.on_left, self.on_right, strict=True):
            kind = columns[ours].type if ours in columns else right.column(theirs).type
            columns[ours] = right.column(theirs).cast(kind)
        reserved = {c: right.column(c) for c in (ROW_TIME, ROW_POSITION) if c in right.schema.names}
        return self.pairs(RowBatch.from_pydict(columns | reserved), right, once=True)

    def _extras(self, right: RowBatch) -> dict[str, pa.Array]:
        named = self.right_columns.names if self.right_columns is not None else right.schema.names
        every = [*named, *([ROW_TIME] if self.timed else [])]
        return {name: right.column(name) for name in dict.fromkeys(every) if name not in self.on_right}

    def _with(self, rows: RowBatch, name: str, column: pa.Array) -> RowBatch:
        taken = set(rows.schema.names)
        chosen = name + RIGHT if name in taken or name in RESERVED else name
        if chosen in taken:
            raise ConfigError(Problem(f"both sides have columns {name!r} and {chosen!r}", "Join", "rename one of them before"))
        return rows.append_column(chosen, column)


def chosen(rows: RowBatch, mask: np.ndarray) -> RowBatch:
    return rows if mask.all() else rows.filter(pa.array(mask))
