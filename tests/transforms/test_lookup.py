"""Lookup adds columns of a table to rows, exactly once each, whatever the form of the keys."""

import datetime as dt
import doctest
from decimal import Decimal

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebeam import dead_letters
from tiebeam.errors import ConfigError
from tiebeam.transforms import lookup as module
from tiebeam.transforms.lookup import Lookup

_RESULTS: list = []


def keep(found):
    """Takes the results out of a pipeline that runs in this process."""
    _RESULTS.append(found)


def join(rows, table, *flags, **given):
    """The rows and dead letters of a real pipeline, and its metrics."""
    _RESULTS.clear()
    p = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(list(flags)))
    lookup = Lookup(p | "Table" >> beam.Create(table), **given)
    joined = p | "Rows" >> beam.Create(rows) | lookup
    (rejected,) = dead_letters.claim(p)
    assert_that(joined, keep, label="rows")
    assert_that(rejected, keep, label="letters")
    metrics = p.run().metrics().query()["counters"]
    counts = {m.key.metric.name: m.committed for m in metrics if m.key.metric.namespace == "tiebeam"}
    batches = [batch for found in _RESULTS for batch in found]
    letters = [row for batch in batches if batch.schema == dead_letters.SCHEMA for row in batch.to_pylist()]
    return [batch for batch in batches if batch.schema != dead_letters.SCHEMA], letters, counts


def found(rows, table, keys=("k",), columns=("v",), duplicates="refuse") -> list:
    """The values that an index made of the table's batches gives for each row."""
    index = module._Index("test", table, keys, columns, duplicates)
    widened = index.widen(rows, index.find([rows.column(key) for key in keys], list(keys)))
    assert widened.schema.names == [*rows.schema.names, *columns]
    return widened.column(columns[0]).to_pylist()


GOODS = pa.record_batch({"id": [1, 2, 3], "brand": ["Oak", "Elm", None], "price": [1.0, 2.0, 3.0]})
SALES = pa.record_batch({"n": [0, 1, 2, 3], "id": [2, None, 9, 3], "row_position": ["f:0", "f:9", "f:18", "f:27"]})


def test_left_keeps_every_row_in_its_order():
    (batch,), letters, counts = join([SALES], [GOODS], on=("id",), columns=("price", "brand"))
    assert batch.schema.names == ["n", "id", "row_position", "price", "brand"]
    assert [(r["n"], r["price"], r["brand"]) for r in batch.to_pylist()] == [
        (0, 2.0, "Elm"),
        (1, None, None),
        (2, None, None),
        (3, 3.0, None),
    ]
    assert letters == []
    assert counts["rows_in"] == counts["rows_out"] == 4


def test_inner_leaves_out_and_counts_what_does_not_match():
    (batch,), letters, counts = join([SALES], [GOODS], on=("id",), columns=("price",), how="inner")
    assert batch.column("n").to_pylist() == [0, 3]
    assert letters == []
    assert (counts["rows_in"], counts["rows_out"], counts["rows_unmatched"]) == (4, 2, 2)


def test_required_keeps_what_does_not_match_as_dead_letters():
    (batch,), letters, counts = join([SALES], [GOODS], on=("id",), columns=("price",), how="required")
    assert batch.column("n").to_pylist() == [0, 3]
    assert [(r["step"], r["reason"], r["row_position"]) for r in letters] == [("Lookup", "no_match", "f:9"), ("Lookup", "no_match", "f:18")]
    assert "id=9" in letters[1]["detail"]
    assert pa.ipc.open_stream(letters[1]["original"]).read_all().to_pylist() == SALES.slice(2, 1).to_pylist()
    assert (counts["rows_in"], counts["rows_out"], counts["rows_rejected"]) == (4, 2, 2)


def test_repeated_bundles_change_nothing():
    once, _, _ = join([SALES], [GOODS], on=("id",), columns=("price",))
    again, _, _ = join([SALES], [GOODS], "--direct_runner_bundle_repeat=2", on=("id",), columns=("price",))
    assert once[0].equals(again[0])


def test_keys_may_have_other_names_in_the_table():
    (batch,), _, _ = join([SALES.rename_columns(["n", "product", "row_position"])], [GOODS], on={"product": "id"}, columns=("brand",))
    assert batch.column("brand").to_pylist() == ["Elm", None, None, None]


