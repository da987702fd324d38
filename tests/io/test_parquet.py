"""Parquet: every type comes back, big files are split, and damage is never read as rows."""

import datetime as dt
import random
import uuid
from decimal import Decimal
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tiebeam.delivery import Delivery
from tiebeam.errors import BadFileError, ConfigError
from tiebeam.io import parquet
from tiebeam.io._file_source import FilePart
from tiebeam.io._manifest import committed_files
from tiebeam.io.parquet import ReadFromParquet, WriteToParquet
from tiebeam.rows import RowBatch, concat

UNITS = ("s", "ms", "us", "ns")
SAME = {
    pa.null(): [None, None],
    pa.bool_(): [True, None, False],
    **{pa.type_for_alias(f"int{n}"): [-(2 ** (n - 1)), None, 2 ** (n - 1) - 1] for n in (8, 16, 32, 64)},
    **{pa.type_for_alias(f"uint{n}"): [0, None, 2**n - 1] for n in (8, 16, 32, 64)},
    pa.float16(): [1.5, None, float("inf")],
    pa.float32(): [1.5, None, float("-inf")],
    pa.float64(): [0.1, None, 5e-324],
    pa.decimal32(5, 2): [Decimal("-123.45"), None],
    pa.decimal64(15, 2): [Decimal("1234567890123.45"), None],
    pa.decimal128(38, 2): [Decimal("-" + "9" * 36 + ".99"), None, Decimal("0.01")],
    pa.decimal256(76, 2): [Decimal("9" * 74 + ".99"), None],
    pa.decimal128(5, -2): [Decimal("1234500"), None],
    pa.string(): ["ü\0", None, ""],
    pa.large_string(): ["a", None],
    pa.binary(): [b"\xff\0", None, b""],
    pa.large_binary(): [b"x", None],
    pa.binary(3): [b"abc", None],
    pa.date32(): [dt.date(1, 1, 1), None, dt.date(9999, 12, 31)],
    pa.date64(): [dt.date(2020, 1, 1), None],
    pa.time32("s"): [dt.time(1, 2, 3), None],
    pa.time32("ms"): [dt.time(1, 2, 3, 4000), None],
    pa.time64("us"): [dt.time(1, 2, 3, 4), None],
    pa.time64("ns"): [1, None, 86_399_999_999_999],
    **{pa.timestamp(u, tz=z): [-1, None, 10**9] for u in UNITS for z in (None, "UTC", "Europe/Berlin")},
    **{pa.duration(u): [-1, None, 10**9] for u in UNITS},
    pa.list_(pa.int32()): [[1, None], None, []],
    pa.large_list(pa.string()): [["a"], None],
    pa.list_(pa.int32(), 2): [[1, 2], None, [None, 4]],
    pa.struct([("a", pa.int32()), ("b", pa.struct([("c", pa.string())]))]): [{"a": 1, "b": {"c": None}}, None, {"a": None, "b": None}],
    pa.map_(pa.string(), pa.int32()): [[("a", 1), ("b", None)], None, []],
    pa.list_(pa.struct([("x", pa.map_(pa.string(), pa.list_(pa.timestamp("s"))))])): [[{"x": [("a", [1, None])]}], None],
    pa.uuid(): [uuid.UUID(int=7).bytes, None],
    pa.json_(): ['{"a": 1}', None],
}
OTHER = {
    pa.string_view(): (pa.string(), ["a", None]),
    pa.binary_view(): (pa.binary(), [b"a", None]),
    pa.list_view(pa.int32()): (pa.list_(pa.int32()), [[1], None, [2, 3]]),
    pa.dictionary(pa.int8(), pa.string()): (pa.string(), ["a", None, "b", "a"]),
    pa.dictionary(pa.int32(), pa.int64()): (pa.int64(), [7, None, 7]),
    pa.run_end_encoded(pa.int32(), pa.int64()): (pa.int64(), [7, 7, None]),
}


def write(path, *batches, run="r", sink=WriteToParquet, **options):
    into = sink(str(path), **options)
    writer = into.writer(run)
    for batch in batches:
        assert not writer.write(batch)
    into.publish(run, writer.close())
    return committed_files(str(path))


def read(path, source=ReadFromParquet, **options):
    return source(str(path), **{"positions": False, **options}).sample(10**9)


@pytest.mark.parametrize("kind", list(SAME), ids=str)
def test_types_come_back(tmp_path, kind):
    batch = RowBatch.from_arrays([pa.array(SAME[kind], kind)], names=["c"])
    write(tmp_path, batch)
    found = read(tmp_path)
    found.validate(full=True)
    assert found.schema == batch.schema
    assert found.equals(batch)


