"""The order of rows: by event time, at equal times by position, and where that says nothing, by what the rows hold.

Arrival says nothing, so what comes first must follow from the rows alone. Positions compare as `First` and `Last` of
`Aggregate` compare them: shorter before longer, so that offsets compare as numbers, then by their bytes; none comes last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch
from tiebeam.transforms._states import plain

_TIME, _SIZE, _PLACE = "__time", "__size", "__place"


def frame_of(rows: RowBatch, columns: Sequence[str]) -> pl.DataFrame:
    """Some flat columns as Polars sees them, under the names 0, 1, …: equal and ordered as the values are."""
    return pl.DataFrame({str(i): pl.Series(_sortable(rows.column(name))) for i, name in enumerate(columns)}, nan_to_null=False)


def in_order(rows: RowBatch, by: Sequence[str] = ()) -> RowBatch:
    """The rows sorted by some columns (nulls first), then by time, position and content."""
    return rows.take(pa.array(order_of(rows, by)))


def order_of(rows: RowBatch, by: Sequence[str] = ()) -> np.ndarray:
    """The numbers of the rows in their order. Rows that are equal in all they hold may change places."""
    none = pa.nulls(rows.num_rows, pa.string())
    times = rows.column(ROW_TIME) if ROW_TIME in rows.schema.names else none
    place = pl.Series((rows.column(ROW_POSITION) if ROW_POSITION in rows.schema.names else none).cast(pa.string()))
    frame = pl.DataFrame([*frame_of(rows, by), pl.Series(_TIME, times.cast(pa.int64()))])
    if place.null_count() < len(place):
        frame = frame.with_columns(place.str.len_bytes().alias(_SIZE), place.alias(_PLACE))
    order = _argsort(frame)
    if place.null_count():
        _break_ties(rows, frame, order)
    return order


def _argsort(frame: pl.DataFrame) -> np.ndarray:
    nulls_last = [name in (_SIZE, _PLACE) for name in frame.columns]
    numbered = frame.with_row_index("__row")
    return numbered.sort(frame.columns, nulls_last=nulls_last, maintain_order=True)["__row"].to_numpy().astype(np.int64)


def _break_ties(rows: RowBatch, frame: pl.DataFrame, order: np.ndarray) -> None:
    """Puts rows that are equal so far in the order of everything they hold, in place."""
    ordered = frame[order]
    same = np.logical_and.reduce([ordered[c].eq_missing(ordered[c].shift(1)).to_numpy() for c in frame.columns])
    same[:1] = False
    tied = same | np.append(same[1:], False)
    if not tied.any():
        return
    at = np.flatnonzero(tied)
    run = np.cumsum(~same)[at]
    content = [pl.Series(f"__{name}", _sortable(rows.column(name).take(pa.array(order[at])))) for name in sorted(rows.schema.names)]
    order[at] = order[at][_argsort(pl.DataFrame([pl.Series("__run", run), *content]))]


def _sortable(column: pa.Array) -> pa.Array:
    """The values in a type that Polars has, equal and ordered as they are."""
    column = plain(column)
    if pa.types.is_decimal256(column.type):
        return _big_endian(column)
    if pa.types.is_nested(column.type) or isinstance(column.type, pa.ExtensionType):
        return pa.array([None if value is None else repr(value) for value in column.to_pylist()], pa.string())
    return column


def _big_endian(column: pa.Array) -> pa.Array:
    """Wide decimals as bytes that compare as the numbers do: big-endian, the sign turned."""
    start, n = column.offset, len(column)
    little = np.frombuffer(column.buffers()[1], np.uint8)[32 * start : 32 * (start + n)].reshape(n, 32)
    big = np.ascontiguousarray(little[:, ::-1])
    big[:, 0] ^= 0x80
    every = pa.Array.from_buffers(pa.binary(32), n, [None, pa.py_buffer(big)])
    return pc.if_else(column.is_valid(), every, pa.scalar(None, every.type)).cast(pa.binary())
