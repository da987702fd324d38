"""The kernel of keyed state: whatever the order and the cuts, in batch and as a stream, every row is folded once and in its tick."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from support import matrix
from tiebeam.rows import ROW_TIME, RowBatch, with_column
from tiebeam.transforms._fold import Fold, Folded, Tables, micros_of
from tiebeam.transforms._keyed import Keyed

SECOND = 1_000_000
TIME = pa.timestamp("us", tz="UTC")


class Count(Fold):
    """Numbers the rows of each key by their time: remembers how many each key had."""

    keys: ClassVar = {"rows": ("key",)}

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        seen = dict(zip(*(state["seen"].column(c).to_pylist() for c in ("key", "n")), strict=True)) if state else {}
        if "rows" not in rows:
            return Folded(state=state)
        batch = rows["rows"]
        assert upto > micros_of(batch).max()
        batch = batch.take(pa.array(np.argsort(micros_of(batch), kind="stable")))
        numbers = []
        for key in batch.column("key").to_pylist():
            seen[key] = seen.get(key, 0) + 1
            numbers.append(seen[key])
        kept = RowBatch.from_pydict({"key": pa.array(seen.keys(), pa.string()), "n": pa.array(seen.values(), pa.int64())})
        return Folded([with_column(batch, "n", pa.array(numbers))], {"seen": kept})


def rows_of(n: int, keys: int, seed: int, every: int = SECOND) -> RowBatch:
    """Rows with times all different, in no order."""
    chance = np.random.default_rng(seed)
    times = chance.permutation(n) * every - 5 * every
    return RowBatch.from_pydict({"key": [f"k{k}" for k in chance.integers(0, keys, n)], ROW_TIME: pa.array(times).cast(TIME)})


def numbered(batch: RowBatch) -> matrix.Rows:
    """What must come out, row by row."""
    seen: dict[str, int] = {}
    expected = []
    for row in sorted(batch.to_pylist(), key=lambda row: row[ROW_TIME]):
        seen[row["key"]] = seen.get(row["key"], 0) + 1
        expected.append({**row, "n": seen[row["key"]]})
    return matrix.canonical(expected)


def test_a_bounded_input_is_folded_once():
    batch = rows_of(500, 7, 1)
    rows, letters = matrix.in_batch(Keyed(Count(), tick=10 * SECOND, shards=4), [batch])
    assert (rows, letters) == (numbered(batch), [])


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_gives_the_same(prism, seed):
    batch = rows_of(500, 7, seed)
    rows, letters = matrix.in_ticks(Keyed(Count(), tick=10 * SECOND, shards=4), [batch], prism.flags(), disorder=25 * SECOND, seed=seed)
    assert (rows, letters) == (numbered(batch), [])


@pytest.mark.parametrize("ticks", [(10, 10), (10, 60), (60, 10), (15, 10), (10, 15)])
def test_a_chain_is_exact_on_any_ticks(prism, ticks):
    batch = rows_of(400, 5, 9)
    first, second = (Keyed(Count(), tick=tick * SECOND, shards=3) for tick in ticks)

    def chain(rows):
        return rows | "First" >> first | "Second" >> second

    rows, letters = matrix.in_ticks(chain, [batch], prism.flags(), disorder=25 * SECOND, seed=4)
    assert letters == []
    assert rows == numbered(batch)
