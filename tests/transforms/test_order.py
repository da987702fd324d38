"""The order of rows follows from the rows alone."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch
from tiebeam.transforms._order import codes_of, order_of, runs_of

TIME = pa.timestamp("us", tz="UTC")


def sorted_by_content(rows: RowBatch, column: str) -> list:
    return rows.take(pa.array(order_of(rows))).column(column).to_pylist()


def test_time_then_position_then_content():
    rows = RowBatch.from_pydict({
        ROW_TIME: pa.array([2, 1, 1, 1, 1]).cast(TIME),
        ROW_POSITION: ["x:0", "x:10", "x:9", None, None],
        "value": ["a", "b", "c", "e", "d"],
    })  # fmt: skip
    assert sorted_by_content(rows, "value") == ["c", "b", "d", "e", "a"]


def test_without_time_the_content_says():
    assert order_of(RowBatch.from_pydict({"value": [3, None, 1]})).tolist() == [1, 2, 0]
    assert order_of(RowBatch.from_pydict({"value": pa.array([], pa.int64())})).tolist() == []


def test_the_order_of_columns_says_nothing():
    rows = RowBatch.from_pydict({"b": [1, 2], "a": [2, 1]})
    assert sorted_by_content(rows, "a") == sorted_by_content(rows.select(["a", "b"]), "a") == [1, 2]


@pytest.mark.parametrize("precision", [38, 60])
def test_decimals_of_any_width_compare_as_numbers(precision):
    values = [Decimal(n) / 100 for n in (*np.random.default_rng(1).integers(-(10**15), 10**15, 200).tolist(), -1, 0, 1)]
    column = pa.array([None, *values], pa.decimal256(precision, 2) if precision > 38 else pa.decimal128(precision, 2))
    assert sorted_by_content(RowBatch.from_pydict({"value": column}), "value") == [None, *sorted(values)]
    assert sorted_by_content(RowBatch.from_pydict({"value": column}).slice(1), "value") == sorted(values)


@pytest.mark.parametrize("values", [[{"x": 2}, {"x": 1}], [[2], [1]]])
def test_nested_content_has_an_order(values):
    assert order_of(RowBatch.from_pydict({"value": values})).tolist() == [1, 0]


few = st.integers(-2, 2)


@given(st.lists(st.tuples(st.one_of(st.none(), few), st.sampled_from(["a", "b", None]), few, few), max_size=40))
def test_rows_of_one_key_stand_side_by_side_in_their_order(given_rows):
    a, b, times, values = (list(column) for column in zip(*given_rows, strict=True)) if given_rows else ([], [], [], [])
    columns = {"a": pa.array(a, pa.int64()), "b": pa.array(b, pa.string()), ROW_TIME: pa.array(times, pa.int64()).cast(TIME)}
    rows = RowBatch.from_pydict({**columns, "value": pa.array(values, pa.int64())})
    runs = runs_of(rows, ("a", "b"))
    ordered = [given_rows[i] for i in runs.order]
    assert sorted(runs.order) == list(range(len(ordered)))
    for start, end in zip(runs.starts, runs.ends, strict=True):
        run = ordered[start:end]
        assert len({row[:2] for row in run}) == 1
        assert [row[2:] for row in run] == sorted(row[2:] for row in run)
    assert len(runs.starts) == len({row[:2] for row in given_rows})
    assert runs.times.tolist() == [row[2] for row in ordered]


def test_codes_tell_more_keys_apart_than_sixteen_bits():
    many = np.arange(200_000)
    rows = RowBatch.from_pydict({"key": many % 100_000, ROW_TIME: pa.array(many[::-1]).cast(TIME)})
    runs = runs_of(rows, ["key"])
    assert len(runs.starts) == 100_000
    assert (np.diff(runs.run) >= 0).all()
    assert (runs.times[1::2] > runs.times[::2]).all()


def test_equal_is_null_and_null_nan_and_nan_zero_and_zero():
    values = pa.array([float("nan"), -float("nan"), 0.0, -0.0, None, None])
    assert codes_of([values], 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(codes_of([values, pa.array([1, 1, 1, 2, None, None])], 6).tolist())) == 4
