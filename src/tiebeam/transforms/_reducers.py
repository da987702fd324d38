"""Reducers: what `Aggregate` can compute of a group.

A reducer lifts rows to states, one per row (tiebeam.transforms._states), and lowers the merged state of a group to its
result. Nulls of its column are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, ROW_TIME
from tiebeam.transforms._states import Rows, States
from tiebeam.transforms._sums import digits_of, to_decimal, to_float, to_int64


@dataclass(frozen=True)
class Reducer:
    """Base of what can be computed of a group. Nulls of a reducer's column are left out."""

    fine_grained: ClassVar[bool] = False

    def problems(self) -> Iterable[str]:
        """Says what is wrong with the parameters."""
        for column in self.columns():
            if not isinstance(column, str):
                yield f"expected the name of a column, not {column!r}"

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        column = getattr(self, "column", None)
        return (column,) if column is not None else ()

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        """The type of the result for rows of this schema; raises ConfigError when they cannot be reduced so."""
        raise NotImplementedError

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        """States of rows, one per row."""
        raise NotImplementedError

    def lower(self, states: States, rows: pa.Schema) -> pa.Array:
        """Results of merged states, one per group."""
        raise NotImplementedError


def number(reducer: Reducer, rows: pa.Schema, column: str) -> pa.DataType:
    kind = rows.field(column).type
    if pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind) or pt.is_boolean(kind) or pt.is_null(kind):
        return kind
    raise ConfigError(Problem(f"{type(reducer).__name__} needs numbers, and {column!r} is {kind}", fix="cast the column before"))


@dataclass(frozen=True)
class Count(Reducer):
    """Counts rows, or the values of a column that are not null: int64."""

    column: str | None = None

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        return pa.int64()

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        return {f"count:{self.column or ''}:": rows.valid(self.column)}

    def lower(self, states: States, rows: pa.Schema) -> pa.Array:
        return pa.array(states.numbers(f"count:{self.column or ''}:"), pa.int64())


def _sum_states(rows: Rows, column: str) -> dict[str, pa.Array]:
    array = rows.column(column)
    states = {f"count:{column}:": rows.valid(column)}
    states |= {f"sum:{column}:{place}": pa.array(digit) for place, digit in digits_of(array).items()}
    if pt.is_floating(array.type):
        states |= _odd("sum", column, rows.doubles(column))
    return states


def _odd(kind: str, column: str, values: np.ndarray) -> dict[str, pa.Array]:
    """Infinities and NaN, which have no digits, are summed as they are."""
    finite = np.isfinite(values)
    return {} if finite.all() else {f"{kind}:{column}:odd": pa.array(np.where(finite, 0.0, values))}


def _float_sum(states: States, column: str) -> np.ndarray:
    return to_float(states.digits("sum", column), states.n) + states.numbers(f"sum:{column}:odd")


@dataclass(frozen=True)
class Sum(Reducer):
    """Sums a column exactly: integers and booleans to int64, floats to float64, decimals to 38 (or 76) digits.

    Floats: the exact sum, rounded once; the same for every order of the rows. Infinities and NaN as in IEEE 754.
    A sum that its type cannot hold stops the job with an OverflowError that names the group; it never wraps.
    """

    column: str

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        kind = number(self, rows, self.column)
        if pt.is_decimal256(kind):
            return pa.decimal256(76, kind.scale)
        if pt.is_decimal(kind):
            return pa.decimal128(38, kind.scale)
        return pa.float64() if pt.is_floating(kind) else kind if pt.is_null(kind) else pa.int64()

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        return _sum_states(rows, self.column)

    def lower(self, states: States, rows: pa.Schema) -> pa.Array:
        kind = self.type_of(rows)
        if pt.is_null(kind):
            return pa.nulls(states.n)
        empty = states.numbers(f"count:{self.column}:") == 0
        if pt.is_floating(kind):
            return pa.array(_float_sum(states, self.column), mask=empty)
        digits = states.digits("sum", self.column)
        if pt.is_decimal(kind):
            sums, beyond = to_decimal(digits, states.n, kind)
        else:
            values, beyond = to_int64(digits, states.n)
            sums = pa.array(values)
        if beyond.any():
            raise OverflowError(
                f"the sum of {self.column!r} does not fit into {kind} in {beyond.sum()} group(s), such as "
                f"{states.group(int(np.argmax(beyond)))}; cast the column to decimal128(38, 0) or float64 before"
            )
        return pc.if_else(pa.array(empty), pa.scalar(None, kind), sums)


