"""Figures over stretches of ordered rows, many stretches at once: row i of the result is of the rows [low[i], high[i]).

Sums are differences of running sums of states (tiebeam.transforms._states), whose digits are whole numbers: exact, so it does not
matter where a stretch begins, nor how its rows came.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.transforms._order import codes_of
from tiebeam.transforms._reducers import Extreme, Last, Max, Pick, Reducer
from tiebeam.transforms._states import Rows, States


def reduced(reducer: Reducer, rows: Rows, low: np.ndarray, high: np.ndarray) -> pa.Array:
    """What a reducer says of each stretch."""
    if isinstance(reducer, Pick):
        return _picked(reducer, rows, low, high)
    if isinstance(reducer, Extreme):
        return _extreme(reducer, rows, low, high)
    states = {name: (_odd if name.endswith(":odd") else _added)(column, low, high) for name, column in reducer.lift(rows).items()}
    return reducer.lower(States(pa.table(states)), rows.schema)


def _added(column: pa.Array, low: np.ndarray, high: np.ndarray) -> pa.Array:
    running = np.concatenate([[0], np.cumsum(column.to_numpy().astype(np.int64))])
    return pa.array(running[high] - running[low])


def _odd(column: pa.Array, low: np.ndarray, high: np.ndarray) -> pa.Array:
    """Sums of infinities and NaN, which no difference gives back: by counts of each."""
    values = column.to_numpy().astype(np.float64)
    if pa.types.is_integer(column.type):
        return _added(column, low, high)
    up, down, none = (_seen(mask, low, high) for mask in (values == np.inf, values == -np.inf, np.isnan(values)))
    return pa.array(np.select([none | (up & down), up, down], [np.nan, np.inf, -np.inf], 0.0))


def _seen(mask: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    running = np.concatenate([[0], np.cumsum(mask)])
    return running[high] > running[low]


def _picked(reducer: Pick, rows: Rows, low: np.ndarray, high: np.ndarray) -> pa.Array:
    column = rows.column(reducer.column)
    n = len(column)
    places, valid = np.arange(n), column.is_valid().to_numpy(zero_copy_only=False)
    if isinstance(reducer, Last):
        before = np.concatenate([[-1], np.maximum.accumulate(np.where(valid, places, -1))])
        at = before[high]
    else:
        behind = np.concatenate([np.minimum.accumulate(np.where(valid, places, n)[::-1])[::-1], [n]])
        at = behind[low]
    return column.take(pa.array(at, mask=(at < low) | (at >= high))).cast(reducer.type_of(rows.schema))


def _extreme(reducer: Extreme, rows: Rows, low: np.ndarray, high: np.ndarray) -> pa.Array:
    """By ranks of the values: stretches of 2, 4, 8 … rows in turn, each asked twice."""
    column = rows.column(reducer.column)
    values = column.unique().drop_null()
    values = values.take(pc.sort_indices(values))
    ranks = pc.index_in(column, values).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    sign = 1 if isinstance(reducer, Max) else -1
    best = np.where(ranks < 0, np.iinfo(np.int64).min, sign * ranks)
    found = np.full(len(low), np.iinfo(np.int64).min)
    widths = high - low
    width = 1
    while (widths >= width).any():
        asked = np.flatnonzero((widths >= width) & (widths < 2 * width))
        found[asked] = np.maximum(best[low[asked]], best[high[asked] - width])
        best[: -width or None] = np.maximum(best[: -width or None], np.append(best[width:], [])[: len(best) - width])
        width *= 2
    none = found == np.iinfo(np.int64).min
    return values.take(pa.array(sign * np.where(none, 0, found), mask=none)).cast(reducer.type_of(rows.schema))


def distinct(column: pa.Array, run: np.ndarray, low: np.ndarray, high: np.ndarray) -> pa.Array:
    """How many different values each stretch has. Both ends never go back from one stretch to the next.

    A row counts where it is the first of its value: in the stretches that have it and begin behind the row before of that value.
    These stretches stand side by side, so that two marks a row, summed up, give all counts.
    """
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    codes = codes_of([column], len(column))
    value = run * (int(codes.max(initial=0)) + 1) + codes
    order = rows[np.argsort(value[rows], kind="stable")]
    before = np.full(len(column), -1)
    again = value[order[1:]] == value[order[:-1]]
    before[order[1:][again]] = order[:-1][again]
    begins = np.maximum(np.searchsorted(high, rows, "right"), np.searchsorted(low, before[rows], "right"))
    ends = np.searchsorted(low, rows, "right")
    kept = begins < ends
    marks = np.zeros(len(low) + 1, np.int64)
    np.add.at(marks, begins[kept], 1)
    np.add.at(marks, ends[kept], -1)
    return pa.array(np.cumsum(marks)[:-1])
