"""Keyed state: one vectorised step per shard and tick, for every transform that remembers rows.

A transform says what it does as a `Fold` (tiebeam.transforms._fold). Rows are shuffled by a stable hash of their key, so that
state belongs to a *shard* of the keys. A bounded input is folded once per shard; an endless one is cut into *ticks* of event
time, and when the watermark has passed the end of a tick, its rows are folded. What comes out depends on event times alone,
never on how rows were cut, on their order, or on whether the input ends. Why it is built so: docs/decisions/0005-keyed-state.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import gcd
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner, TimestampedValue

from tiebeam.dead_letters import REJECTED, Letters, letters_of_rows, route
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RESERVED, ROW_TIME, RowBatch, cut, timestamp_of, with_column
from tiebeam.steps import BatchFn
from tiebeam.transforms._fold import END, Fold, mark, tables_of
from tiebeam.transforms._shards import SHARDS, split, useful_shards
from tiebeam.transforms._spill import GroupByShard
from tiebeam.transforms._states import is_view, plain
from tiebeam.transforms._ticks import LATE, MILLI, FoldTicksFn

EARLIEST, LATEST = -(1 << 63) // 1000 + 1, (1 << 63) // 1000 - 1
"""The years 1677 to 2262 in microseconds: what every engine can tell, also those that count nanoseconds."""


class WithLate(NamedTuple):
    """The outputs of a transform with `late="output"`."""

    rows: beam.PCollection
    late: beam.PCollection


class Keyed(beam.PTransform):
    """Drives a fold over one input or several named ones.

    In: row batches, or a dict of them by the names in `fold.keys`.
    Out: what the fold emits. With `late="output"` a `WithLate`; by default late rows are dead letters, `late`.
    Errors: `no_event_time` and `time_out_of_range` (before 1677 or after 2262).
    Time: ticks of `tick` microseconds, aligned with 1970. A tick is closed when the watermark has passed its end by
    `lateness` microseconds; rows that come later still are late. What is emitted is stamped one millisecond before the end
    of its tick, and behind another such transform by as much later as that one may be.
    """

    def __init__(self, fold: Fold, *, tick: int, shards: int = SHARDS, lateness: int = 0, late: str = "reject"):
        super().__init__()
        self.fold = fold
        self.tick = tick
        self.shards = shards
        self.lateness = lateness
        self.late = late
        self.lag = 0
        if problems := list(self._problems()):
            raise ConfigError(*problems)

    def _problems(self) -> Iterator[Problem]:
        if not isinstance(self.shards, int) or not 1 <= self.shards <= 1 << 16:
            yield Problem(f"{self.shards!r} is not a number from 1 to 65,536", "shards")
        if self.tick < MILLI or self.tick % MILLI:
            yield Problem(f"{self.tick} µs are not whole milliseconds", "tick", "timers count milliseconds")
        if self.late not in ("reject", "output"):
            yield Problem(f"{self.late!r} is not one of reject, output", "late")

    def check(self, rows: pa.Schema, name: str | None = None) -> None:
        """Raises ConfigError when rows of a schema cannot be taken; `name` says of which input, where there are several."""
        name = name or next(iter(self.fold.keys))
        check_columns(type(self).__name__, rows, self.fold.keys[name], self.fold.timed)
        self.fold.check(name, rows)

    def expand(self, inputs: Any) -> Any:
        named = inputs if isinstance(inputs, dict) else dict.fromkeys(self.fold.keys, inputs)
        bounded = all(rows.is_bounded for rows in named.values())
        self.lag = max(lag_behind(rows, self.tick) for rows in named.values()) + -(-self.lateness // MILLI)
        shards = self.shards if bounded else useful_shards(self.shards, next(iter(named.values())).pipeline.runner)
        sharded = [self._sharded(name, rows, shards) for name, rows in named.items()]
        folding: BatchFn
        if bounded:
            together = tuple(sharded) | "Group by shard" >> GroupByShard(self.fold.keys, shards)
            folding = _FoldOnceFn(self.label, self.fold)
        else:
            together = sharded[0] if len(sharded) == 1 else tuple(sharded) | "Together" >> beam.Flatten()
            folding = FoldTicksFn(self.label, self.fold, self.tick, self.lag, self.late)
        outputs = together | "Fold" >> beam.ParDo(folding).with_output_types(RowBatch).with_outputs(REJECTED, LATE, main="rows")
        outputs[LATE].element_type = RowBatch
        rows = route(outputs)
        return WithLate(rows, outputs[LATE]) if self.late == "output" else rows

    def _sharded(self, name: str, rows: beam.PCollection, shards: int) -> beam.PCollection:
        label = f" {name}" if len(self.fold.keys) > 1 else ""
        whole = beam.WindowInto(GlobalWindows(), timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST)
        shard = beam.ParDo(_ShardFn(self.label, self.fold, name, shards)).with_output_types(tuple[int, RowBatch])
        return route(rows | f"Whole run{label}" >> whole | f"Shard{label}" >> shard.with_outputs(REJECTED, main="rows"))


def lag_behind(rows: beam.PCollection, tick: int) -> int:
    """How many milliseconds after its tick's end a row may still come, as it was kept back by the transforms above."""
    return max((above.lag + 1 + -(-(above.fold.holds() + _overhang(above.tick, tick)) // MILLI) for above in _above(rows)), default=0)


def _overhang(above: int, tick: int) -> int:
    """What the ticks of the transform above may reach beyond one's own."""
    return above - gcd(above, tick)


def _above(rows: beam.PCollection) -> Iterator[Keyed]:
    """The next transforms of this kind upstream, on every way."""
    front, seen = [rows.producer], set()
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        composite: Any = node
        while composite is not None and not isinstance(composite.transform, Keyed):
            composite = composite.parent
        if composite is not None:
            yield composite.transform
        else:
            front += [given.producer for given in node.inputs if isinstance(given, beam.PCollection)]


class _ShardFn(BatchFn):
    """Parts the rows of a batch by the shard of their key, and rejects those whose time says nothing."""

    def __init__(self, step: str, fold: Fold, name: str, shards: int):
        super().__init__(step)
        self.fold = fold
        self.name = name
        self.shards = shards
        self._checked: pa.Schema | None = None

    def apply(self, batch: RowBatch) -> Iterable[RowBatch | Letters]:
        if batch.schema != self._checked:
            check_columns(self.step, batch.schema, self.fold.keys[self.name], self.fold.timed)
            self.fold.check(self.name, batch.schema)
            self._checked = batch.schema
        for field in batch.schema:
            if is_view(field.type):
                batch = with_column(batch, field.name, plain(batch.column(field.name)))
        if self.fold.timed:
            batch, refused = in_time(self.step, batch)
            yield from refused
        yield self.fold.trim(self.name, batch)

    def emit(self, results: Any) -> Iterator[Any]:
        for result in super().emit(results):
            if isinstance(result, RowBatch):
                for shard, rows in split(result, self.fold.keys[self.name], self.shards):
                    yield shard, mark(rows, name=self.name)
            else:
                yield result


def check_columns(step: str, rows: pa.Schema, keys: Iterable[str], timed: bool) -> None:
    """Raises ConfigError when rows of a schema lack a key, have a nested one, or need an event time and have none."""
    problems = []
    for name in [*keys, *([ROW_TIME] if timed else [])]:
        if name not in rows.names:
            problems.append(Problem(f"there is no column {name!r}", step, f"the rows have: {', '.join(rows.names)}"))
        elif pa.types.is_nested(rows.field(name).type):
            problems.append(Problem(f"the key {name!r} is {rows.field(name).type}", step, "use flat columns as keys"))
    if timed and ROW_TIME in rows.names and rows.field(ROW_TIME).type not in (RESERVED[ROW_TIME], pa.null()):
        problems.append(Problem(f"{ROW_TIME} is {rows.field(ROW_TIME).type}, not {RESERVED[ROW_TIME]}", step))
    if problems:
        raise ConfigError(*problems)


def in_time(step: str, batch: RowBatch) -> tuple[RowBatch, list[Letters]]:
    """The rows whose event time every engine can tell, and letters of the others."""
    timeless = batch.column(ROW_TIME).is_null()
    micros = batch.column(ROW_TIME).cast(RESERVED[ROW_TIME]).cast(pa.int64())
    strange = pc.fill_null(pc.or_(pc.less(micros, EARLIEST), pc.greater(micros, LATEST)), False)
    told = [
        (timeless, "no_event_time", f"{ROW_TIME} is null, so nothing can be said of when the row was"),
        (strange, "time_out_of_range", f"{ROW_TIME} is before 1677-09-22 or after 2262-04-11"),
    ]
    refused = [
        letters_of_rows(step, rows, reason, [detail] * rows.num_rows)
        for mask, reason, detail in told
        if (rows := batch.filter(mask)).num_rows
    ]
    return (batch.filter(pc.invert(pc.or_(timeless, strange))) if refused else batch), refused


class _FoldOnceFn(BatchFn):
    """Folds all rows of a shard at once, or of a part of it: what is remembered of a key is told by the rows of that key."""

    def __init__(self, step: str, fold: Fold):
        super().__init__(step)
        self.fold = fold

    def apply(self, element: tuple[int, Iterable[RowBatch]]) -> Iterator[RowBatch | Letters]:
        for result in self.fold.fold({}, tables_of(element[1]), END).rows:
            yield from cut(result) if isinstance(result, RowBatch) else (result,)

    def emit(self, results: Any) -> Iterator[Any]:
        for result in super().emit(results):
            yield TimestampedValue(result, timestamp_of(result)) if isinstance(result, RowBatch) else result