@pytest.mark.parametrize("kind", list(OTHER), ids=str)
def test_encodings_come_back_plain(tmp_path, kind):
    plain, values = OTHER[kind]
    write(tmp_path, RowBatch.from_arrays([pa.array(values, kind)], names=["c"]))
    assert read(tmp_path).equals(RowBatch.from_arrays([pa.array(values, plain)], names=["c"]))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.array([{}], pa.struct([])),
        pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]),
    ],
    ids=lambda c: str(c.type),
)
def test_types_that_parquet_lacks_are_refused_by_name(tmp_path, column):
    writer = WriteToParquet(str(tmp_path)).writer("r")
    with pytest.raises(ConfigError, match="column odd: Parquet cannot hold"):
        writer.write(RowBatch.from_arrays([pa.array([1]), column], names=["fine", "odd"]))
    writer.abort()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("codec", ["zstd", "snappy", "gzip", "lz4", "none"])
def test_codecs(tmp_path, codec):
    [name] = write(tmp_path, RowBatch.from_pydict({"a": [1, 2]}), compression=codec)
    assert pq.ParquetFile(name).metadata.row_group(0).column(0).compression == codec.upper().replace("NONE", "UNCOMPRESSED")
    assert read(tmp_path).to_pydict() == {"a": [1, 2]}


def test_small_batches_become_large_row_groups(tmp_path):
    [name] = write(tmp_path, *[RowBatch.from_pydict({"a": np.arange(1000) + 1000 * i}) for i in range(300)])
    footer = pq.ParquetFile(name).metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [131_072, 131_072, 37_856]
    assert read(tmp_path)["a"].to_pylist() == list(range(300_000))


def test_rows_held_in_memory_are_bounded(tmp_path, monkeypatch):
    from tiebeam.io import _file_sink

    monkeypatch.setattr(_file_sink, "MAX_HELD_BYTES", 200_000)
    sink = WriteToParquet(str(tmp_path), partition_by=("k",))
    writer = sink.writer("r")
    for i in range(20):
        writer.write(RowBatch.from_pydict({"k": [f"{n % 7}" for n in range(5000)], "n": np.arange(5000) + 5000 * i}))
        assert writer.held_bytes() <= 200_000
    sink.publish("r", writer.close())
    assert len(committed_files(str(tmp_path))) == 7
    assert sorted(read(tmp_path)["n"].to_pylist()) == list(range(100_000))


# ---- reading


def test_row_groups_of_a_large_file_are_read_apart(tmp_path, monkeypatch):
    name = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"a": np.random.default_rng(1).random(100_000)}), name, row_group_size=10_000)
    size = Path(name).stat().st_size
    monkeypatch.setattr(parquet, "PART_BYTES", size // 4)
    source = ReadFromParquet(name)
    parts = source.parts(name, size)
    assert 3 <= len(parts) <= 5
    assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
    batches = [batch for part in parts for batch in source.read_part(part)]
    assert concat(batches)["a"].equals(pq.read_table(name)["a"].combine_chunks())
    assert concat(batches)["row_position"].to_pylist() == [f"{name}:{i}" for i in range(100_000)]


def test_memory_is_flat_over_one_large_row_group(tmp_path):
    name = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"a": np.random.default_rng(1).random(3_000_000)}), name, row_group_size=3_000_000, use_dictionary=False)
    before, most = pa.total_allocated_bytes(), 0
    for batch in ReadFromParquet(name, positions=False).read_part(FilePart(name)):
        assert batch.num_rows <= 65_536
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 8_000_000  # of 24 MB


def test_only_the_wanted_columns_are_read(tmp_path):
    write(tmp_path, RowBatch.from_pydict({"a": [1], "b": ["x"], "s": [{"a": 2}], "s.a": [3]}))
    assert read(tmp_path, columns=("s", "a")).to_pylist() == [{"s": {"a": 2}, "a": 1}]
    assert read(tmp_path, columns=("s.a",)).to_pylist() == [{"s.a": 3}]


@pytest.mark.parametrize("positions", [True, False])
def test_a_partition_column_alone(tmp_path, positions):
    write(tmp_path, RowBatch.from_pydict({"k": ["x", "y", "x"], "n": [1, 2, 3]}), partition_by=("k",))
    found = read(tmp_path, columns=("k",), positions=positions)
    assert sorted(found["k"].to_pylist()) == ["x", "x", "y"]


def test_rows_of_reserved_columns_are_kept(tmp_path):
    from tiebeam.rows import RESERVED

    batch = RowBatch.from_arrays(
        [pa.array([1]), pa.array([5], RESERVED["row_time"]), pa.array(["insert"]), pa.array(["x:1"])],
        names=["a", "row_time", "row_change", "row_position"],
    )
    write(tmp_path, batch)
    assert read(tmp_path).select(batch.schema.names).equals(batch)