def test_an_empty_table_matches_nothing():
    (batch,), _, _ = join([SALES], [], on=("id",), columns=("brand",))
    assert batch.column("brand").to_pylist() == [None] * 4
    assert join([SALES], [], on=("id",), columns=("brand",), how="inner")[0] == []


def test_no_rows_give_no_rows():
    assert join([], [GOODS], on=("id",), columns=("brand",))[0] == []


def test_the_index_is_built_once_for_all_batches(tmp_path, monkeypatch):
    built = []
    make = module._Index.__init__
    monkeypatch.setattr(module._Index, "__init__", lambda self, *given: built.append(1) or make(self, *given))
    batches, _, _ = join([SALES] * 20, [GOODS], on=("id",), columns=("brand",))
    assert len(batches) == 20
    assert len(built) == 1


keys = st.none() | st.sampled_from(["a", "b", "", "ü"])
numbers = st.none() | st.integers(-2, 2)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(keys, numbers), min_size=1, max_size=30),
    st.sets(st.tuples(keys, numbers), max_size=12),
    st.randoms(use_true_random=False),
)
def test_agrees_with_sql(rows, table, chance):
    kinds = pa.schema([("k", pa.string()), ("i", pa.int64())])
    left = pa.table([pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), kinds, strict=True)], schema=kinds)
    shuffled = list(table)
    chance.shuffle(shuffled)
    right = pa.table(
        {
            "k": pa.array([t[0] for t in shuffled], pa.string()),
            "i": pa.array([t[1] for t in shuffled], pa.int64()),
            "v": list(range(len(table))),
        }
    )
    right = right.cast(pa.schema([*kinds, ("v", pa.int64())]))
    left = left.append_column("n", pa.array(range(len(rows))))
    sql = "select right_.v from left_ left join right_ on left_.k = right_.k and left_.i = right_.i order by n"
    expected = [v for (v,) in duckdb.connect().register("left_", left).register("right_", right).execute(sql).fetchall()]
    parts = [right.slice(0, 3), right.slice(3)]
    table_batches = [batch for part in parts for batch in part.to_batches() if batch.num_rows]
    ours = [v for batch in left.to_batches(7) for v in found(batch, table_batches, ("k", "i"))]
    assert ours == expected


@pytest.mark.parametrize(
    ("rows", "table"),
    [
        (pa.array(["a", None, "b"]).dictionary_encode(), pa.array(["b", "a"])),
        (pa.array(["a", None, "b"]), pa.array(["b", "a"], pa.large_string())),
        (pa.array(["a", None, "b"], pa.string_view()), pa.array(["b", "a"], pa.string_view())),
        (pa.array([b"a", None, b"b"]), pa.array([b"b", b"a"])),
        (pa.array([-1, None, 2], pa.int8()), pa.array([2, -1], pa.int64())),
        (pa.array([1, None, 2], pa.uint64()), pa.array([2, 1], pa.uint8())),
        (pa.array([-0.0, None, float("nan")], pa.float32()), pa.array([-float("nan"), 0.0])),
        (pa.array([True, None, False]), pa.array([False, True])),
        (pa.array([dt.date(2026, 1, 1), None, dt.date(1960, 1, 1)]), pa.array([dt.date(1960, 1, 1), dt.date(2026, 1, 1)])),
        (pa.array([Decimal("1.5"), None, Decimal("-2.5")]), pa.array([Decimal("-2.5"), Decimal("1.5")])),
    ],
    ids=lambda array: str(array.type),
)
def test_keys_of_every_type(rows, table):
    values = pa.record_batch({"k": table, "v": ["second", "first"]})
    assert found(pa.record_batch({"k": rows}), [values]) == ["first", None, "second"]


@pytest.mark.parametrize(
    ("rows", "table"),
    [
        (pa.array([1]), pa.array(["1"])),
        (pa.array([1]), pa.array([1.0])),
        (pa.array([-1]), pa.array([2**64 - 1], pa.uint64())),
        (pa.array([Decimal("1.5")]), pa.array([Decimal("1.50")])),
    ],
    ids=lambda array: str(array.type),
)
def test_keys_of_types_that_cannot_be_compared_exactly_are_refused(rows, table):
    with pytest.raises(ConfigError, match=r"the key 'k' is .* on one side and .* on the other"):
        found(pa.record_batch({"k": rows}), [pa.record_batch({"k": table, "v": [1]})])


