"""Rows: every Arrow type survives the coder, slices travel small, and no batch is ever pickled."""

from __future__ import annotations

import decimal
from datetime import UTC, date, datetime, time, timedelta

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam import coders
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pickling import no_pickled_batches, pickled_edges
from support.shelf import numbers
from tiebeam.rows import MAX_BATCH_ROWS, RESERVED, RowBatch, RowBatchCoder, batches, concat, cut, one_batch, timestamp_of, with_column

NOON = datetime(2026, 11, 24, 12, 0, 0, 123456)

TYPED = [
    *[(t, [1, None, 0]) for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())],
    (pa.int64(), [2**63 - 1, -(2**63)]),
    (pa.uint64(), [2**64 - 1]),
    (pa.float32(), [1.5, None, float("inf")]),
    (pa.float64(), [1.1, None, -0.0]),
    (pa.decimal128(38, 10), [decimal.Decimal("1234567890.0123456789"), None]),
    (pa.decimal256(76, 2), [decimal.Decimal("9" * 74 + ".99"), None]),
    (pa.bool_(), [True, None, False]),
    (pa.string(), ["", None, "ünïcode 🐝", "a" * 1000]),
    (pa.large_string(), ["x", None]),
    (pa.string_view(), ["x", None, "longer than twelve bytes"]),
    (pa.binary(), [b"\x00\xff", None, b""]),
    (pa.large_binary(), [b"x", None]),
    (pa.binary(3), [b"abc", None]),
    (pa.date32(), [date(1, 1, 1), None]),
    (pa.date64(), [date(2026, 11, 24), None]),
    *[(pa.time32(u), [time(23, 59, 58), None]) for u in ("s", "ms")],
    *[(pa.time64(u), [time(23, 59, 58, 123456), None]) for u in ("us", "ns")],
    *[(pa.timestamp(u), [NOON.replace(microsecond=0), None]) for u in ("s", "ms", "us", "ns")],
    *[(pa.timestamp(u, tz="Europe/Berlin"), [NOON.replace(microsecond=0, tzinfo=UTC), None]) for u in ("s", "ms", "us", "ns")],
    *[(pa.duration(u), [timedelta(days=2), None]) for u in ("s", "ms", "us", "ns")],
    (pa.list_(pa.int32()), [[1, None], [], None]),
    (pa.large_list(pa.string()), [["a"], None]),
    (pa.list_(pa.int8(), 2), [[1, 2], None]),
    (pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))]), [{"a": 1, "b": ["x"]}, None]),
    (pa.map_(pa.string(), pa.float64()), [[("k", 1.0)], [], None]),
    (pa.null(), [None, None]),
    (pa.dictionary(pa.int8(), pa.string()), ["red", None, "red", "blue"]),
    (pa.list_(pa.dictionary(pa.int32(), pa.string())), [["red", "red"], None]),
]


def through_the_coder(batch: RowBatch) -> RowBatch:
    coder = coders.registry.get_coder(RowBatch)
    assert isinstance(coder, RowBatchCoder)
    return coder.decode(coder.encode(batch))


@pytest.mark.parametrize(("kind", "values"), TYPED, ids=[str(kind) for kind, _ in TYPED])
def test_every_arrow_type_round_trips(kind, values):
    batch = RowBatch.from_arrays([pa.array(values, kind)], ["column"])
    back = through_the_coder(batch)
    back.validate(full=True)
    assert back.schema.equals(batch.schema)
    assert back.equals(batch)
    middle = batch.slice(1, 1)
    assert through_the_coder(middle).equals(middle) if middle.num_rows else True


class Celsius(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.float64(), "tiebeam.test.celsius")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


def test_extension_types_survive_even_where_nobody_knows_them():
    batch = RowBatch.from_arrays([pa.ExtensionArray.from_storage(Celsius(), pa.array([21.5, None]))], ["room"])
    unknown = through_the_coder(batch)
    assert unknown.schema.field("room").metadata[b"ARROW:extension:name"] == b"tiebeam.test.celsius"
    assert unknown.column("room").to_pylist() == [21.5, None]
    pa.register_extension_type(Celsius())
    try:
        assert through_the_coder(batch).equals(batch)
        assert through_the_coder(unknown).schema.field("room").type == Celsius()
    finally:
        pa.unregister_extension_type("tiebeam.test.celsius")


def test_schema_metadata_and_rows_without_columns_survive():
    batch = numbers(0, 2).replace_schema_metadata({"made_by": "test"})
    assert through_the_coder(batch).schema.metadata == {b"made_by": b"test"}
    bare = pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))
    assert through_the_coder(bare).num_rows == 2


def test_a_slice_is_encoded_and_estimated_small():
    coder = RowBatchCoder()
    big = RowBatch.from_pydict({"n": range(100_000), "text": ["x" * 50] * 100_000, "list": [[1, 2]] * 100_000})
    small = big.slice(50_000, 3)
    assert len(coder.encode(small)) < 2_000
    assert coder.estimate_size(small) < 1_000
    assert len(coder.encode(big)) < coder.estimate_size(big) / 3


