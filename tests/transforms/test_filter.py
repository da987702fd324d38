"""Filter: true stays, false and null go and are counted, what cannot be computed is a dead letter."""

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.metrics import MetricsFilter
from hypothesis import given, settings
from hypothesis import strategies as st

from support.applied import applied, cuts_of
from tiebeam.errors import ConfigError
from tiebeam.rows import RowBatch
from tiebeam.transforms.filter import Filter

BATCH = RowBatch.from_pydict({"n": [3, -1, None, 0], "kind": ["sale", "sale", "sale", "gift"]})


@pytest.mark.parametrize(
    "condition, kept",
    [
        ("n > 0", [3]),
        ("n > 0 OR n IS NULL", [3, None]),
        ("NULL", []),
        ("kind = 'gift'", [0]),
        ("true", [3, -1, None, 0]),
        ("n = n", [3, -1, 0]),
    ],
)
def test_rows_stay_where_the_condition_is_true(condition, kept):
    rows, letters = applied([BATCH], Filter(condition))
    assert [r["n"] for r in rows] == kept
    assert letters == []


def test_rows_left_out_are_counted_and_rows_that_fail_are_not_among_them():
    p = beam.Pipeline(runner="FnApiRunner")
    _ = p | beam.Create([BATCH]) | Filter("n > 0")
    found = p.run().metrics().query(MetricsFilter().with_name("rows_filtered"))["counters"]
    assert [c.committed for c in found] == [3]
    rows, letters = applied([BATCH], Filter("6 // n > 1"))
    assert [r["n"] for r in rows] == [3]
    assert [(w["reason"], w["detail"]) for w in letters] == [("expression_failed", "condition: 6 // n > 1 cannot be computed for n = '0'")]


@pytest.mark.parametrize("condition", ["n + 1", "kind"])
def test_a_condition_is_a_truth_value(condition):
    with pytest.raises(ConfigError, match="not a truth value"):
        Filter(condition).output_schema(BATCH.schema)
    with pytest.raises(Exception, match="not a truth value"):
        applied([BATCH], Filter(condition))
    assert Filter("n > 0").output_schema(BATCH.schema) == BATCH.schema


@pytest.mark.parametrize("condition", ["sum(n) > 0", "n IN (SELECT 1)", "n >", "random() < 0.5"])
def test_a_condition_looks_at_one_row(condition):
    with pytest.raises(ConfigError, match="Filter: condition = "):
        Filter(condition)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1, max_size=12), st.data())
def test_results_depend_neither_on_cuts_nor_on_order(numbers, data):
    def outcome(batches):
        rows, letters = applied(batches, Filter("12 // n > 3"))
        return sorted(r["n"] for r in rows), len(letters)

    whole = RowBatch.from_arrays([pa.array(numbers, pa.int64())], names=["n"])
    shuffled = whole.take(pa.array(data.draw(st.permutations(range(len(numbers))))))
    assert outcome(cuts_of(shuffled, data)) == outcome([whole])
