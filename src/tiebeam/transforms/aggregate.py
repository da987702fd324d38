"""Aggregates rows by keys and windows of event time: counts, sums, extremes, moments, first and last, top-k, sketches.

Rows are reduced inside each batch, then across the batches of a bundle, and only these partial states are shuffled, one
batch per shard, never one element per key. Every state merges exactly, so results never depend on how rows were cut, on
their order or on the runner. Floating-point sums too: see docs/decisions/0004-float-sums.md.

Window assignment follows the Beam model (fixed windows, aligned with 1970-01-01 UTC).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindow, GlobalWindows, TimestampCombiner, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from tiebeam.dead_letters import REJECTED, Letters, letters_of_rows, route
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RESERVED, ROW_TIME, RowBatch, batches, one_batch, timestamp_of
from tiebeam.steps import BatchFn
from tiebeam.transforms._moments import StdDev, Variance
from tiebeam.transforms._partials import Partials, Parts
from tiebeam.transforms._reducers import Count, First, Last, Max, Mean, Min, Reducer, Sum
from tiebeam.transforms._shards import SHARDS, split
from tiebeam.transforms._sketches import ApproxDistinct, ApproxQuantiles, TopK
from tiebeam.transforms._states import KEY, Pile, plain
from tiebeam.transforms._windows import WINDOW_START, window_micros, window_starts

__all__ = [
    "Aggregate", "ApproxDistinct", "ApproxQuantiles", "Count", "First", "Last", "Max", "Mean", "Min", "StdDev", "Sum", "TopK", "Variance",
]  # fmt: skip

MAX_PARTIAL_ROWS = 500_000


class Aggregate(beam.PTransform):
    """Groups rows by the columns `by`, and by windows of event time if asked, and reduces each group to one row.

    In: any rows that have the columns named. A column has one type in all batches (or null where a batch has no value).
    Null is a key like any other; so is NaN, and -0.0 is 0.0.
    Out: `window_start` (timestamp[us, UTC], first, only with a window), the columns of `by` in their types, one column
    per reducer, and with a window `row_time`, equal to `window_start`, so that aggregates can be chained. The schema
    follows from that of the rows: `output_schema`. Sorted by window and keys within a batch. No rows, no output.
    Errors: `no_event_time` for rows without `row_time` when a window was asked for. A sum beyond its type stops the job.
    State: one partial row per group and bundle, given on when they are more than 500,000; on merging, the groups of a
    shard are in memory, so that more groups want more `shards`.
    Time: event time. `window` is a length: "30s", "1m", "6h", "1d", or a number of seconds. Bounded input only, for now;
    elements are in the global window, and stamped with their smallest `row_time`.

    Example:
        >>> batch = pa.record_batch({"shop": ["a", "b", "a"], "amount": [0.1, 5.0, 0.2]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     sums = p | beam.Create([batch]) | Aggregate(by=("shop",), shards=1, total=Sum("amount"), n=Count())
        ...     _ = sums | beam.FlatMap(lambda batch: map(print, batch.to_pylist()))
        {'shop': 'a', 'total': 0.30000000000000004, 'n': 2}
        {'shop': 'b', 'total': 5.0, 'n': 1}
    """

    def __init__(self, by: Iterable[str] = (), window: str | float | None = None, shards: int = SHARDS, **reducers: Reducer):
        super().__init__()
        self.by = (by,) if isinstance(by, str) else tuple(by)
        self.window_micros, problems = window_micros(window)
        self.shards = shards
        self.partials = Partials(reducers)
        problems += self._problems()
        if problems:
            raise ConfigError(*problems)

    def _problems(self) -> Iterator[Problem]:
        if not self.keys and not self.partials.reducers:
            yield Problem("there is nothing to compute", "Aggregate", 'name keys or reducers, such as total=Sum("amount")')
        if not isinstance(self.shards, int) or not 1 <= self.shards <= 1 << 16:
            yield Problem(f"{self.shards!r} is not a number from 1 to 65,536", "shards")
        for name in {key for key in self.by if self.by.count(key) > 1}:
            yield Problem(f"{name!r} is named twice", "by")
        taken = [*self.by, *([WINDOW_START, ROW_TIME] if self.window_micros else [])]
        for name in {WINDOW_START, ROW_TIME} & set(self.by) if self.window_micros else ():
            yield Problem(f"{name!r} is the name of the window's own column in the result", "by", "derive it under another name")
        yield from self.partials.problems(taken)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that tell groups apart."""
        return (WINDOW_START, *self.by) if self.window_micros else self.by

    def output_schema(self, rows: pa.Schema) -> pa.Schema:
        """The schema of the result for rows of a schema; raises ConfigError when they cannot be aggregated so."""
        _check_columns(self, rows)
        known = pa.schema([(field.name, plain(pa.nulls(0, field.type)).type) for field in rows])
        fields = [(WINDOW_START, RESERVED[ROW_TIME])] if self.window_micros else []
        fields += [(key, known.field(key).type) for key in self.by]
        fields += list(self.partials.types(rows).items())
        return pa.schema(fields + ([(ROW_TIME, RESERVED[ROW_TIME])] if self.window_micros else []))

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        if not rows.is_bounded:
            raise ConfigError(Problem("takes bounded input only, for now", self.label, "bound the source"))
        earliest = beam.WindowInto(GlobalWindows(), timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST)
        combined = beam.ParDo(_CombineFn(self.label, self)).with_output_types(tuple[int, RowBatch]).with_outputs(REJECTED, main="rows")
        states = route(rows | "Whole run" >> earliest | "Combine within bundles" >> combined)
        merge = beam.ParDo(_MergeFn(self.label, self)).with_output_types(RowBatch)
        return states | "Group by shard" >> beam.GroupByKey() | "Merge" >> merge


def _check_columns(aggregate: Aggregate, rows: pa.Schema) -> None:
    needed = [*aggregate.by, *(c for reducer in aggregate.partials.reducers.values() for c in reducer.columns())]
    needed += [ROW_TIME] if aggregate.window_micros else []
    missing = sorted({c for c in needed if c not in rows.names})
    if missing:
        there = f"the rows have: {', '.join(rows.names)}"
        raise ConfigError(*(Problem(f"there is no column {c!r}", "Aggregate", there) for c in missing))
    nested = [key for key in aggregate.by if pa.types.is_nested(rows.field(key).type)]
    if nested:
        raise ConfigError(*(Problem(f"the key {c!r} is {rows.field(c).type}", "Aggregate", "use flat columns as keys") for c in nested))
    if ROW_TIME in needed and rows.field(ROW_TIME).type not in (RESERVED[ROW_TIME], pa.null()):
        raise ConfigError(Problem(f"{ROW_TIME} is {rows.field(ROW_TIME).type}, not {RESERVED[ROW_TIME]}", "Aggregate"))


class _CombineFn(BatchFn):
    """Reduces batches to states, merges those of a bundle, and emits them by shard."""

    def __init__(self, step: str, aggregate: Aggregate):
        super().__init__(step)
        self.keys = aggregate.keys
        self.by = aggregate.by
        self.shards = aggregate.shards
        self.micros = aggregate.window_micros
        self.partials = aggregate.partials
        self.check = aggregate.output_schema
        self._checked: pa.Schema | None = None

    def start_bundle(self) -> None:
        self._pile = Pile()

    def process(self, batch):
        yield from super().process(batch)
        if self._pile.rows > MAX_PARTIAL_ROWS:
            yield from self._hand_on()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for element in self._hand_on():
            yield WindowedValue(element, MIN_TIMESTAMP, (GlobalWindow(),))

    def apply(self, batch: RowBatch) -> Iterable[Letters]:
        if batch.schema != self._checked:
            self.check(batch.schema)
            self._checked = batch.schema
        if self.micros and batch.column(ROW_TIME).null_count:
            timeless = batch.column(ROW_TIME).is_null()
            refused = batch.filter(timeless)
            detail = f"{ROW_TIME} is null, so the row belongs to no window"
            yield letters_of_rows(self.step, refused, "no_event_time", [detail] * refused.num_rows)
            batch = batch.filter(pc.invert(timeless))
        if batch.num_rows:
            self._reduce(batch)

    def _reduce(self, batch: RowBatch) -> None:
        keys = {key: plain(batch.column(key)) for key in self.by}
        if self.micros:
            keys = {WINDOW_START: window_starts(batch.column(ROW_TIME).cast(RESERVED[ROW_TIME]), self.micros)} | keys
        rows = self.partials.read(batch)
        for part, states in self.partials.lift(rows, keys).items():
            self._pile.add(part, states, rows.schema)

    def _hand_on(self) -> Iterator[tuple[int, RowBatch]]:
        pile, self._pile = self._pile, Pile()
        if pile.schema is None:
            return
        rows = pile.schema.serialize().to_pybytes()
        for part, states in pile.merge().items():
            facts = {"part": part, "rows": rows}
            yield from split(one_batch(states.replace_schema_metadata(facts)), [KEY + key for key in self.keys], self.shards)


class _MergeFn(BatchFn):
    """Merges the states of a shard and emits the results."""

    def __init__(self, step: str, aggregate: Aggregate):
        super().__init__(step)
        self.aggregate = aggregate

    def apply(self, element: tuple[int, Iterable[RowBatch]]) -> Iterator[RowBatch]:
        pile = Pile()
        for batch in element[1]:
            facts = batch.schema.metadata  # travels with the batch: a shard knows no other
            rows = pa.ipc.read_schema(pa.py_buffer(facts[b"rows"]))
            pile.add(facts[b"part"].decode(), pa.Table.from_batches([batch.replace_schema_metadata()]), rows)
        if pile.schema is not None:
            yield from batches(_results(self.aggregate, pile.merge(), pile.schema))

    def emit(self, results: Any) -> Iterator[Any]:
        for batch in super().emit(results):
            yield TimestampedValue(batch, timestamp_of(batch))


def _results(aggregate: Aggregate, parts: Parts, rows: pa.Schema) -> pa.Table:
    found = aggregate.partials.lower(parts, rows)
    types = aggregate.partials.types(rows)
    columns = {key: found.column(KEY + key) for key in aggregate.keys}
    columns |= {name: found.column(name).cast(kind) for name, kind in types.items()}
    return pa.table(columns | ({ROW_TIME: columns[WINDOW_START]} if aggregate.window_micros else {}))
