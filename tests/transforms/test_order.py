"""The order of rows follows from the rows alone."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch
from tiebeam.transforms._order import in_order, order_of

TIME = pa.timestamp("us", tz="UTC")


def test_time_then_position_then_content():
    rows = RowBatch.from_pydict({
        ROW_TIME: pa.array([2, 1, 1, 1, 1]).cast(TIME),
        ROW_POSITION: ["x:0", "x:10", "x:9", None, None],
        "value": ["a", "b", "c", "e", "d"],
    })  # fmt: skip
    assert in_order(rows)["value"].to_pylist() == ["c", "b", "d", "e", "a"]


def test_a_key_comes_before_the_time():
    rows = RowBatch.from_pydict({"key": ["b", None, "a"], ROW_TIME: pa.array([0, 2, 1]).cast(TIME)})
    assert in_order(rows, ["key"])["key"].to_pylist() == [None, "a", "b"]


def test_without_time_and_key_the_content_says():
    assert order_of(RowBatch.from_pydict({"value": [3, None, 1]})).tolist() == [1, 2, 0]
    assert order_of(RowBatch.from_pydict({"value": pa.array([], pa.int64())})).tolist() == []


def test_the_order_of_columns_says_nothing():
    rows = RowBatch.from_pydict({"b": [1, 2], "a": [2, 1]})
    assert in_order(rows)["a"].to_pylist() == in_order(rows.select(["a", "b"]))["a"].to_pylist() == [1, 2]


@pytest.mark.parametrize("precision", [38, 60])
def test_decimals_of_any_width_compare_as_numbers(precision):
    values = [Decimal(n) / 100 for n in (*np.random.default_rng(1).integers(-(10**15), 10**15, 200).tolist(), -1, 0, 1)]
    column = pa.array([None, *values], pa.decimal256(precision, 2) if precision > 38 else pa.decimal128(precision, 2))
    assert in_order(RowBatch.from_pydict({"key": column}).slice(1), ["key"])["key"].to_pylist() == sorted(values)
    assert order_of(RowBatch.from_pydict({"key": column}), ["key"])[0] == 0


@pytest.mark.parametrize("values", [[{"x": 2}, {"x": 1}], [[2], [1]]])
def test_nested_content_has_an_order(values):
    rows = RowBatch.from_pydict({"value": values})
    assert order_of(rows).tolist() == order_of(rows.take([1, 0]))[::-1].tolist() == [1, 0]