def test_files_of_different_schemas_meet_by_name(tmp_path):
    one = RowBatch.from_pydict({"a": pa.array([1], pa.int8()), "t": pa.array([1], pa.timestamp("ms")), "x": ["x"]})
    two = RowBatch.from_pydict({"b": [2.5], "t": pa.array([2], pa.timestamp("us")), "a": pa.array([2**40], pa.int64())})
    write(tmp_path, one, two)
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, WriteToParquet(str(tmp_path) + ".rejected")):
        rows = p | ReadFromParquet(str(tmp_path), positions=False)
        schemas = rows | "Schemas" >> beam.Map(lambda batch: str(batch.schema))
        values = rows | "Rows" >> beam.FlatMap(lambda b: [tuple(map(str, r.values())) for r in b.to_pylist()])
        first, second = "1970-01-01 00:00:00.001000", "1970-01-01 00:00:00.000002"
        assert_that(values, equal_to([("1", first, "x", "None"), (str(2**40), second, "None", "2.5")]), label="values")
        assert_that(schemas | beam.Distinct() | beam.combiners.Count.Globally(), equal_to([1]), label="one schema")


def test_types_that_cannot_meet_are_refused_and_both_files_named(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "one.parquet")
    pq.write_table(pa.table({"a": ["x"], "b": [True]}), tmp_path / "two.parquet")
    with pytest.raises(ConfigError) as caught:
        beam.Pipeline(runner="FnApiRunner") | ReadFromParquet(str(tmp_path))
    for problem, kinds in zip(caught.value.problems, [("int64", "string"), ("string", "bool")], strict=True):
        for word in (*kinds, str(tmp_path / "one.parquet"), str(tmp_path / "two.parquet")):
            assert word in str(problem)


def test_a_value_that_widening_would_change_stops_the_run(tmp_path):
    pq.write_table(pa.table({"a": [2**62 + 1]}), tmp_path / "one.parquet")
    pq.write_table(pa.table({"a": [0.5]}), tmp_path / "two.parquet")
    with pytest.raises(ConfigError, match=r"one\.parquet: column 'a' cannot be read as double"):
        read(tmp_path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="two columns of one name"):
        read(tmp_path)


# ---- damage


def damaged(tmp_path, change):
    [name] = write(tmp_path / "whole", RowBatch.from_pydict({"a": np.arange(5000), "s": [f"text {i}" for i in range(5000)]}))
    data = bytearray(Path(name).read_bytes())
    bad = tmp_path / "bad" / "x.parquet"
    bad.parent.mkdir(exist_ok=True)
    bad.write_bytes(change(data))
    return bad


@pytest.mark.parametrize("kept", [1, 4, 100, 0.5, 0.99, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    bad = damaged(tmp_path, lambda d: d[: int(len(d) * kept) if 0 < kept < 1 else kept])
    with pytest.raises(BadFileError, match=str(bad)):
        list(ReadFromParquet(str(bad)).read_part(FilePart(str(bad))))


def test_a_file_of_another_format_is_named(tmp_path):
    bad = damaged(tmp_path, lambda d: b"a,b\n1,2\n" * 100)
    with pytest.raises(BadFileError, match=str(bad)):
        list(ReadFromParquet(str(bad)).read_part(FilePart(str(bad))))


def test_damage_in_the_pages_is_never_read_as_rows(tmp_path):
    rng = random.Random(1)
    good = damaged(tmp_path, lambda d: d)
    sound, data = read(good), good.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    outcomes = {"same": 0, "refused": 0}
    for _ in range(150):
        bad = bytearray(data)
        at = rng.randrange(4, len(data) - footer)
        bad[at] ^= 1 << rng.randrange(8)
        good.write_bytes(bad)
        try:
            rows = concat(list(ReadFromParquet(str(good), positions=False).read_part(FilePart(str(good)))))
            assert rows.equals(sound), at
            outcomes["same"] += 1
        except BadFileError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100


def test_a_bad_file_becomes_a_dead_letter_and_its_neighbours_are_read(tmp_path):
    bad = damaged(tmp_path, lambda d: d[:-20])
    pq.write_table(pa.table({"a": [1, 2]}), bad.parent / "good.parquet")
    rejected = str(tmp_path / "rejected")
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, WriteToParquet(rejected)):
        rows = p | ReadFromParquet(str(bad.parent), on_bad_file="dead_letter")
        assert_that(rows | beam.FlatMap(lambda b: b["a"].to_pylist()), equal_to([1, 2]))
    [letter] = read(rejected).to_pylist()
    assert (letter["reason"], letter["source"]) == ("bad_file", str(bad))


def test_a_bad_file_stops_the_run_and_is_named(tmp_path):
    bad = damaged(tmp_path, lambda d: d[:-20])
    with pytest.raises(Exception, match=r"bad/x\.parquet is not a whole Parquet file"), beam.Pipeline(runner="FnApiRunner") as p:
        p | ReadFromParquet(str(bad))
