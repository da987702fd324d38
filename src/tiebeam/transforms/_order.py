"""The order of rows: by event time, at equal times by position, and where that says nothing, by what the rows hold.

Arrival says nothing, so what comes first must follow from the rows alone. Positions compare as `First` and `Last` of
`Aggregate` compare them: shorter before longer, so that offsets compare as numbers, then by their bytes; none comes last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch
from tiebeam.transforms._states import plain

_TIME, _SIZE, _PLACE = "__time", "__size", "__place"


def frame_of(rows: RowBatch, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns as Polars sees them, under the names 0, 1, …: no dictionaries, one zero, one NaN."""
    return pl.DataFrame({str(i): pl.Series(plain(rows.column(name))) for i, name in enumerate(columns)}, nan_to_null=False)


def in_order(rows: RowBatch, by: Sequence[str] = ()) -> RowBatch:
    """The rows sorted by some columns (nulls first), then by time, position and content."""
    return rows.take(pa.array(order_of(rows, by)))


def order_of(rows: RowBatch, by: Sequence[str] = ()) -> np.ndarray:
    """The numbers of the rows in their order. Rows that are equal in all they hold may change places."""
    frame = frame_of(rows, by)
    places = rows.column(ROW_POSITION) if ROW_POSITION in rows.schema.names else pa.nulls(rows.num_rows, pa.string())
    place = pl.Series(places.cast(pa.string()))
    times = pl.Series(rows.column(ROW_TIME).cast(pa.int64())) if ROW_TIME in rows.schema.names else None
    frame = frame.with_columns(pl.lit(0) if times is None else times.alias(_TIME))
    named = place.null_count() < len(place)
    if named:
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
    content = [pl.Series(f"__{i}", _sortable(rows.column(i).take(pa.array(order[at])))) for i in range(rows.num_columns)]
    order[at] = order[at][_argsort(pl.DataFrame([pl.Series("__run", run), *content]))]


def _sortable(column: pa.Array) -> pa.Array:
    column = plain(column)
    if pa.types.is_nested(column.type) or isinstance(column.type, pa.ExtensionType):
        return pa.array([None if value is None else repr(value) for value in column.to_pylist()], pa.string())
    return column
