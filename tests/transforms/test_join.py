"""Join beyond its laws (tests/laws): what it refuses, odd keys, and what it keeps."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from support import folding, matrix
from support.events import MINUTE, SECOND, TIME, clicks
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._fold import END, mark, tables_of
from tiebeam.transforms.join import Join

RIGHT = pa.schema([("x", pa.int64())])


def rows_of(keys, micros, **more) -> RowBatch:
    return RowBatch.from_pydict({"key": keys, ROW_TIME: pa.array(micros, pa.int64()).cast(TIME), **more})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(on=()), "names no key"),
        (dict(on="key", how="outer"), "inner, left, full, anti"),
        (dict(on="key", between=("1m", "-1m")), "is after"),
        (dict(on="key", between=("1m",)), "are not two ends"),
        (dict(on="key", between=("soon", "later")), "(?s)'soon'.*'later'"),
        (dict(on="key", between=("-1m", "1m"), as_of=True), "not both"),
        (dict(on="key", as_of=True, how="full"), "inner, left or anti"),
        (dict(on="key", within="1m"), "set as_of=True"),
        (dict(on="key", how="left"), "(?s)right_columns.*name them"),
        (dict(on="key", how="full"), "(?s)right_columns.*left_columns"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, said):
    with pytest.raises(ConfigError, match=said):
        Join(**options)


def joined(join: Join, left: RowBatch, right: RowBatch) -> matrix.Rows:
    return folding.at_once(join.fold, {"left": [left], "right": [right]})


@pytest.mark.parametrize(
    ("join", "left", "said"),
    [
        (Join("key", as_of=True, shards=1), rows_of([1], [0]), "the key 'key' is int64 on one side and string on the other"),
        (Join("key", as_of=True), rows_of(["a"], [0], x=[1], x_right=[1]), "both sides have columns 'x' and 'x_right'"),
        (Join("key", as_of=True), RowBatch.from_pydict({"key": ["a"]}), "no column 'row_time'"),
        (Join("key", "left", as_of=True, right_columns=pa.schema([("y", pa.int64())])), rows_of(["a"], [0]), "no column 'y'"),
        (Join("key", "left", as_of=True, right_columns=pa.schema([("x", pa.string())])), rows_of(["a"], [0]), "'x' is int64, not string"),
    ],
)
def test_rows_that_do_not_fit_stop_the_job(join, left, said):
    with pytest.raises(ConfigError, match=said):
        matrix.in_batch(join, {"left": [left], "right": [rows_of(["a"], [0], x=[1])]})


def test_one_input_is_not_enough():
    with pytest.raises(ConfigError, match="two inputs"):
        matrix.in_batch(Join("key", as_of=True), [rows_of(["a"], [0])])


def test_streams_are_joined_in_time(prism):
    inputs = {"left": [rows_of(["a"], [0])], "right": [rows_of(["a"], [0], x=[1])]}
    with pytest.raises(ConfigError, match="say what matches in time"):
        matrix.in_ticks(Join("key"), inputs, prism.flags())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pa.array([1, 2], pa.int8()), pa.array([2, 3], pa.int64())),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "c"], pa.large_string())),
        (pa.array(["a", "b"], pa.string_view()), pa.array(["b", "c"])),
        (pa.array([Decimal(1), Decimal(2)], pa.decimal256(50, 2)), pa.array([Decimal(2), Decimal(3)], pa.decimal256(50, 2))),
        (pa.array([float("nan"), -0.0]), pa.array([0.0, 1.0])),
    ],
)
def test_keys_of_kindred_types_are_equal(ours, theirs):
    left, right = rows_of(ours, [0, 0], n=[1, 2]), rows_of(theirs, [0, 0], x=[3, 4])
    assert [(row["n"], row["x"]) for row in matrix.in_batch(Join("key"), {"left": [left], "right": [right]}).rows] == [(2, 3)]


def test_ends_are_included_and_no_more():
    left = rows_of(["a"], [0])
    right = rows_of(["a"] * 4, [-MINUTE - 1, -MINUTE, 2 * MINUTE, 2 * MINUTE + 1], x=[1, 2, 3, 4])
    assert [row["x"] for row in joined(Join("key", between=("-1m", "2m")), left, right)] == [2, 3]
    assert [row["x"] for row in joined(Join("key", as_of=True, within="1m"), left, right)] == [2]
    assert joined(Join("key", as_of=True, within=59), left, right) == []


@pytest.mark.parametrize("keys", [1, 100_000])
def test_one_key_and_many(keys):
    n = 100_000
    left = rows_of(pa.array(np.arange(n) % keys), np.arange(n) * SECOND)
    right = rows_of(pa.array(np.arange(n) % keys), np.arange(n) * SECOND, x=pa.array(np.arange(n)))
    (*parts,) = Join("key", as_of=True).fold.fold({}, {"left": left, "right": right}, END).rows
    found = pa.Table.from_batches(parts)
    assert found.num_rows == n
    assert found["x"].to_pylist() == (found[ROW_TIME].cast(pa.int64()).to_numpy() // SECOND).tolist()


def test_many_pairs_come_in_pieces():
    n = 700
    both = {"left": rows_of(["a"] * n, np.arange(n)), "right": rows_of(["a"] * n, np.arange(n), x=np.arange(n))}
    sizes = [batch.num_rows for batch in Join("key").fold.fold({}, both, END).rows]
    assert sum(sizes) == n * n
    assert max(sizes) <= 65_536


def test_types_of_the_rows_stay():
    left, right = clicks(np.random.default_rng(1), 60), clicks(np.random.default_rng(2), 60)
    for batch in Join("user", as_of=True).fold.fold({}, {"left": left, "right": right}, END).rows:
        assert batch.select(left.schema.names).schema == left.schema
        assert batch.schema.field("device_right").type == right.schema.field("device").type


@pytest.mark.parametrize(
    ("join", "most"),
    [(Join("key", between=("-1m", "1m")), 4), (Join("key", as_of=True), 51), (Join("key", as_of=True, within="2m"), 4)],
)
def test_only_what_may_match_is_remembered(join, most):
    state = {}
    for tick in range(50):
        rows = [mark(rows_of([f"u{tick}", "always"], [tick * MINUTE + 1] * 2, x=[1, 2]), name=name) for name in ("left", "right")]
        folded = join.fold.fold(state, tables_of(rows), (tick + 1) * MINUTE)
        list(folded.rows)
        state = folding.through_coder(folded.state)
    assert 2 <= max(rows.num_rows for rows in state.values()) <= most
