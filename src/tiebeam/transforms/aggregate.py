"""Aggregates rows by keys and windows of event time: counts, sums, extremes, moments, first and last, top-k, sketches.

Bounded input is reduced inside each batch, then across the batches of a bundle, and only these partial states are shuffled, one
batch per shard, never one element per key. An endless one is folded tick by tick (tiebeam.transforms._window_fold), from the same
states. Every state merges exactly, so results never depend on how rows were cut, on their order, on the runner or on whether the
input ends. Floating-point sums too: see docs/decisions/0004-float-sums.md.

Windows are those of the Beam model: https://beam.apache.org/documentation/programming-guide/#windowing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow, GlobalWindows, TimestampCombiner, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from tiebeam.dead_letters import REJECTED, Letters, route
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RESERVED, ROW_TIME, RowBatch, batches, one_batch, timestamp_of
from tiebeam.steps import BatchFn
from tiebeam.transforms._fold import Fold, names
from tiebeam.transforms._keyed import Keyed, WithLate, in_time
from tiebeam.transforms._moments import StdDev, Variance
from tiebeam.transforms._partials import Partials, Parts
from tiebeam.transforms._reducers import Count, First, Last, Max, Mean, Min, Reducer, Sum
from tiebeam.transforms._shards import SHARDS, split
from tiebeam.transforms._sketches import ApproxDistinct, ApproxQuantiles, TopK
from tiebeam.transforms._states import KEY, Pile, plain
from tiebeam.transforms._ticks import LATE
from tiebeam.transforms._window_fold import PANE, SessionWindowFold, WindowFold, Windows
from tiebeam.transforms._windows import (
    WINDOW_END,
    WINDOW_START,
    Calendar,
    Fixed,
    Sessions,
    Sliding,
    Window,
    length_micros,
    lengths,
    windowing,
)  # fmt: skip

__all__ = [
    "Aggregate", "ApproxDistinct", "ApproxQuantiles", "Calendar", "Count", "First", "Fixed", "Last", "Max", "Mean", "Min", "Sessions",
    "Sliding", "StdDev", "Sum", "TopK", "Variance",
]  # fmt: skip

MAX_PARTIAL_ROWS = 500_000


class Aggregate(beam.PTransform):
    """Groups rows by the columns `by`, and by windows of event time if asked, and reduces each group to one row.

    `window` is a length, for fixed windows ("30s", "1m", "6h", "1d", or a number of seconds), or one of Fixed(size, offset),
    Sliding(size, period), Sessions(gap), Calendar("day", zone).
    In: any rows that have the columns named. A column has one type in all batches (or null where a batch has no value).
    Null is a key like any other; so is NaN, and -0.0 is 0.0.
    Out: with a window `window_start` and `window_end` (timestamp[us, UTC], the end excluded); the columns of `by` in their types, one
    column per reducer, and with a window `row_time`, its last microsecond, so that aggregates can be chained. The schema follows from
    that of the rows: `output_schema`. Sorted by window and keys within a batch. No rows, no output.
    Errors: `no_event_time` for rows without `row_time` when a window was asked for; `time_out_of_range`, and of an endless
    input `late`. A sum beyond its type stops the job.
    State: bounded: one partial row per group and bundle, given on when they are more than 500,000; on merging, the groups of a shard
    are in memory, so that more groups want more `shards`. Endless: one partial row per key and pane of an open window.
    Time: event time. An endless input needs a window. It is told when it is over, after `lateness`; rows later than that leave whole by the
    output `late` (`late="output"` gives a `WithLate`) or are dead letters. With `early` every window that changed is also told so often
    in event time, with a column `pane`, "early" or "on_time": all that is known of it (`accumulation="accumulating"`), or what
    came new since it was told (`"discarding"`). A bounded input has only panes on time.

    Example:
        >>> batch = pa.record_batch({"shop": ["a", "b", "a"], "amount": [0.1, 5.0, 0.2]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     sums = p | beam.Create([batch]) | Aggregate(by=("shop",), shards=1, total=Sum("amount"), n=Count())
        ...     _ = sums | beam.FlatMap(lambda batch: map(print, batch.to_pylist()))
        {'shop': 'a', 'total': 0.30000000000000004, 'n': 2}
        {'shop': 'b', 'total': 5.0, 'n': 1}
    """

    def __init__(
        self,
        by: str | Iterable[str] = (),
        window: Window = None,
        shards: int = SHARDS,
        *,
        early: str | float | None = None,
        accumulation: str = "accumulating",
        tick: str | float | None = None,
        lateness: str | float = 0,
        late: str = "reject",
        **reducers: Reducer,
    ):
        super().__init__()
        self.by = names(by)
        self.window, problems = windowing(window)
        self.early, self.tick = lengths(problems, early=early, tick=tick)
        (self.lateness,) = lengths(problems, 0, lateness=lateness)
        self.shards = shards
        self.discarding = accumulation == "discarding"
        self.late = late
        self.partials = Partials(reducers)
        problems += self._problems(accumulation)
        if problems:
            raise ConfigError(*problems)

    def _problems(self, accumulation: str) -> Iterator[Problem]:
        if not self.keys and not self.partials.reducers:
            yield Problem("there is nothing to compute", "Aggregate", 'name keys or reducers, such as total=Sum("amount")')
        if not isinstance(self.shards, int) or not 1 <= self.shards <= 1 << 16:
            yield Problem(f"{self.shards!r} is not a number from 1 to 65,536", "shards")
        for name in {key for key in self.by if self.by.count(key) > 1}:
            yield Problem(f"{name!r} is named twice", "by")
        told = {WINDOW_START, WINDOW_END, ROW_TIME, *([PANE] if self.early else [])} if self.window else set()
        for name in sorted(told & set(self.by)):
            yield Problem(f"{name!r} is the name of the window's own column in the result", "by", "derive it under another name")
        yield from self.partials.problems([*self.by, *told])
        if accumulation not in ("accumulating", "discarding"):
            yield Problem(f"{accumulation!r} is not one of accumulating, discarding", "accumulation")
        if self.late not in ("reject", "output"):
            yield Problem(f"{self.late!r} is not one of reject, output", "late")
        if self.early and (self.window is None or isinstance(self.window, Sessions)):
            yield Problem("only fixed, sliding and calendar windows are told early", "early", 'add window="1h", or leave it out')
        if self.early and any(isinstance(r, Reducer) and r.fine_grained for r in self.partials.reducers.values()):
            yield Problem("TopK, ApproxDistinct and ApproxQuantiles are not told early", "early", "ask them in an Aggregate of their own")

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that tell groups apart."""
        return (WINDOW_START, *self.by) if self.window else self.by

    def output_schema(self, rows: pa.Schema) -> pa.Schema:
        """The schema of the result for rows of a schema; raises ConfigError when they cannot be aggregated so."""
        _check_columns(self, rows)
        known = pa.schema([(field.name, plain(pa.nulls(0, field.type)).type) for field in rows])
        fields = [(name, RESERVED[ROW_TIME]) for name in (WINDOW_START, WINDOW_END)] if self.window else []
        fields += [(key, known.field(key).type) for key in self.by]
        fields += list(self.partials.types(rows).items())
        fields += [(PANE, pa.string())] if self.early else []
        return pa.schema(fields + ([(ROW_TIME, RESERVED[ROW_TIME])] if self.window else []))

    def keyed(self) -> Keyed:
        """What folds the windows of an endless input, and sessions of any."""
        assert self.window is not None
        if isinstance(self.window, Sessions):
            fold: Fold = SessionWindowFold(self.by, length_micros(self.window.gap, "gap")[0], self.partials)
        else:
            fold = WindowFold(self.windows, self.discarding)
        tick = self.tick or self.early or self.window.tick
        return Keyed(fold, tick=tick, shards=self.shards, lateness=self.lateness, late=self.late)

    @property
    def windows(self) -> Windows:
        assert self.window is not None and not isinstance(self.window, Sessions)
        return Windows(self.by, self.window, self.partials, bool(self.early))

    def expand(self, rows: beam.PCollection) -> Any:
        if not rows.is_bounded and self.window is None:
            what = "an input that never ends has no whole to aggregate"
            raise ConfigError(Problem(what, self.label, 'cut it into windows: window="1h"'))
        if not rows.is_bounded or isinstance(self.window, Sessions):
            return rows | "Windows" >> self.keyed()
        earliest = beam.WindowInto(GlobalWindows(), timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST)
        combined = beam.ParDo(_CombineFn(self.label, self)).with_output_types(tuple[int, RowBatch]).with_outputs(REJECTED, main="rows")
        states = route(rows | "Whole run" >> earliest | "Combine within bundles" >> combined)
        merge = beam.ParDo(_MergeFn(self.label, self)).with_output_types(RowBatch).with_outputs(LATE, main="rows")
        merged = states | "Group by shard" >> beam.GroupByKey() | "Merge" >> merge
        merged[LATE].element_type = RowBatch
        return WithLate(merged.rows, merged[LATE]) if self.late == "output" else merged.rows


def _check_columns(aggregate: Aggregate, rows: pa.Schema) -> None:
    needed = [*aggregate.by, *(c for reducer in aggregate.partials.reducers.values() for c in reducer.columns())]
    needed += [ROW_TIME] if aggregate.window else []
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
        self.aggregate = aggregate
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
        if self.aggregate.window:
            batch, refused = in_time(self.step, batch)
            yield from refused
        if batch.num_rows:
            self._reduce(batch)

    def _reduce(self, batch: RowBatch) -> None:
        aggregate = self.aggregate
        if aggregate.window:
            parts, types = aggregate.windows.lift(batch)
        else:
            read = aggregate.partials.read(batch)
            parts, types = aggregate.partials.lift(read, {key: plain(batch.column(key)) for key in aggregate.by}), read.schema
        for part, states in parts.items():
            self._pile.add(part, states, types)

    def _hand_on(self) -> Iterator[tuple[int, RowBatch]]:
        pile, self._pile = self._pile, Pile()
        if pile.schema is None:
            return
        rows = pile.schema.serialize().to_pybytes()
        together = self.aggregate.by if isinstance(self.aggregate.window, Sliding) else self.aggregate.keys  # panes meet in windows
        for part, states in pile.merge().items():
            facts = {"part": part, "rows": rows}
            yield from split(one_batch(states.replace_schema_metadata(facts)), [KEY + key for key in together], self.aggregate.shards)


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
        if pile.schema is None:
            return
        if self.aggregate.window:
            windows = self.aggregate.windows
            yield from windows.told(windows.of_panes(pile.merge()), pile.schema)
        else:
            yield from batches(_results(self.aggregate, pile.merge(), pile.schema))

    def emit(self, results: Any) -> Iterator[Any]:
        for batch in super().emit(results):
            yield TimestampedValue(batch, timestamp_of(batch))


def _results(aggregate: Aggregate, parts: Parts, rows: pa.Schema) -> pa.Table:
    found = aggregate.partials.lower(parts, rows)
    columns = {key: found.column(KEY + key) for key in aggregate.by}
    return pa.table(columns | {name: found.column(name).cast(kind) for name, kind in aggregate.partials.types(rows).items()})
