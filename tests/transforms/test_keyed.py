"""The kernel of keyed state: whatever the order and the cuts, in batch and as a stream, every row is folded once and in its tick."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from support import matrix
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch, with_column
from tiebeam.transforms._fold import Fold, Folded, Tables, mark, micros_of
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._ticks import FoldTicksFn

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


class LastSeen(Fold):
    """Says of each key when it was last seen, once a minute has passed without it."""

    keys: ClassVar = {"rows": ("key",)}
    minute = 60 * SECOND

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        last: dict[str, int] = {}
        for batch in [*state.values(), *rows.values()]:
            for key, at in zip(batch.column("key").to_pylist(), micros_of(batch).tolist(), strict=True):
                last[key] = max(at, last.get(key, at))
        over = {key: at for key, at in last.items() if at + self.minute <= upto}
        left = {key: at for key, at in last.items() if key not in over}

        def batch_of(times: dict[str, int], later: int) -> RowBatch:
            moments = pa.array([at + later for at in times.values()], pa.int64()).cast(TIME)
            return RowBatch.from_pydict({"key": pa.array(times, pa.string()), ROW_TIME: moments})

        told = [batch_of(over, self.minute - 1)] if over else []
        return Folded(told, {"last": batch_of(left, 0)} if left else {}, min(left.values()) + self.minute if left else None)


def test_what_is_remembered_is_told_in_time_though_no_row_comes(prism):
    """A tick without rows, in which something is due, has a timer too; a chain of such is exact."""
    batch = RowBatch.from_pydict({"key": ["a", "b", "a"], ROW_TIME: pa.array([0, 7 * SECOND, 100 * SECOND]).cast(TIME)})

    def chain(rows):
        return rows | "Last" >> Keyed(LastSeen(), tick=10 * SECOND) | "Count" >> Keyed(Count(), tick=60 * SECOND)

    rows, letters = matrix.in_ticks(chain, [batch], prism.flags(), seed=1)
    told = [(row["key"], row[ROW_TIME].timestamp(), row["n"]) for row in rows]
    assert (told, letters) == ([("a", 59.999999, 1), ("a", 159.999999, 2), ("b", 66.999999, 1)], [])


def row(key: str, secs: float) -> RowBatch:
    return RowBatch.from_pydict({"key": [key], ROW_TIME: pa.array([int(secs * SECOND)]).cast(TIME), "more": [secs]})


ARRIVALS = (row("a", 5), row("a", 12), 20.0, row("a", 19), row("a", 21), 40.0, row("a", 8))


def outcome(keyed: Keyed, flags: list[str], *events) -> matrix.Outcome:
    return matrix.run({"trial": matrix.Trial(keyed, [])}, matrix.scripted(*events), flags)["trial"]


def test_rows_that_come_too_late_are_dead_letters(prism):
    rows, letters = outcome(Keyed(Count(), tick=10 * SECOND), prism.flags(), *ARRIVALS)
    assert sorted(row["more"] for row in rows) == [5, 12, 21]
    assert sorted((letter["reason"], letter[ROW_TIME].timestamp()) for letter in letters) == [("late", 8), ("late", 19)]


def test_rows_that_come_too_late_leave_whole_by_their_output(prism):
    rows, late = outcome(Keyed(Count(), tick=10 * SECOND, late="output"), prism.flags(), *ARRIVALS)
    assert sorted(row["more"] for row in rows) == [5, 12, 21]
    assert sorted((row["key"], row[ROW_TIME].timestamp(), row["more"]) for row in late) == [("a", 8, 8.0), ("a", 19, 19.0)]


def test_a_tick_is_kept_open_for_as_long_as_rows_may_be_late(prism):
    rows, letters = outcome(Keyed(Count(), tick=10 * SECOND, lateness=10 * SECOND), prism.flags(), *ARRIVALS)
    assert sorted((row["more"], row["n"]) for row in rows) == [(5, 1), (12, 2), (19, 3), (21, 4)]
    assert [letter[ROW_TIME].timestamp() for letter in letters] == [8]


def test_state_of_an_older_version_is_upgraded_and_of_a_newer_refused():
    driver = FoldTicksFn("test", Count(), 10 * SECOND, 0, "reject")
    old = mark(RowBatch.from_pydict({"key": ["a"], "n": [4]}), name="seen", version=0)

    class Newer(Count):
        version = 2

        def upgrade(self, version, state):
            return {"seen": with_column(state["seen"], "n", pa.array([version * 100]))}

    class Bag:
        def read(self):
            return [old]

    assert FoldTicksFn("test", Newer(), 10 * SECOND, 0, "reject")._remembered(Bag())["seen"].to_pylist() == [{"key": "a", "n": 0}]
    with pytest.raises(ConfigError, match="version 0"):
        driver._remembered(Bag())


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tick": 500}, "milliseconds"), ({"shards": 0}, "65,536"), ({"late": "keep"}, "reject, output")],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Keyed(Count(), **{"tick": SECOND, **options})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"key": ["a"]}, "no column 'row_time'"),
        ({ROW_TIME: pa.array([0]).cast(TIME)}, "no column 'key'"),
        ({"key": [["a"]], ROW_TIME: pa.array([0]).cast(TIME)}, "use flat columns"),
        ({"key": ["a"], ROW_TIME: pa.array([0]).cast(pa.timestamp("ms"))}, "row_time is timestamp"),
    ],
)
def test_rows_that_cannot_be_folded_stop_the_job(columns, said):
    with pytest.raises(ConfigError, match=said):
        matrix.in_batch(Keyed(Count(), tick=SECOND), [RowBatch.from_pydict(columns)])
