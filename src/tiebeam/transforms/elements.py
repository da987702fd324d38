"""Elements: the way from record batches to dicts, Beam rows and pandas frames, and back, for ordinary Beam code between."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

import apache_beam as beam
import pyarrow as pa
from apache_beam import pvalue
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from tiebeam.dead_letters import Letters, letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import MAX_BATCH_ROWS, ROW_TIME, RowBatch, cut
from tiebeam.steps import BatchFn, apply_batches
from tiebeam.transforms import _types
from tiebeam.transforms._contract import Contract
from tiebeam.transforms._properties import Column
from tiebeam.transforms._shape import conform

_KINDS = ("dict", "row", "pandas")


class ToRows(beam.PTransform):
    """Takes batches apart: into dicts, into Beam rows, or each batch into one pandas frame.

    A row is stamped with its `row_time` and stays in its batch's window; without a `row_time` it takes the batch's
    timestamp. Nothing is lost in values: pandas columns keep Arrow's types (`ArrowDtype`). As `row` a zoned time is a Beam
    Timestamp; with a `schema` the rows have declared types, which transforms that need a Beam schema ask for.

    In: batches of any schema.
    Out: dicts, `beam.Row`s or frames.

    Example:
        >>> batch = RowBatch.from_pydict({"kind": ["a", "b", "a"], "n": [1, 2, 3]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     rows = p | beam.Create([batch]) | ToRows("row")
        ...     sums = rows | beam.GroupBy("kind").aggregate_field("n", sum, "n")
        ...     _ = sums | beam.Map(lambda row: f"{row.kind} {row.n}") | beam.combiners.ToList() | beam.Map(sorted) | beam.Map(print)
        ['a 4', 'b 2']
    """

    def __init__(self, as_: str = "dict", schema: pa.Schema | None = None):
        super().__init__()
        if as_ not in _KINDS:
            raise ConfigError(Problem(f"rows cannot be made {as_!r}", "ToRows", f"one of: {', '.join(_KINDS)}"))
        self.as_ = as_
        self.schema = schema

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        made = beam.ParDo(_TakeApartFn(self.as_))
        if self.as_ == "row" and self.schema is not None:
            made = made.with_output_types(RowTypeConstraint.from_fields([(f.name, _typing_of(f.type)) for f in self.schema]))
        return batches | "Take apart" >> made


class FromRows(beam.PTransform):
    """Puts dicts, Beam rows, named tuples or pandas frames together into batches of one schema.

    Rows of one window that come in one bundle share batches of up to 65,536 rows, stamped with their smallest timestamp. A
    field that a row lacks is null; where the schema has a `row_time` and a row has none, it is the row's Beam timestamp.

    In: mappings, `beam.Row`s, named tuples, pandas frames, also mixed.
    Out: batches of `schema`.
    Errors: an element that does not fit without loss is a dead letter (as JSON): a value of another type is `not_castable`, a
    field the schema does not name is `new_column`. The rows of a frame are judged by column, as `Conform` does.

    Example:
        >>> schema = pa.schema([("name", pa.string()), ("n", pa.int64())])
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     _ = p | beam.Create([{"name": "a", "n": 1}]) | FromRows(schema) | beam.Map(lambda batch: print(batch.to_pylist()))
        [{'name': 'a', 'n': 1}]
    """

    def __init__(self, schema: pa.Schema):
        super().__init__()
        self.schema = schema

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return apply_batches(rows, "Put together", _PutTogetherFn(self.label, self.schema))


class _TakeApartFn(beam.DoFn):
    def __init__(self, as_: str):
        self.as_ = as_

    def process(self, batch, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        if self.as_ == "pandas":
            import pandas as pd

            yield batch.to_pandas(types_mapper=pd.ArrowDtype)
            return
        columns = {name: _python_of(column, self.as_) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        times = batch.column(ROW_TIME).cast(pa.int64()).to_pylist() if ROW_TIME in columns else [None] * batch.num_rows
        for time, values in zip(times, zip(*columns.values(), strict=True), strict=True):
            row = dict(zip(columns, values, strict=True))
            at = timestamp if time is None else Timestamp(micros=time)
            yield WindowedValue(beam.Row(**row) if self.as_ == "row" else row, at, (window,))


def _python_of(column: pa.Array, as_: str) -> list[Any]:
    values = column.to_pylist()
    if as_ == "dict":
        return values
    if pa.types.is_timestamp(column.type) and column.type.tz and column.type.unit != "ns":
        return [None if v is None else Timestamp.from_utc_datetime(v.astimezone(datetime.UTC)) for v in values]
    if pa.types.is_struct(column.type):
        fields = {f.name: _python_of(part, as_) for f, part in zip(column.type, column.flatten(), strict=True)}
        rows = zip(*fields.values(), strict=True)
        return [None if v is None else beam.Row(**dict(zip(fields, row, strict=True))) for v, row in zip(values, rows, strict=True)]
    return values


def _typing_of(type: pa.DataType) -> Any:
    """The Python type that stands for an Arrow type in a Beam schema; Any where there is none."""
    match _types.kind(type):
        case "integer" if type != pa.uint64():
            return Optional[int]  # noqa: UP045 -- Beam's schemas do not read X | None
        case "object":
            return Optional[RowTypeConstraint.from_fields([(f.name, _typing_of(f.type)) for f in type])]  # noqa: UP045
        case "timestamp" if type.tz and type.unit != "ns":
            return Optional[Timestamp]  # noqa: UP045
        case "array" if _types.kind(type.value_type) in ("integer", "number", "string", "boolean"):
            item: Any = _typing_of(type.value_type)
            return Optional[Sequence[item]]  # noqa: UP045
    plain = {"number": float, "string": str, "binary": bytes, "boolean": bool, "decimal": decimal.Decimal}.get(_types.kind(type))
    return Any if plain is None else Optional[plain]  # noqa: UP045


class _PutTogetherFn(BatchFn):
    """Holds the rows of a bundle by window, and lets them go when there are enough of them or the bundle ends."""

    def __init__(self, step: str, schema: pa.Schema):
        super().__init__(step)
        self.schema = schema
        self.held: dict[Any, list[tuple[dict[str, Any], Timestamp]]] = {}

    def start_bundle(self):
        self.held = {}

    def process(self, element, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        if type(element).__module__.partition(".")[0] == "pandas":
            yield from self._placed(self._fit_frame(element), window, timestamp)
            return
        rows = self.held.setdefault(window, [])
        rows.append((self._dict_of(element, timestamp), timestamp))
        if len(rows) == MAX_BATCH_ROWS:
            yield from self._let_go(window)

    def finish_bundle(self):
        for window in list(self.held):
            yield from self._let_go(window)

    def _let_go(self, window: Any) -> Iterator[Any]:
        rows = self.held.pop(window)
        times = [time for _, time in rows]
        yield from self._placed(self._fit([row for row, _ in rows], times), window, min(times))

    def _placed(self, results: Iterable[RowBatch | Letters], window: Any, timestamp: Timestamp) -> Iterator[Any]:
        for result in self.emit(results):
            if isinstance(result, pvalue.TaggedOutput):
                yield pvalue.TaggedOutput(result.tag, WindowedValue(result.value, timestamp, (window,)))
            else:
                yield WindowedValue(result, timestamp, (window,))

    def _dict_of(self, element: Any, timestamp: Timestamp) -> dict[str, Any]:
        row = _plain(element)
        if not isinstance(row, dict):
            takes = "takes mappings, Beam rows, named tuples and pandas frames"
            raise TypeError(f"step {self.step!r} {takes}, not {type(element).__name__}: {element!r:.200}")
        if ROW_TIME in self.schema.names and row.get(ROW_TIME) is None and timestamp > MIN_TIMESTAMP:
            row = {**row, ROW_TIME: timestamp.to_utc_datetime(has_tz=True)}
        return row

    def _fit(self, rows: list[dict[str, Any]], times: list[Timestamp]) -> Iterator[RowBatch | Letters]:
        wrong: dict[int, list[tuple[str, str]]] = {}
        names = set(self.schema.names)
        for i, row in enumerate(rows):
            if extra := row.keys() - names:
                wrong[i] = [("new_column", f"{name}: {row[name]!r:.100} is not in the schema") for name in sorted(map(str, extra))]
        columns = []
        for field in self.schema:
            column, bad = _array([row.get(field.name) for row in rows], field.type)
            columns.append(column)
            for i in bad:
                wrong.setdefault(i, []).append(("not_castable", f"{field.name}: {rows[i].get(field.name)!r:.100} is no {field.type}"))
        batch = RowBatch.from_arrays(columns, schema=self.schema)
        if not wrong:
            yield batch
            return
        yield batch.filter(pa.array([i not in wrong for i in range(len(rows))]))
        yield letters(
            self.step,
            [wrong[i][0][0] for i in sorted(wrong)],
            ["; ".join(detail for _, detail in wrong[i]) for i in sorted(wrong)],
            [json.dumps(rows[i], default=str, ensure_ascii=False).encode() for i in sorted(wrong)],
            "json",
            times=[None if times[i] == MIN_TIMESTAMP else times[i].micros for i in sorted(wrong)],
        )

    def _fit_frame(self, frame: Any) -> Iterator[RowBatch | Letters]:
        batch = RowBatch.from_pandas(frame, preserve_index=False)
        judged = conform(batch, Contract(self.step, tuple(Column(f.name, f.type) for f in self.schema)))
        bad = judged.bad
        for part in cut(judged.rows.filter(pa.array(~bad))):
            yield part.select(self.schema.names)
        if bad.any():
            at = [i for i in range(batch.num_rows) if bad[i]]
            yield letters_of_rows(self.step, batch.take(pa.array(at)), [judged.reason(i) for i in at], [judged.detail(i) for i in at])


def _plain(value: Any) -> Any:
    """Beam rows and named tuples as dicts, Beam timestamps as datetimes, at every depth."""
    if isinstance(value, beam.Row):
        return {name: _plain(part) for name, part in value.as_dict().items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return value.to_utc_datetime(has_tz=True) if isinstance(value, Timestamp) else value


def _array(values: list[Any], type: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Makes a column of Python values, and tells which of them it cannot hold as they are."""
    try:
        made = pa.array(values, type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        bad = [i for i, value in enumerate(values) if not _fits(value, type)]
        return pa.array([None if i in set(bad) else value for i, value in enumerate(values)], type), bad
    kept = made.to_pylist()
    bad = [] if kept == values else [i for i, pair in enumerate(zip(values, kept, strict=True)) if not _same(*pair)]
    return made, bad


def _fits(value: Any, type: pa.DataType) -> bool:
    try:
        return _same(value, pa.scalar(value, type).as_py())
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return False


def _same(given: Any, kept: Any) -> bool:
    """Whether a value came through Arrow unchanged; a missing field of an object counts as null."""
    if isinstance(kept, dict):
        return isinstance(given, dict) and given.keys() <= kept.keys() and all(_same(given.get(name), kept[name]) for name in kept)
    if isinstance(kept, list):
        if isinstance(given, dict):
            given = list(given.items())
        return not isinstance(given, str | bytes) and len(given) == len(kept) and all(map(_same, given, kept))
    if isinstance(kept, tuple):
        return len(given) == len(kept) and all(map(_same, given, kept))
    if isinstance(kept, float) and math.isnan(kept):
        return isinstance(given, float) and math.isnan(given)
    if isinstance(kept, datetime.datetime) and isinstance(given, datetime.datetime) and kept.tzinfo and given.tzinfo:
        return given.astimezone(datetime.UTC) == kept.astimezone(datetime.UTC)  # an hour that was twice equals nothing else
    return isinstance(given, bool) == isinstance(kept, bool) and bool(given == kept)
