"""ToRows and FromRows: values, windows and timestamps come through; what does not fit is a dead letter."""

import json
import math
import typing
from datetime import UTC, date, datetime
from decimal import Decimal

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import window
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from support.applied import applied
from tiebeam import dead_letters
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms.elements import FromRows, ToRows, _array

UTC_US = pa.timestamp("us", "UTC")
EVERYTHING = RowBatch.from_arrays(
    [
        pa.array([2**63 - 1, None]),
        pa.array([2**64 - 1, None], pa.uint64()),
        pa.array([math.inf, None]),
        pa.array(["é", None]),
        pa.array([b"\xff", None]),
        pa.array([True, None]),
        pa.array([Decimal("12345678901234567890.12"), None], pa.decimal128(30, 2)),
        pa.array([date(1969, 12, 31), None]),
        pa.array([datetime(1969, 12, 31, 23, 59, 59, 999_999), None], pa.timestamp("us")),
        pa.array([datetime(2020, 1, 1, tzinfo=UTC), None], UTC_US),
        pa.array([datetime(2020, 1, 1, tzinfo=UTC), None], pa.timestamp("ms", "Europe/Berlin")),
        pa.array([[1, None], None]),
        pa.array([{"a": 1, "b": {"c": "x"}}, None]),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    ],
    names=[*"iufsybd", "day", "naive", "zoned", "berlin", "list", "struct", "map"],
)


class There(beam.PTransform):
    """To elements of one kind and back."""

    def __init__(self, as_, schema, declared=None):
        super().__init__()
        self.as_, self.schema, self.declared = as_, schema, declared

    def expand(self, batches):
        return batches | ToRows(self.as_, self.declared) | FromRows(self.schema)


@pytest.mark.parametrize("as_, declared", [("dict", None), ("row", None), ("row", EVERYTHING.schema), ("pandas", None)])
def test_every_value_comes_back_as_it_was(as_, declared):
    rows, letters = applied([EVERYTHING], There(as_, EVERYTHING.schema, declared))
    assert letters == []
    assert rows == EVERYTHING.to_pylist()


def test_declared_rows_have_a_beam_schema():
    p = beam.Pipeline(runner="FnApiRunner")
    rows = p | beam.Create([EVERYTHING]) | ToRows("row", EVERYTHING.schema)
    fields = dict(rows.element_type._fields)
    assert fields["i"] == typing.Optional[int]  # noqa: UP045
    assert fields["zoned"] == typing.Optional[Timestamp]  # noqa: UP045
    assert isinstance(beam.coders.registry.get_coder(rows.element_type), beam.coders.RowCoder)


def test_rows_of_ordinary_beam_code_are_grouped_by_field():
    batch = RowBatch.from_pydict({"kind": ["a", "b", "a"], "n": [1, 2, 3]})
    with beam.Pipeline(runner="FnApiRunner") as p:
        sums = p | beam.Create([batch]) | ToRows("row") | beam.GroupBy("kind").aggregate_field("n", sum, "n")
        assert_that(sums | beam.Map(tuple), equal_to([("a", 4), ("b", 2)]))


def test_pandas_frames_keep_arrows_types():
    with beam.Pipeline(runner="FnApiRunner") as p:
        types = p | beam.Create([RowBatch.from_pydict({"n": [1, None]})]) | ToRows("pandas") | beam.Map(lambda df: str(df.dtypes["n"]))
        assert_that(types, equal_to(["int64[pyarrow]"]))


def test_rows_carry_their_own_times_and_stay_in_their_window():
    times = pa.array([61_000_000, 119_000_000, None], UTC_US)
    batch = RowBatch.from_arrays([pa.array([1, 2, 3]), times], names=["n", ROW_TIME])
    with beam.Pipeline(runner="FnApiRunner") as p:
        stamped = p | beam.Create([TimestampedValue(batch, 60)]) | beam.WindowInto(window.SlidingWindows(120, 60)) | ToRows()

        def about(row, t=beam.DoFn.TimestampParam, w=beam.DoFn.WindowParam):
            return row["n"], int(t), int(w.start)

        assert_that(stamped | beam.Map(about), equal_to([(n, t, w) for n, t in ((1, 61), (2, 119), (3, 60)) for w in (0, 60)]))


def test_batches_keep_to_their_window_and_take_the_smallest_timestamp():
    schema = pa.schema([("n", pa.int64()), (ROW_TIME, UTC_US)])
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create([TimestampedValue({"n": t}, t) for t in (70, 5, 10, 65)])
        batches = rows | beam.WindowInto(window.FixedWindows(60)) | FromRows(schema)

        def about(batch, t=beam.DoFn.TimestampParam, w=beam.DoFn.WindowParam):
            within = all(w.start <= Timestamp.of(x.timestamp()) < w.end for x in batch.column(ROW_TIME).to_pylist())
            least = min(batch.column("n").to_pylist())
            return int(w.start), batch.num_rows, within, least == int(t)

        def check(got):
            assert all(within and least for _, _, within, least in got), got
            assert {w: sum(n for w2, n, *_ in got if w2 == w) for w, *_ in got} == {0: 2, 60: 2}

        assert_that(batches | beam.Map(about), check)