def test_keys_that_are_all_null_match_nothing():
    assert found(pa.record_batch({"k": pa.nulls(2)}), [pa.record_batch({"k": [1], "v": [1]})]) == [None, None]
    assert found(pa.record_batch({"k": [1]}), [pa.record_batch({"k": pa.nulls(1), "v": [1]})]) == [None]


def test_hashes_that_collide_do_not_lie(monkeypatch):
    monkeypatch.setattr(module, "hash_rows", lambda columns: np.zeros(len(columns[0]), np.uint64))
    table = pa.record_batch({"k": [1, 2, 3], "v": ["one", "two", "three"]})
    assert found(pa.record_batch({"k": [3, 4, 1, 2, None]}), [table]) == ["three", None, "one", "two", None]


def rivals(*rows):
    return [pa.record_batch({"k": ["a"], "v": [v], "row_position": [position]}) for v, position in rows]


def test_duplicate_keys_that_differ_are_refused():
    with pytest.raises(ConfigError, match=r"2 rows with \{'k': 'a'\} that differ"):
        found(pa.record_batch({"k": ["a"]}), rivals((1, "t:0"), (2, "t:9")))


def test_rows_of_the_table_that_are_the_same_are_one():
    assert found(pa.record_batch({"k": ["a"]}), rivals((1, "t:0"), (1, "t:9"))) == [1]


def test_the_first_of_duplicates_does_not_depend_on_arrival():
    positioned = rivals((9, "t:100"), (7, "t:20"), (1, None))
    bare = [batch.drop_columns(["row_position"]) for batch in positioned]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        assert found(pa.record_batch({"k": ["a"]}), [positioned[i] for i in order], duplicates="first") == [7]
        assert found(pa.record_batch({"k": ["a"]}), [bare[i] for i in order], duplicates="first") == [1]


def test_columns_of_every_shape_can_be_looked_up():
    table = pa.record_batch(
        {
            "k": [1, 2],
            "list": [[1], None],
            "struct": [{"a": 1}, {"a": 2}],
            "view": pa.array(["x", "y"], pa.string_view()),
            "dict": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    rows = pa.record_batch({"k": [2, 1, 3]})
    for column in table.schema.names[1:]:
        one, two = table.column(column).to_pylist()
        assert found(rows, [table.slice(0, 1), table.slice(1)], columns=(column,)) == [two, one, None]


def test_configuration_is_checked_when_made():
    with beam.Pipeline(runner="FnApiRunner") as p:
        table = p | beam.Create([GOODS])
        with pytest.raises(ConfigError) as refused:
            Lookup(table, on=(), columns=("a", "a"), how="outer", duplicates="last")
        assert len(refused.value.problems) == 4
        with pytest.raises(ConfigError, match="two columns 'id'"):
            Lookup(table, on=("id",), columns=("id",))
        table.is_bounded = False
        with pytest.raises(ConfigError, match="never ends"):
            Lookup(table, on=("id",), columns=("brand",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on": ("id",), "columns": ("n",)}, "the table has no column 'n'"),
        ({"on": ("id",), "columns": ("price",), "rows": SALES.append_column("price", pa.array([1] * 4))}, "have a column 'price' already"),
        ({"on": {"ID": "id"}, "columns": ("price",)}, "the rows have no column 'ID'"),
        ({"on": ("id",), "columns": ("price",), "table": [GOODS, pa.record_batch({"id": [8], "price": ["x"]})]}, "differ in type"),
    ],
)
def test_rows_and_tables_that_do_not_fit_are_refused_by_name(given, message):
    given = {"rows": SALES, "table": [GOODS], **given}
    with pytest.raises(Exception, match=message) as stopped:
        join([given.pop("rows")], given.pop("table"), **given)
    assert "ConfigError" in repr(type(stopped.value).__mro__) + repr(stopped.value.__cause__)


def test_the_schema_is_known_beforehand():
    (batch,), _, _ = join([SALES], [GOODS], on=("id",), columns=("brand", "price"))
    with beam.Pipeline(runner="FnApiRunner") as p:
        lookup = Lookup(p | beam.Create([GOODS]), on=("id",), columns=("brand", "price"))
    assert lookup.output_schema(SALES.schema, GOODS.schema) == batch.schema
    with pytest.raises(ConfigError, match="no column 'id'"):
        lookup.output_schema(pa.schema([("n", pa.int64())]), GOODS.schema)


def test_examples():
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted > 0