@dataclass(frozen=True)
class Mean(Reducer):
    """The mean of a column, float64: its exact sum, divided by how many values there are."""

    column: str

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        number(self, rows, self.column)
        return pa.float64()

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        return _sum_states(rows, self.column)

    def lower(self, states: States, rows: pa.Schema) -> pa.Array:
        n = states.numbers(f"count:{self.column}:")
        unit = 10.0 ** getattr(rows.field(self.column).type, "scale", 0)
        return pa.array(_float_sum(states, self.column) / np.maximum(n, 1) / unit, mask=n == 0)


@dataclass(frozen=True)
class Extreme(Reducer):
    """Base of what picks the smallest or largest value."""

    column: str
    kind: ClassVar[str]

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        kind = rows.field(self.column).type
        if pt.is_nested(kind) or pt.is_interval(kind):
            raise ConfigError(Problem(f"{type(self).__name__} needs values that can be compared, and {self.column!r} is {kind}"))
        return kind

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        array = rows.column(self.column)
        states = {}
        if pt.is_duration(array.type):
            array = array.cast(pa.int64())
        if pt.is_floating(array.type) and (nan := pc.is_nan(array).fill_null(False)).true_count:
            states["max:" + self.column + ":nan"] = nan.cast(pa.int8())
            array = pc.if_else(nan, pa.scalar(None, array.type), array)
        return states | {f"{self.kind}:{self.column}:": array}

    def lower(self, states: States, rows: pa.Schema) -> pa.Array:
        kind = self.type_of(rows)
        values = states.column(f"{self.kind}:{self.column}:")
        if pt.is_floating(kind):
            nan = pa.array(states.numbers(f"max:{self.column}:nan") > 0)
            rules = nan if self.kind == "max" else pc.and_(nan, values.is_null())
            values = pc.if_else(rules, pa.scalar(np.nan, values.type), values)
        return values.cast(kind)


@dataclass(frozen=True)
class Min(Extreme):
    """The smallest value of a column, in its type. NaN is larger than every number, as in SQL; text compares by its bytes."""

    kind: ClassVar[str] = "min"


@dataclass(frozen=True)
class Max(Extreme):
    """The largest value of a column, in its type. NaN is larger than every number, as in SQL; text compares by its bytes."""

    kind: ClassVar[str] = "max"


@dataclass(frozen=True)
class Pick(Extreme):
    """Base of what picks a value by the time of its row."""

    def columns(self) -> tuple[str, ...]:
        return (self.column, ROW_TIME)

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        position = rows.column(ROW_POSITION).cast(pa.string())
        parts = {"value": rows.column(self.column), "time": rows.column(ROW_TIME), "position": position}
        return {f"{self.kind}:{self.column}:{part}": array for part, array in parts.items()}

    def lower(self, states: States, rows: pa.Schema) -> pa.Array:
        return states.column(f"{self.kind}:{self.column}:value").cast(self.type_of(rows))


@dataclass(frozen=True)
class First(Pick):
    """The value of a column with the smallest `row_time`, never the first to arrive.

    At equal times the smaller `row_position` wins (shorter before longer, so that offsets compare as numbers), then the
    smaller value. Rows without time count only where no other row has a value.
    """

    kind: ClassVar[str] = "first"


@dataclass(frozen=True)
class Last(Pick):
    """The value of a column with the largest `row_time`; at equal times the largest `row_position`, then value. See `First`."""

    kind: ClassVar[str] = "last"