def test_batches_are_cut_at_their_largest_size():
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create([0]) | beam.FlatMap(lambda _: ({"n": i} for i in range(65_536 + 10)))
        assert_that(rows | FromRows(pa.schema([("n", pa.int64())])) | beam.Map(lambda b: b.num_rows), equal_to([65_536, 10]))


class Point(typing.NamedTuple):
    x: int
    label: str


def test_named_tuples_beam_rows_dicts_and_frames_may_be_mixed():
    schema = pa.schema([("x", pa.int64()), ("label", pa.string())])
    elements = [Point(1, "a"), beam.Row(x=2, label="b"), {"x": 3}, pd.DataFrame({"label": ["d"], "x": ["4"]})]
    with beam.Pipeline(runner="FnApiRunner") as p:
        batches = p | beam.Create(elements, reshuffle=False) | FromRows(schema)
        rows = batches | beam.FlatMap(lambda batch: [tuple(row.values()) for row in batch.to_pylist()])
        assert_that(rows, equal_to([(1, "a"), (2, "b"), (3, None), (4, "d")]))


class Made(beam.PTransform):
    """FromRows over dicts that are made within, so that they need not be batches."""

    def __init__(self, dicts, schema):
        super().__init__()
        self.dicts, self.schema = dicts, schema

    def expand(self, begin):
        return begin | beam.FlatMap(lambda _: self.dicts) | FromRows(self.schema)


def test_a_dict_that_does_not_fit_is_a_dead_letter_and_its_neighbours_are_not():
    schema = pa.schema([("n", pa.int64()), ("o", pa.struct([("a", pa.int64()), ("b", pa.int64())]))])
    dicts = [{"n": 1, "o": {"a": 1}}, {"n": "x"}, {"n": 2, "new": 1}, {"n": 1.5, "o": {"a": 1, "z": 2}}, {"n": 3.0}]
    rows, letters = applied([RowBatch.from_pydict({"begin": [1]})], Made(dicts, schema))
    assert rows == [{"n": 1, "o": {"a": 1, "b": None}}, {"n": 3, "o": None}]
    assert [(w["reason"], json.loads(w["original"]), w["original_format"]) for w in letters] == [
        ("not_castable", {"n": "x"}, "json"),
        ("new_column", {"n": 2, "new": 1}, "json"),
        ("not_castable", {"n": 1.5, "o": {"a": 1, "z": 2}}, "json"),
    ]
    assert [w["detail"] for w in letters] == [
        "n: 'x' is no int64",
        "new: 1 is not in the schema",
        "n: 1.5 is no int64; o: {'a': 1, 'z': 2} is no struct<a: int64, b: int64>",
    ]


def test_dead_letters_of_windowed_rows_are_kept_too():
    schema = pa.schema([("n", pa.int64())])
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create([TimestampedValue({"n": "x"}, 65)]) | beam.WindowInto(window.FixedWindows(60))
        _ = rows | FromRows(schema)
        (letters,) = dead_letters.claim(p)
        kept = letters | beam.Map(lambda b, w=beam.DoFn.WindowParam: (int(w.start), b.column(ROW_TIME)[0].as_py()))
        assert_that(kept, equal_to([(60, datetime(1970, 1, 1, 0, 1, 5, tzinfo=UTC))]))


@pytest.mark.parametrize(
    "value, type, fits",
    [
        (1.5, pa.int64(), False),
        (True, pa.int64(), False),
        (1, pa.bool_(), False),
        (2**63, pa.int64(), False),
        (2**53 + 1, pa.float64(), False),
        (0.1, pa.float32(), False),
        (math.nan, pa.float64(), True),
        (Decimal("1.234"), pa.decimal128(10, 2), False),
        (Decimal("1.2"), pa.decimal128(10, 2), True),
        (datetime(2020, 1, 1, 1), pa.date32(), False),
        (datetime(2020, 1, 1), UTC_US, False),
        (datetime(2020, 1, 1, tzinfo=UTC), pa.timestamp("us"), False),
        (datetime(2020, 1, 1, 0, 0, 0, 1), pa.timestamp("s"), False),
        ("ab", pa.list_(pa.string()), False),
        ([1, None], pa.list_(pa.int64()), True),
        ((1, 2), pa.list_(pa.int64()), True),
        ({"a": 1, "z": 2}, pa.struct([("a", pa.int64())]), False),
        ({"a": {}}, pa.struct([("a", pa.struct([("b", pa.int64())]))]), True),
        (b"\xff", pa.string(), False),
        (np.int64(5), pa.int64(), True),
        ({"k": 1}, pa.map_(pa.string(), pa.int64()), True),
    ],
)
def test_a_python_value_fits_only_as_it_is(value, type, fits):
    for values in ([value], [None, value, None]):
        made, bad = _array(values, type)
        assert bad == ([] if fits else [values.index(value)])
        assert len(made) == len(values)


def test_what_is_no_row_stops_the_pipeline_and_names_the_step():
    with pytest.raises(Exception, match="step 'Pack' takes mappings"), beam.Pipeline(runner="FnApiRunner") as p:
        _ = p | beam.Create([1]) | "Pack" >> FromRows(pa.schema([("n", pa.int64())]))


def test_another_kind_of_element_is_refused():
    with pytest.raises(ConfigError, match="cannot be made 'tuple'"):
        ToRows("tuple")
