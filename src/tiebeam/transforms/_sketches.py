"""Reducers that group finer than the keys: by a value, a bucket or a register, in the column `fine:`.

They keep their state as rows, one per group and value (bucket, register), and fold a group's rows to one result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.transforms._reducers import Count, Min, Reducer, Sum, number
from tiebeam.transforms._shards import hash_values
from tiebeam.transforms._states import FINE, Rows, States, whole


@dataclass(frozen=True)
class FineReducer(Reducer):
    """Base of reducers that group finer than the keys."""

    fine_grained: ClassVar[bool] = True

    def fine(self, rows: Rows) -> pa.Array:
        """What each row is grouped by beside the keys; null for rows that do not count."""
        raise NotImplementedError

    def fold(self, fine: States, group: np.ndarray, groups: int, rows: pa.Schema) -> pa.Array:
        """Results, one per group, of merged fine states; `group` numbers the group of each, ascending."""
        raise NotImplementedError


@dataclass(frozen=True)
class TopK(FineReducer):
    """The `k` values of a column that weigh most, by `Count()` or `Sum(…)`: list<struct<value, weight>>.

    Exact. Values of equal weight are ordered by value. State: every distinct value of the column per group.
    """

    k: int
    column: str
    by: Count | Sum = Count()  # noqa: RUF009

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if not isinstance(self.k, int) or self.k < 1:
            yield f"k is {self.k!r}; expected a whole number from 1"
        if not isinstance(self.by, Count | Sum):
            yield f"cannot rank by {self.by!r}; use Count() or Sum(column)"

    def columns(self) -> tuple[str, ...]:
        return (self.column, *self.by.columns())

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        return pa.list_(pa.struct([("value", Min(self.column).type_of(rows)), ("weight", self.by.type_of(rows))]))

    def fine(self, rows: Rows) -> pa.Array:
        return rows.column(self.column)

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        return self.by.lift(rows)

    def fold(self, fine: States, group: np.ndarray, groups: int, rows: pa.Schema) -> pa.Array:
        weight = self.by.lower(fine, rows)
        ranking = pa.table({"group": group, "weight": weight, "value": fine.column(FINE)})
        order = pc.sort_indices(ranking, sort_keys=[("group", "ascending"), ("weight", "descending"), ("value", "ascending")])
        rank = np.arange(len(group)) - np.searchsorted(group, group)
        best = ranking.take(order).filter(pa.array(rank < self.k)).combine_chunks()
        counts = np.bincount(best.column("group").to_numpy(), minlength=groups)
        pairs = pa.StructArray.from_arrays([whole(best.column(c)) for c in ("value", "weight")], ["value", "weight"])
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), pairs)


@dataclass(frozen=True)
class ApproxDistinct(FineReducer):
    """How many different values a column has, about: int64, standard error 1.04 / sqrt(2**precision), 1.6 % by default.

    HyperLogLog with the registers of Apache DataSketches (HLL_8: same hash, same slots), kept as columns, and the
    estimator of Ertl (arXiv:1702.01284). Deterministic. State: up to 2**precision small rows per group.
    """

    column: str
    precision: int = 12

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.precision not in range(4, 15):
            yield f"precision is {self.precision!r}; expected a whole number from 4 to 14"

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        Min(self.column).type_of(rows)
        return pa.int64()

    def fine(self, rows: Rows) -> pa.Array:
        slot = hash_values(rows.column(self.column))[0] & np.uint64((1 << self.precision) - 1)
        return pa.array(slot.astype(np.int16), mask=_null_mask(rows.column(self.column)))

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        high = (hash_values(rows.column(self.column))[1] >> np.uint64(12)).astype(np.float64)
        leading_zeros = np.minimum(52 - np.frexp(high)[1], 52)
        return {f"max:{self.column}:register": pa.array((leading_zeros + 1).astype(np.int8))}

    def fold(self, fine: States, group: np.ndarray, groups: int, rows: pa.Schema) -> pa.Array:
        registers = 1 << self.precision
        rho = np.minimum(fine.numbers(f"max:{self.column}:register"), 38)  # so that doubles add them without rounding
        used = np.bincount(group, np.exp2(-rho.astype(np.float64)), minlength=groups)
        empty = 1 - np.bincount(group, minlength=groups) / registers
        with np.errstate(divide="ignore"):
            estimate = registers**2 / (2 * np.log(2)) / (registers * _sigma(empty) + used)
        return pa.array(np.round(estimate).astype(np.int64))


def _null_mask(array: pa.Array) -> np.ndarray:
    return array.is_null().to_numpy(zero_copy_only=False)


def _sigma(x: np.ndarray) -> np.ndarray:
    """Ertl's correction for registers that are still empty."""
    power, total, before = x.copy(), x.copy(), None
    scale = 1.0
    while before is None or (total != before).any():
        before = total
        power = power * power
        total = np.where(x == 1, np.inf, total + power * scale)
        scale *= 2
    return total


@dataclass(frozen=True)
class ApproxQuantiles(FineReducer):
    """Quantiles of a column, about: list<float64> in the order asked for; null without values.

    Each is the value at rank ceil(q * n), within 0.4 % of it, and exact where no other value lies that close. NaN is
    larger than every number. A histogram whose buckets cut each power of two in 128, as HdrHistogram and OpenTelemetry's
    exponential histogram do; not KLL, whose result depends on chance and on the order of rows.
    State: one small row per bucket that has values and group, some hundred for most data.
    """

    column: str
    quantiles: tuple[float, ...] = (0.5,)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if not isinstance(self.quantiles, tuple | list) or not self.quantiles or not all(0 <= q <= 1 for q in self.quantiles):
            yield f"quantiles are {self.quantiles!r}; expected numbers from 0 to 1, such as (0.5, 0.99)"

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        number(self, rows, self.column)
        return pa.list_(pa.float64())

    def fine(self, rows: Rows) -> pa.Array:
        values = rows.doubles(self.column)
        size = (np.abs(values).view(np.int64) >> 45).astype(np.int32)
        return pa.array(np.where(values < 0, -size, size), mask=_null_mask(rows.column(self.column)))

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        values = pa.array(rows.doubles(self.column))
        return {"count::": rows.valid(None), f"min:{self.column}:value": values, f"max:{self.column}:value": values}

    def fold(self, fine: States, group: np.ndarray, groups: int, rows: pa.Schema) -> pa.Array:
        order = np.lexsort((fine.numbers(FINE), group))
        lowest, highest = (fine.column(f"{kind}:{self.column}:value").to_numpy() for kind in ("min", "max"))
        values = (lowest / 2 + highest / 2)[order]
        seen = np.cumsum(fine.numbers("count::")[order])
        upto = np.concatenate([[0], seen])[np.searchsorted(group, np.arange(groups + 1))]
        n = np.diff(upto)
        some = n > 0
        ranks = [np.maximum(np.ceil(np.round(q * n[some], 6)), 1) for q in self.quantiles]
        found = [values[np.searchsorted(seen, upto[:-1][some] + rank)] for rank in ranks]
        offsets = np.concatenate([[0], np.cumsum(some * len(self.quantiles))])
        flat = np.column_stack(found).reshape(-1)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat), mask=pa.array(~some))