class _GroupFn(beam.DoFn):
    def process(self, keyed):
        yield one_batch(pa.Table.from_batches(keyed[1]))


def test_batches_through_group_by_key_and_side_inputs_are_never_pickled(tmp_path):
    p = beam.Pipeline(runner="FnApiRunner")
    rows = p | beam.Create([numbers(0, 3), numbers(3, 5)])
    keyed = rows | beam.Map(lambda batch: (batch.num_rows % 2, batch)).with_output_types(tuple[int, RowBatch])
    grouped = keyed | beam.GroupByKey() | beam.ParDo(_GroupFn()).with_output_types(RowBatch)
    apart = grouped | beam.Reshuffle()
    out = str(tmp_path / "rows")
    counted = beam.Map(lambda b, side: str((b.num_rows, sum(s.num_rows for s in side))), beam.pvalue.AsIter(rows))
    apart | counted.with_output_types(str) | beam.io.WriteToText(out, num_shards=1)
    assert [edge for edge in pickled_edges(p) if "WriteToText" not in edge] == []
    with no_pickled_batches():
        p.run().wait_until_finish()
    seen = sorted((tmp_path / "rows-00000-of-00001").read_text().split("\n"))
    assert seen == ["", "(2, 5)", "(3, 5)"]


def test_the_proof_catches_a_pipeline_that_pickles():
    p = beam.Pipeline(runner="FnApiRunner")
    untyped = p | beam.Create([1]) | "Untyped" >> beam.Map(lambda n: ("key", numbers(0, n)))
    untyped | beam.GroupByKey() | beam.Map(len).with_output_types(int)
    assert [edge.split(":")[0] for edge in pickled_edges(p)] == ["Untyped", "GroupByKey"]
    with pytest.raises(Exception, match="a RecordBatch of 1 rows was pickled"), no_pickled_batches():
        p.run().wait_until_finish()


def test_cut_and_batches_give_whole_non_empty_pieces():
    batch = numbers(0, 10)
    assert [b.num_rows for b in cut(batch, 4)] == [4, 4, 2]
    assert list(cut(batch.slice(0, 0))) == []
    assert [b.num_rows for b in batches(pa.Table.from_batches([batch, batch.slice(0, 0), batch]), 6)] == [6, 4, 6, 4]
    assert [b.num_rows for b in cut(RowBatch.from_pydict({"n": range(MAX_BATCH_ROWS + 1)}))] == [MAX_BATCH_ROWS, 1]


def test_one_batch_keeps_every_row_of_every_chunk():
    red = RowBatch.from_arrays([pa.array(["red"], pa.dictionary(pa.int8(), pa.string()))], ["colour"])
    blue = RowBatch.from_arrays([pa.array(["blue"], pa.dictionary(pa.int8(), pa.string()))], ["colour"])
    assert one_batch(pa.Table.from_batches([red, blue, red])).column("colour").to_pylist() == ["red", "blue", "red"]
    empty = one_batch(pa.Table.from_batches([], schema=red.schema))
    assert (empty.num_rows, empty.schema) == (0, red.schema)


def test_concat_joins_by_name_and_fills_with_null():
    joined = concat([numbers(0, 1), RowBatch.from_pydict({"word": ["z"], "extra": [True]})])
    assert joined.to_pylist() == [
        {"n": 0, "word": "w0", "row_position": "numbers:0", "extra": None},
        {"n": None, "word": "z", "row_position": None, "extra": True},
    ]


def test_with_column_adds_or_replaces_in_place():
    batch = numbers(0, 2)
    assert with_column(batch, "more", pa.array([True, False])).schema.names == [*batch.schema.names, "more"]
    replaced = with_column(batch, "n", pa.array(["a", "b"]))
    assert replaced.schema.names == batch.schema.names
    assert replaced.column("n").to_pylist() == ["a", "b"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_timestamp_of_a_batch_is_its_earliest_row_time(unit):
    times = pa.array([20, None, 10], pa.timestamp("s", tz="UTC")).cast(pa.timestamp(unit, tz="UTC"))
    assert timestamp_of(RowBatch.from_arrays([times], ["row_time"])) == Timestamp(10)


def test_a_batch_without_row_times_has_the_beginning_of_time():
    assert timestamp_of(numbers(0, 1)) == MIN_TIMESTAMP
    assert timestamp_of(RowBatch.from_arrays([pa.nulls(2, RESERVED["row_time"])], ["row_time"])) == MIN_TIMESTAMP


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.text()), min_size=1), st.integers(1, 7))
def test_rows_do_not_depend_on_how_they_are_cut(rows, size):
    batch = RowBatch.from_arrays([pa.array([n for n, _ in rows], pa.int64()), pa.array([t for _, t in rows], pa.string())], ["n", "t"])
    pieces = [through_the_coder(piece) for piece in cut(batch, size)]
    assert all(0 < piece.num_rows <= size for piece in pieces)
    assert concat(pieces).equals(batch)
