"""Frames: a function over Polars, pandas or Arrow frames, applied to each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import polars as pl
import pyarrow as pa

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RowBatch, cut, one_batch
from tiebeam.steps import BatchFn, apply_batches
from tiebeam.transforms._casts import cast_exactly
from tiebeam.transforms._judge import plainly
from tiebeam.transforms._types import plain

_FRAMES = ("polars", "pandas", "arrow")
_ON_ERROR = ("fail", "dead_letter")


class MapBatches(beam.PTransform):
    """Applies a function to each batch as a frame, and makes batches of the frames it returns.

    The function must treat each row by itself: how many rows a frame holds is not promised, and differs from run to run.
    It may drop rows, add columns, or return None for none. Columns that keep their name and kind keep their Arrow type, and
    with a `schema` the result is cast to it, without loss or not at all.

    In: batches of any schema. `frame` says what the function is given: "polars", "pandas" (columns of `ArrowDtype`) or
    "arrow" (a record batch); it may return any of the three.
    Out: batches of what it returns; empty results vanish.
    Errors: an exception stops the pipeline and names the step. With on_error="dead_letter" the batch is halved until the
    rows that fail are found; they become dead letters, `function_failed`, and the others go on.

    Example:
        >>> batch = RowBatch.from_pydict({"n": [1, 2, 3]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     odd = p | beam.Create([batch]) | MapBatches(lambda df: df.filter(pl.col("n") % 2 == 1))
        ...     _ = odd | beam.Map(lambda batch: print(batch.to_pydict()))
        {'n': [1, 3]}
    """

    def __init__(self, fn: Callable[[Any], Any], frame: str = "polars", schema: pa.Schema | None = None, on_error: str = "fail"):
        super().__init__()
        wrong = [
            Problem(f"{name} cannot be {value!r}", "MapBatches", f"one of: {', '.join(known)}")
            for name, value, known in (("frame", frame, _FRAMES), ("on_error", on_error, _ON_ERROR))
            if value not in known
        ]
        if not callable(fn):
            wrong.append(Problem(f"{fn!r} is no function", "MapBatches", "give a function of one frame"))
        if wrong:
            raise ConfigError(*wrong)
        self.fn, self.frame, self.schema, self.on_error = fn, frame, schema, on_error

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return apply_batches(rows, "Apply", _ApplyFn(self.label, self.fn, self.frame, self.schema, self.on_error))


class _ApplyFn(BatchFn):
    def __init__(self, step: str, fn: Callable[[Any], Any], frame: str, schema: pa.Schema | None, on_error: str):
        super().__init__(step)
        self.fn, self.frame, self.schema, self.on_error = fn, frame, schema, on_error

    def apply(self, batch: RowBatch) -> Iterable[RowBatch | Letters]:
        try:
            made = self._made(batch)
        except Exception as e:
            if self.on_error == "fail":
                what = f"the function failed on a batch of {batch.num_rows:,} rows"
                raise RuntimeError(f"step {self.step!r}: {what}: {type(e).__name__}: {e}") from e
            yield from self._halved(batch, e)
            return
        yield from cut(made)

    def _halved(self, batch: RowBatch, error: Exception) -> Iterator[RowBatch | Letters]:
        if batch.num_rows == 1:
            yield letters_of_rows(self.step, batch, "function_failed", [f"{type(error).__name__}: {error}"])
            return
        middle = batch.num_rows // 2
        yield from self.apply(batch.slice(0, middle))
        yield from self.apply(batch.slice(middle))

    def _made(self, batch: RowBatch) -> RowBatch:
        result = self.fn(_frame_of(batch, self.frame))
        if result is None:
            return batch.slice(0, 0)
        made = _batch_of(result)
        untouched = _batch_of(_frame_of(batch.slice(0, 0), self.frame)).schema
        named = {
            field.name: _like(column, _type_in(batch.schema, field.name), _type_in(untouched, field.name), field.name)
            for field, column in zip(made.schema, made.columns, strict=True)
        }
        if self.schema is None:
            return RowBatch.from_arrays(list(named.values()), names=list(named))
        if set(named) != set(self.schema.names):
            raise ValueError(f"the function returned the columns {', '.join(named)}; its schema has {', '.join(self.schema.names)}")
        return RowBatch.from_arrays([_cast(named[f.name], f.type, f.name) for f in self.schema], schema=self.schema)


def _type_in(schema: pa.Schema, name: str) -> pa.DataType | None:
    index = schema.get_field_index(name)
    return schema.field(index).type if index >= 0 else None


def _frame_of(batch: RowBatch, frame: str) -> Any:
    if frame == "arrow":
        return batch
    if frame == "polars":
        return pl.DataFrame(pl.from_arrow(batch))
    import pandas as pd

    return batch.to_pandas(types_mapper=pd.ArrowDtype)


def _batch_of(result: Any) -> RowBatch:
    if isinstance(result, pl.LazyFrame):
        result = result.collect()
    if isinstance(result, pl.DataFrame):
        result = result.rechunk().to_arrow()
    if isinstance(result, pa.Table):
        return one_batch(result.replace_schema_metadata())
    if isinstance(result, RowBatch):
        return result
    if type(result).__module__.partition(".")[0] == "pandas":
        return RowBatch.from_pandas(result, preserve_index=False).replace_schema_metadata()
    raise TypeError(f"the function returned {type(result).__name__}, which is no Polars, pandas or Arrow frame")


def _like(column: pa.Array, before: pa.DataType | None, untouched: pa.DataType | None, name: str) -> pa.Array:
    """Gives a column back the type it had, where the frame library has only spelt it in its own way."""
    if column.type == before:
        return column
    if before is None or column.type != untouched:
        return plainly(column)
    made = _cast(column, plain(before), name)
    return made if made.type == before else made.cast(before)


def _cast(column: pa.Array, to: pa.DataType, name: str) -> pa.Array:
    made, bad = cast_exactly(plainly(column), to)
    if bad is not None:
        first = column[int(bad.argmax())].as_py()
        raise ValueError(f"the function returned {first!r:.100} in the column {name!r}, which is no {to}")
    return made
