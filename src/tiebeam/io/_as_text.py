"""Values as text files hold them: what JSON lines and CSV write for types that they do not have.

Decimals are their digits as text, dates, times and timestamps ISO 8601 text, binary is base64, durations are whole numbers of their unit, a
map is a list of structs with key and value, NaN and infinities are the words NaN, Infinity and -Infinity.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Iterator

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.rows import RowBatch


def finite_pieces(batch: RowBatch) -> Iterator[RowBatch]:
    """The rows of a batch such that no fraction is NaN or infinite: where one is, that column is text for those rows."""
    for at, name in enumerate(batch.schema.names):
        strange = _not_finite(batch.column(at))
        if strange is not None and pc.any(strange).as_py():
            written = _floats_as_text(batch.filter(strange).column(at))
            yield from finite_pieces(batch.filter(strange).set_column(at, name, written))
            batch = batch.filter(pc.invert(strange))
    if batch.num_rows:
        yield batch


def _not_finite(column: pa.Array) -> pa.Array | None:
    """A mask of the rows that hold NaN or an infinity anywhere; None for a type without fractions."""
    kind = column.type
    if pa.types.is_floating(kind):
        return pc.fill_null(pc.invert(pc.is_finite(column)), False)
    if pa.types.is_struct(kind):
        masks = [m for m in map(_not_finite, column.flatten()) if m is not None]
        return functools.reduce(pc.or_, masks) if masks else None
    if _is_list(kind):
        inner = _not_finite(column.flatten())
        if inner is None:
            return None
        rows = pc.filter(pc.list_parent_indices(column), inner)
        return pc.is_in(pa.array(range(len(column)), pa.int64()), value_set=rows.cast(pa.int64()))
    return None


def _floats_as_text(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_floating(kind):
        text = column.cast(pa.string())
        for plain, word in (("nan", "NaN"), ("inf", "Infinity"), ("-inf", "-Infinity")):
            text = pc.if_else(pc.equal(text, plain), word, text)
        return text
    return _inside(column, _floats_as_text)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _inside(column: pa.Array, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """The same nested column with its leaves changed."""
    kind = column.type
    if pa.types.is_struct(kind):
        fields = [change(child) for child in column.flatten()]
        return pa.StructArray.from_arrays(fields, [f.name for f in kind], mask=column.is_null())
    if _is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int64()).to_pylist()
        offsets = pa.array([0, *itertools.accumulate(lengths)], pa.int64())
        return pa.LargeListArray.from_arrays(offsets, change(column.flatten()), mask=column.is_null())
    return column


def writable(column: pa.Array) -> pa.Array:
    """A column in types that JSON has: numbers, texts, truth values, and structs and lists of them."""
    t, kind = pa.types, column.type
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return writable(column.dictionary_decode() if t.is_dictionary(kind) else pc.run_end_decode(column))
    if isinstance(column, pa.ExtensionArray):
        return writable(column.storage)
    if t.is_map(kind):
        entry = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
        return writable(column.cast(pa.list_(entry)))
    if t.is_nested(kind):
        return _inside(column, writable)
    if t.is_timestamp(kind):
        return pc.binary_replace_slice(column.cast(pa.timestamp(kind.unit, kind.tz and "UTC")).cast(pa.string()), 10, 11, "T")
    if t.is_duration(kind):
        return column.cast(pa.int64())
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind):
        return pl.Series(pl.from_arrow(column.cast(pa.large_binary()))).bin.encode("base64").to_arrow()
    if t.is_decimal(kind) or t.is_temporal(kind):
        return column.cast(pa.string())
    return column.cast(pa.float32()) if t.is_float16(kind) else column


def json_lines(rows: RowBatch) -> pa.Array:
    """Each row as an object of JSON, in bytes."""
    columns = zip(rows.schema.names, rows.columns, strict=True)
    lines = io.BytesIO()
    pl.DataFrame({name: pl.from_arrow(writable(column)) for name, column in columns}).write_ndjson(lines)
    return pa.array(lines.getvalue().split(b"\n")[:-1], pa.binary())
