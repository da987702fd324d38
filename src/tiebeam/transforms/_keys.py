"""Keys: of the rows of a bounded run that share a key, one stays and the others are dead letters.

Rows are shuffled by a stable hash of the key (tiebeam.transforms._shards). Each group is read twice: once for
its keys alone, once to let rows through; only rows whose key is taken twice are held together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindows, TimestampedValue

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import MAX_BATCH_ROWS, ROW_CHANGE, ROW_POSITION, RowBatch, concat, cut, timestamp_of
from tiebeam.steps import BatchFn, apply_batches
from tiebeam.transforms._rules import Mask, mask
from tiebeam.transforms._shards import split


class UniqueRows(beam.PTransform):
    """Keeps one row of each key: the one with the smallest row_position, without positions the smallest by content."""

    def __init__(self, step: str, key: tuple[str, ...], shards: int):
        super().__init__()
        self.step = step
        self.key = key
        self.shards = shards

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        if not isinstance(rows.windowing.windowfn, GlobalWindows):
            what = "keys are judged over the whole run, and this input is in windows"
            raise ConfigError(Problem(what, self.step, "put WindowInto behind it"))
        sharded = rows | "Shard" >> beam.ParDo(_ShardFn(self.key, self.shards)).with_output_types(tuple[int, RowBatch])
        return apply_batches(sharded | "Group" >> beam.GroupByKey(), "Keep first", _KeepFirstFn(self.step, self.key))


class _ShardFn(beam.DoFn):
    def __init__(self, key: tuple[str, ...], shards: int):
        self.key = key
        self.shards = shards

    def process(self, batch: RowBatch) -> Iterator[tuple[int, RowBatch]]:
        yield from split(batch, self.key, self.shards)


class _KeepFirstFn(BatchFn):
    def __init__(self, step: str, key: tuple[str, ...]):
        super().__init__(step)
        self.key = list(key)

    def process(self, element):
        for result in _in_full(super().process(element)):
            yield TimestampedValue(result, timestamp_of(result)) if isinstance(result, RowBatch) else result

    def apply(self, shard: tuple[int, Iterable[RowBatch]]) -> Iterator[RowBatch | Letters]:
        batches = shard[1]
        frames = [self._keys(batch) for batch in batches]
        keys = pl.concat(frames, how="vertical_relaxed")
        twice = keys.filter(pl.struct(self.key).is_duplicated()).unique()
        held = []
        for batch, frame in zip(batches, frames, strict=True):
            if not len(twice):
                yield batch
                continue
            shared = self._shared(batch, frame, twice)
            yield batch.filter(pa.array(~shared))
            held.append(batch.filter(pa.array(shared)))
        if held:
            yield from self._resolve(concat(held))

    def _keys(self, batch: RowBatch) -> pl.DataFrame:
        return pl.DataFrame(pl.from_arrow(batch.select(self.key).filter(pa.array(self._judged(batch)))))

    def _judged(self, batch: RowBatch) -> Mask:
        """Rows that claim a key: all parts of it are there, and the row is no change of an older one."""
        judged = np.logical_and.reduce([mask(pc.is_valid(batch.column(name))) for name in self.key])
        return judged & ~mask(pc.is_valid(batch.column(ROW_CHANGE))) if ROW_CHANGE in batch.schema.names else judged

    def _shared(self, batch: RowBatch, frame: pl.DataFrame, twice: pl.DataFrame) -> Mask:
        numbered = frame.with_row_index("__row").cast({name: twice.schema[name] for name in self.key})
        rows = np.flatnonzero(self._judged(batch))[numbered.join(twice, on=self.key, how="semi")["__row"].to_numpy()]
        shared = np.zeros(batch.num_rows, bool)
        shared[rows] = True
        return shared

    def _resolve(self, rows: RowBatch) -> Iterator[RowBatch | Letters]:
        winners: dict[tuple[Any, ...], int] = {}
        losers, details = [], []
        content = rows.to_pylist()
        for i in sorted(range(rows.num_rows), key=lambda i: _rank(content[i])):
            key = tuple(content[i][name] for name in self.key)
            first = winners.setdefault(key, i)
            if first != i:
                place = content[first].get(ROW_POSITION)
                losers.append(i)
                by = f" by the row at {place}" if place else ""
                details.append(f"{', '.join(self.key)}: {', '.join(map(str, key))} is already taken{by}")
        yield from cut(rows.take(pa.array(list(winners.values()), pa.int64())))
        yield letters_of_rows(self.step, rows.take(pa.array(losers, pa.int64())), "duplicate_key", details)


def _in_full(results: Iterable[Any]) -> Iterator[Any]:
    """Joins what a shard got of many small batches: what comes after a key should not pay for how it was judged."""
    held: list[RowBatch] = []
    for result in results:
        if not isinstance(result, RowBatch):
            yield result
        elif held and (held[0].schema != result.schema or sum(b.num_rows for b in held) + result.num_rows > MAX_BATCH_ROWS):
            yield concat(held)
            held = [result]
        else:
            held.append(result)
    if held:
        yield concat(held)


def _rank(row: dict[str, Any]) -> tuple[bool, str, str]:
    position = row.get(ROW_POSITION)
    return position is None, position or "", repr(sorted((name, str(value)) for name, value in row.items() if value is not None))
