"""The order of rows: by key, within a key by event time, at equal times by position, and where that says nothing, by content.

Arrival says nothing, so what comes first must follow from the rows alone. Positions compare as `First` and `Last` of
`Aggregate` compare them: shorter before longer, so that offsets compare as numbers, then by their bytes; none comes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch
from tiebeam.transforms._states import plain


@dataclass(frozen=True)
class Runs:
    """Rows of equal keys side by side, each run in its order. `order` says where each row was; `run` numbers the runs from 0."""

    order: np.ndarray
    run: np.ndarray
    times: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """The first row of each run."""
        return np.flatnonzero(np.diff(self.run, prepend=-1))

    @property
    def ends(self) -> np.ndarray:
        """The row behind the last of each run."""
        return np.append(self.starts, len(self.run))[1:]


def runs_of(rows: RowBatch, by: Iterable[str]) -> Runs:
    """The rows by key, time, position and content."""
    codes = codes_of([rows.column(name) for name in by], rows.num_rows)
    order = order_of(rows, codes)
    run = np.cumsum(np.diff(codes[order], prepend=-1) != 0) - 1
    return Runs(order, run, _times(rows)[order])


def codes_of(columns: Sequence[pa.Array], n: int) -> np.ndarray:
    """A number from 0 for each of `n` rows, equal where all columns are equal: null and NaN are values like any other."""
    codes = np.zeros(n, np.int64)
    for column in columns:
        values = _comparable(column)
        if pa.types.is_null(values.type):
            continue
        more = values.dictionary_encode("encode").indices.to_numpy().astype(np.int64)
        wide = codes * (int(more.max(initial=0)) + 1) + more
        codes = pa.array(wide).dictionary_encode().indices.to_numpy().astype(np.int64) if codes.any() else more
    return codes


def order_of(rows: RowBatch, codes: np.ndarray | None = None) -> np.ndarray:
    """The numbers of the rows in their order, by codes first. Rows that are equal in all they hold may change places."""
    times = _times(rows)
    order = np.arange(rows.num_rows) if (np.diff(times) >= 0).all() else np.argsort(times, kind="stable")
    same = np.diff(times[order], prepend=0) == 0
    if codes is not None:
        order = _by_codes(order, codes)
        same = (np.diff(times[order], prepend=0) == 0) & (np.diff(codes[order], prepend=0) == 0)
    same[:1] = False
    if same.any():
        _break_ties(rows, order, same)
    return order


def _times(rows: RowBatch) -> np.ndarray:
    """Event times in microseconds, 0 where there is none."""
    if ROW_TIME not in rows.schema.names:
        return np.zeros(rows.num_rows, np.int64)
    return rows.column(ROW_TIME).cast(pa.int64()).fill_null(0).to_numpy()


def _by_codes(order: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Sorts by codes and keeps the order among equal ones: 16 bits at a time, which numpy sorts by radix."""
    for shift in range(0, max(1, int(codes.max(initial=0)).bit_length()), 16):
        digit = (codes[order] >> shift & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit, kind="stable")]
    return order


def _break_ties(rows: RowBatch, order: np.ndarray, same: np.ndarray) -> None:
    """Puts rows that are like the one before so far in the order of position and content, in place."""
    at = np.flatnonzero(same | np.append(same[1:], False))
    tied = rows.take(pa.array(order[at]))
    named = ROW_POSITION in tied.schema.names
    place = pl.Series((tied.column(ROW_POSITION) if named else pa.nulls(len(at))).cast(pa.string()))
    parts = [pl.Series("run", np.cumsum(~same)[at]), place.str.len_bytes().alias("size"), place.alias("place")]
    if place.null_count():
        parts += [pl.Series(f"column {name}", _comparable(tied.column(name))) for name in sorted(tied.schema.names)]
    frame = pl.DataFrame(parts, nan_to_null=False).with_row_index("row")
    names = frame.columns[1:]
    ranked = frame.sort(names, nulls_last=[name in ("size", "place") for name in names], maintain_order=True)
    order[at] = order[at][ranked["row"].to_numpy()]


def _comparable(column: pa.Array) -> pa.Array:
    """The values in a type that Arrow and Polars can compare, equal and ordered as they are."""
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
