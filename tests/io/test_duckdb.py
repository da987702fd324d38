"""DuckDB: what was written is read again, whatever dies on the way, and never twice."""

import contextlib
import datetime as dt
import decimal
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import apache_beam as beam
import duckdb
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to, is_empty
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiebeam.dead_letters import Letters
from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError, TransientError
from tiebeam.io import _duckdb
from tiebeam.io.duckdb import ReadFromDuckDB, WriteToDuckDB
from tiebeam.rows import MAX_BATCH_ROWS, RESERVED, RowBatch, concat, cut
from tiebeam.staging import Staged

UTC = dt.UTC


def batch(**columns):
    return RowBatch.from_pydict(columns)


def sql(path, query, *values):
    with duckdb.connect(str(path)) as con:
        return con.execute(query, values).fetchall()


def stage(sink, run_id, *batches, bundles=1):
    """Stages batches in so many bundles; returns the pieces, and the letters of refused rows."""
    pieces, refused = [], []
    for part in range(bundles):
        writer = sink.writer(run_id)
        for b in batches[part::bundles]:
            refused += writer.write(b)
        pieces += writer.close()
    return pieces, refused


def write(sink, run_id, *batches, bundles=1):
    return sink.publish(run_id, stage(sink, run_id, *batches, bundles=bundles)[0])


@contextlib.contextmanager
def pipeline(db, *flags):
    store = WriteToDuckDB(f"{db}.letters", "letters")
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(list(flags))) as p, Delivery(p, store, run_id="run"):
        yield p


def read(db, source, check):
    with pipeline(db) as p:
        assert_that(p | source, check)


def run(batches, sink, *flags):
    with pipeline(sink.path, *flags) as p:
        p | beam.Create(batches, reshuffle=False).with_output_types(RowBatch) | sink


@pytest.fixture
def db(tmp_path):
    return str(tmp_path / "shop.duckdb")


# ---------------------------------------------------------------------------------------------------------------- source


def numbers(db, rows=300_000):
    sql(db, f"CREATE TABLE t AS SELECT i, 'n' || i AS name, TIMESTAMP '2026-01-01' + INTERVAL (i) SECOND AS at FROM range({rows}) r(i)")


def test_ranges_read_the_whole_table_once(db):
    numbers(db)
    sql(db, "DELETE FROM t WHERE i % 3 = 0")

    def check(batches):
        assert all(0 < b.num_rows <= MAX_BATCH_ROWS for b in batches)
        whole = concat(list(batches))
        assert sorted(whole.column("i").to_pylist()) == [i for i in range(300_000) if i % 3]
        positions = whole.column("row_position").to_pylist()
        assert len(set(positions)) == 200_000
        rows = dict(zip(positions, whole.column("name").to_pylist(), strict=True))
        assert rows[f"{db}#t:299999"] == "n299999"
        assert whole.column("row_time").type == pa.timestamp("us", "UTC")
        assert whole.column("row_time").to_pylist()[0] == whole.column("at").to_pylist()[0].replace(tzinfo=UTC)

    source = ReadFromDuckDB(db, "t", event_time="at", rows_per_range=70_000)
    assert len(list(source.ranges())) == 5
    read(db, source, check)


def test_batches_carry_their_earliest_time_as_beam_timestamp(db):
    numbers(db, 10)
    with pipeline(db) as p:
        rows = p | ReadFromDuckDB(db, "t", event_time="at")
        stamps = rows | beam.Map(lambda b, at=beam.DoFn.TimestampParam: at.to_utc_datetime(has_tz=True))
        assert_that(stamps, equal_to([dt.datetime(2026, 1, 1, tzinfo=UTC)]))


@pytest.mark.parametrize(
    "options", [{"query": "SELECT i, name FROM t WHERE i < 100000 ORDER BY i DESC; "}, {"table": "v"}], ids=["query", "view"]
)
def test_a_query_and_a_view_are_one_stream_without_positions(db, options):
    numbers(db, 200_000)
    sql(db, "CREATE VIEW v AS SELECT i, name FROM t WHERE i < 100000 ORDER BY i DESC")

    def check(batches):
        whole = concat(list(batches))
        assert whole.schema.names == ["i", "name"]
        assert whole.column("i").to_pylist() == list(range(99_999, -1, -1))

    source = ReadFromDuckDB(db, **options)
    assert len(list(source.ranges())) == 1
    read(db, source, check)


def test_a_column_called_rowid_hides_no_rows(db):
    sql(db, "CREATE TABLE t AS SELECT 7 AS rowid, i FROM range(10) r(i)")
    source = ReadFromDuckDB(db, "t")
    (found,) = source.read_range(*next(source.ranges()), "read")
    assert found.to_pydict() == {"rowid": [7] * 10, "i": list(range(10))}


def test_an_empty_table_gives_no_batch(db):
    sql(db, "CREATE TABLE t (i INTEGER)")
    source = ReadFromDuckDB(db, "t")
    assert list(source.ranges()) == []
    read(db, source, is_empty())
    assert source.sample(5) is None


def test_a_table_written_while_its_ranges_are_read_is_an_error(db):
    numbers(db, 1000)
    source = ReadFromDuckDB(db, "t", rows_per_range=100)
    ranges = list(source.ranges())
    assert sum(b.num_rows for b in source.read_range(*ranges[0], "read")) == 100
    sql(db, "UPDATE t SET i = i + 1")
    with pytest.raises(TransientError, match="was written while its ranges were read"):
        list(source.read_range(*ranges[1], "read"))


def test_reading_where_this_process_writes_already(db):
    numbers(db, 10)
    with duckdb.connect(db) as con:
        con.execute("INSERT INTO t VALUES (10, 'mine', NULL)")
        assert ReadFromDuckDB(db, "t").sample(100).num_rows == 11


def test_sample_is_what_read_delivers(db):
    numbers(db, 10)
    source = ReadFromDuckDB(db, "t", event_time="at")
    (whole,) = source.read_range(*next(source.ranges()), "read")
    assert source.sample(3) == whole.slice(0, 3)


@pytest.mark.parametrize("kind", ["TIMESTAMP", "TIMESTAMPTZ", "DATE"])
def test_rows_without_an_event_time_are_refused_and_their_neighbours_are_not(db, kind):
    sql(db, f"CREATE TABLE t (i BIGINT, sold {kind})")
    sql(db, "INSERT INTO t VALUES (0, '2026-01-01'), (1, '2026-01-02'), (2, NULL), (3, 'infinity'), (4, '1582-01-01')")
    with pipeline(db) as p:
        rows = p | ReadFromDuckDB(db, "t", event_time="sold") | beam.FlatMap(lambda b: b.column("i").to_pylist())
        assert_that(rows, equal_to([0, 1, 4]))
    letters = sql(f"{db}.letters", "SELECT reason, row_position FROM letters ORDER BY row_position")
    assert letters == [("bad_event_time", f"{db}#t:2"), ("bad_event_time", f"{db}#t:3")]


def test_fingerprint_follows_the_content_of_the_table_only(db):
    numbers(db, 10)
    source = ReadFromDuckDB(db, "t")
    before = source.fingerprint()
    sql(db, "CREATE TABLE other AS SELECT 1 AS one")
    assert source.fingerprint() == before
    sql(db, "UPDATE t SET name = 'x' WHERE i = 5")
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": "nothing"}, "nothing"),
        ({"query": "SELEC 1"}, "syntax error"),
        ({"table": "t", "event_time": "when"}, "no column 'when'"),
        ({"table": "t", "event_time": "name"}, "neither a date nor a timestamp"),
    ],
)
def test_ping_of_the_source_says_what_is_wrong(db, options, words):
    numbers(db, 1)
    with pytest.raises(ConfigError, match=words):
        ReadFromDuckDB(db, **options).ping()


def test_ping_of_a_file_that_is_missing_or_no_database(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        ReadFromDuckDB(str(tmp_path / "no.duckdb"), "t").ping()
    (tmp_path / "text.duckdb").write_text("not a database" * 1000)
    for connector in (ReadFromDuckDB(str(tmp_path / "text.duckdb"), "t"), WriteToDuckDB(str(tmp_path / "text.duckdb"), "t")):
        with pytest.raises(ConfigError, match="not a valid DuckDB"):
            connector.ping()
    assert list(tmp_path.iterdir()) == [tmp_path / "text.duckdb"]


def test_options_are_checked_when_the_connector_is_made(db):
    for wrong in (
        lambda: ReadFromDuckDB(db),
        lambda: ReadFromDuckDB(db, "t", "SELECT 1"),
        lambda: ReadFromDuckDB("gs://bucket/x.duckdb", "t"),
        lambda: WriteToDuckDB(db, "t", mode="upsert"),
        lambda: WriteToDuckDB(db, "t", key=("id",)),
        lambda: WriteToDuckDB(db, "main.tiebeam_ledger"),
        lambda: WriteToDuckDB(db, "t", mode="merge"),
    ):
        with pytest.raises(ConfigError):
            wrong()


# ------------------------------------------------------------------------------------------------------------------ types

WHEN = dt.datetime(2026, 3, 1, 12, 30, 1, 123456)
VALUES = {
    **{f"{kind}": ([1, None, 100], kind) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{f"{kind}": ([1, None, 200], kind) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    "uint64 max": ([2**64 - 1], pa.uint64()),
    "float32": ([0.5, None, float("inf")], pa.float32()),
    "float64": ([0.1, None, -1e300], pa.float64()),
    "bool": ([True, None, False], pa.bool_()),
    "decimal128": ([decimal.Decimal("1.25"), None, decimal.Decimal("-99999999999999999999999999999999999.999")], pa.decimal128(38, 3)),
    "string": (["", None, "zażółć \N{SNOWMAN} \x00"], pa.string()),
    "binary": ([b"", None, b"\x00\xff"], pa.binary()),
    "date": ([dt.date(1, 1, 1), None, dt.date(9999, 12, 31)], pa.date32()),
    "time": ([WHEN.time(), None], pa.time64("us")),
    "time ns": ([pa.scalar(1, pa.time64("ns")), None], pa.time64("ns")),
    **{f"timestamp {u}": ([WHEN.replace(microsecond=0), None], pa.timestamp(u)) for u in ("s", "ms", "us", "ns")},
    "timestamp us UTC": ([WHEN.replace(tzinfo=UTC), None], pa.timestamp("us", "UTC")),
    "timestamp ns UTC": ([pa.scalar(1_700_000_000_123_456_789, pa.timestamp("ns", "UTC")), None], pa.timestamp("ns", "UTC")),
    "interval": ([pa.MonthDayNano([1, 2, 3000]), None], pa.month_day_nano_interval()),
    "list": ([[1, None], None, []], pa.list_(pa.int32())),
    "fixed list": ([[1, 2], None], pa.list_(pa.float32(), 2)),
    "struct": ([{"a": 1, "b c": "x"}, None], pa.struct([("a", pa.int64()), ("b c", pa.string())])),
    "map": ([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "deep": (
        [[{"m": [("k", [decimal.Decimal("1.5")])]}], None],
        pa.list_(pa.struct([("m", pa.map_(pa.string(), pa.list_(pa.decimal128(9, 1))))])),
    ),
}
NEAREST = {
    "float16": ([1.5, None], pa.float16(), pa.float32()),
    "decimal32": ([decimal.Decimal("1.25")], pa.decimal32(9, 2), pa.decimal128(9, 2)),
    "decimal256": ([decimal.Decimal("1.25")], pa.decimal256(60, 2), pa.decimal128(38, 2)),
    "list of float16": ([[1.5, None]], pa.list_(pa.float16()), pa.list_(pa.float32())),
    "large_string": (["a"], pa.large_string(), pa.string()),
    "string_view": (["a"], pa.string_view(), pa.string()),
    "large_binary": ([b"a"], pa.large_binary(), pa.binary()),
    "fixed binary": ([b"ab"], pa.binary(2), pa.binary()),
    "date64": ([dt.date(2026, 1, 1)], pa.date64(), pa.date32()),
    "time32": ([dt.time(1, 2, 3)], pa.time32("s"), pa.time64("us")),
    "timestamp Berlin": ([WHEN.replace(tzinfo=UTC)], pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
    "duration": ([dt.timedelta(seconds=3)], pa.duration("ms"), pa.month_day_nano_interval()),
    "large_list": ([[1]], pa.large_list(pa.int32()), pa.list_(pa.int32())),
    "dictionary": (["a", None, "a"], pa.dictionary(pa.int8(), pa.string()), pa.string()),
    "json": (['{"a": 1}'], pa.json_(), pa.string()),
    "bool8": ([True, None], pa.bool8(), pa.bool_()),
}


def array(values, kind):
    if kind == pa.bool8():
        return pa.ExtensionArray.from_storage(kind, pa.array([v and int(v) for v in values], pa.int8()))
    return pa.array(values, kind)


def test_every_type_comes_back_as_it_went_in(db):
    for name, (values, kind) in VALUES.items():
        given = RowBatch.from_arrays([array(values, kind)], [name])
        assert write(WriteToDuckDB(db, name.replace(" ", "_")), "r", given), name
        found = ReadFromDuckDB(db, name.replace(" ", "_")).sample(10)
        assert found.column(name).cast(kind).equals(given.column(name)), name
        assert pa.types.is_nested(kind) or found.column(name).type == kind, name


def test_a_type_duckdb_lacks_becomes_the_nearest_one(db):
    for name, (values, kind, kept) in NEAREST.items():
        given = RowBatch.from_arrays([array(values, kind)], ["c"])
        assert write(WriteToDuckDB(db, name.replace(" ", "_")), "r", given), name
        found = ReadFromDuckDB(db, name.replace(" ", "_")).sample(10).column("c")
        assert found.type == kept or pa.types.is_list(kept), name
        expected = [pa.MonthDayNano([0, 0, 3_000_000_000])] if name == "duration" else given.column("c").to_pylist()
        assert found.to_pylist() == expected, name


def test_a_number_of_more_than_38_digits_is_refused_and_its_neighbours_are_not(db):
    huge = decimal.Decimal(10**45)
    rows = batch(d=pa.array([decimal.Decimal(1), huge, decimal.Decimal(3)], pa.decimal256(50, 0)), i=[1, 2, 3])
    sink = WriteToDuckDB(db, "t")
    pieces, (letters,) = stage(sink, "r", rows)
    assert isinstance(letters, Letters)
    assert letters.batch.column("reason").to_pylist() == ["unfit"]
    kept = pa.ipc.open_stream(letters.batch.column("original")[0].as_py()).read_next_batch()
    assert kept.to_pylist() == [{"d": huge, "i": 2}]
    sink.publish("r", pieces)
    assert sql(db, "FROM t ORDER BY i") == [(decimal.Decimal(1), 1), (decimal.Decimal(3), 3)]


def test_a_column_of_nulls_gets_its_type_when_it_has_a_value(db):
    sink = WriteToDuckDB(db, "t")
    write(sink, "1", batch(a=pa.array([1]), b=pa.nulls(1)))
    write(sink, "2", batch(a=pa.array([2]), b=pa.array(["x"])))
    write(sink, "3", batch(a=pa.array([3]), b=pa.nulls(1)))
    assert sql(db, "SELECT a, b FROM t ORDER BY a") == [(1, None), (2, "x"), (3, None)]
    with pytest.raises(ConfigError, match="every column is null"):
        write(WriteToDuckDB(db, "u"), "1", batch(a=pa.nulls(1)))


# ------------------------------------------------------------------------------------------------------------------- sink


@pytest.mark.parametrize("flags", [[], ["--direct_runner_bundle_repeat=2"]], ids=["once", "bundles repeated"])
def test_a_pipeline_writes_every_row_once(db, flags):
    parts = [batch(i=pa.array(range(start, start + 100)), word=pa.array(["x"] * 100)) for start in range(0, 1000, 100)]
    run(parts, WriteToDuckDB(db, "mart.t"), *flags)
    assert sql(db, "SELECT count(*), count(DISTINCT i), sum(i) FROM mart.t") == [(1000, 1000, sum(range(1000)))]
    assert [row[:3] for row in sql(db, 'SELECT rows, "table", version FROM tiebeam_ledger')] == [(1000, "mart.t", "0.1.0")]
    assert not Path(f"{db}.staging").exists()


def test_several_sinks_of_one_pipeline_write_one_file_and_read_it(db, tmp_path):
    numbers(db, 1000)
    with pipeline(db) as p:
        rows = p | ReadFromDuckDB(db, "t", rows_per_range=100)
        for name in ("a", "b", "c"):
            rows | f"Write {name}" >> WriteToDuckDB(db, name)
    for name in ("a", "b", "c"):
        assert sql(db, f"SELECT count(*), sum(i) FROM {name}") == [(1000, 499500)]


def test_a_run_is_published_once(db):
    sink = WriteToDuckDB(db, "t")
    pieces, _ = stage(sink, "monday", batch(i=[1, 2]))
    assert sink.publish("monday", pieces) is True
    assert sink.publish("monday", pieces) is False
    assert write(sink, "monday", batch(i=[7])) is False
    assert sql(db, "FROM t") == [(1,), (2,)]
    assert write(WriteToDuckDB(db, "other"), "monday", batch(i=[7])) is True
    assert write(sink, "tuesday", batch(i=[3])) is True
    assert sql(db, "FROM t ORDER BY i") == [(1,), (2,), (3,)]
    assert not Path(f"{db}.staging").exists()


def test_replace_leaves_the_rows_of_the_run_only(db):
    sink = WriteToDuckDB(db, "t", mode="replace")
    write(sink, "1", batch(i=[1, 2], s=["a", "b"]))
    write(sink, "2", batch(i=[3]))
    assert sql(db, "FROM t") == [(3, None)]
    run([], WriteToDuckDB(db, "t", mode="replace"))
    assert sql(db, "FROM t") == []


def test_replace_keeps_what_readers_have_built_on_the_table(db):
    sql(db, "CREATE TABLE t (i BIGINT PRIMARY KEY, s VARCHAR); INSERT INTO t VALUES (1, 'a'); CREATE VIEW v AS SELECT i FROM t")
    write(WriteToDuckDB(db, "t", mode="replace"), "1", batch(i=[1, 2]))
    assert sql(db, "FROM v ORDER BY i") == [(1,), (2,)]
    with pytest.raises(duckdb.ConstraintException):
        sql(db, "INSERT INTO t VALUES (1, 'b')")


def test_columns_are_matched_by_name_and_new_ones_added(db):
    sink = WriteToDuckDB(db, "t")
    write(sink, "1", batch(a=[1], b=["x"]))
    write(sink, "2", batch(C=[2.5], B=["y"]), batch(B=["z"]), bundles=2)
    assert sql(db, "FROM t ORDER BY b") == [(1, "x", None), (None, "y", 2.5), (None, "z", None)]
    with pytest.raises(ConfigError, match=r"no column 'd'(?s:.*)new_columns=add"):
        write(WriteToDuckDB(db, "t", new_columns="refuse"), "3", batch(d=[1]))
    assert len(sql(db, "DESCRIBE t")) == 3


def test_schemas_of_one_run_are_widened_without_loss(db):
    rows = [batch(a=pa.array([-1], pa.int32())), batch(a=pa.array([2**32 - 1], pa.uint32())), batch(a=pa.array([3], pa.int8()))]
    write(WriteToDuckDB(db, "t"), "1", *rows, bundles=3)
    assert sql(db, "FROM t ORDER BY a") == [(-1,), (3,), (2**32 - 1,)]
    structs = [pa.array([{"x": 1}]), pa.array([{"y": "b", "x": 2}])]
    write(WriteToDuckDB(db, "u"), "1", *(batch(s=s) for s in structs), bundles=2)
    assert sorted(sql(db, "SELECT s.x, s.y FROM u")) == [(1, None), (2, "b")]


@pytest.mark.parametrize(
    ("held", "given"),
    [
        ("INTEGER", pa.array([1], pa.int64())),
        ("DOUBLE", pa.array([1], pa.int64())),
        ("BIGINT", pa.array(["1"])),
        ("VARCHAR", pa.array([1])),
        ("DECIMAL(9,2)", pa.array([1.5])),
        ("TIMESTAMP", pa.array([WHEN], pa.timestamp("us", "UTC"))),
        ("TIMESTAMPTZ", pa.array([WHEN], pa.timestamp("us"))),
        ("DATE", pa.array([WHEN], pa.timestamp("us"))),
        ("STRUCT(x INTEGER)", pa.array([{"x": 1, "y": 2}])),
        ("INTEGER[]", pa.array([["a"]])),
        ("MAP(VARCHAR, INTEGER)", pa.array([{"a": 1}])),
    ],
)
def test_a_type_that_the_table_cannot_hold_changes_nothing(db, held, given):
    sql(db, f"CREATE TABLE t (i BIGINT, c {held}); INSERT INTO t (i) VALUES (1)")
    sink = WriteToDuckDB(db, "t", mode="replace")
    with pytest.raises(ConfigError) as error:
        write(sink, "1", batch(new=pa.array([1]), c=given))
    kept = ReadFromDuckDB(db, "t").sample(1).schema.field("c").type
    assert "'c'" in str(error.value)
    assert str(given.type) in str(error.value)
    assert str(kept) in str(error.value)
    assert sql(db, "FROM t") == [(1, None)]
    assert ("tiebeam_ledger",) not in sql(db, "SELECT table_name FROM duckdb_tables()")


def test_a_type_that_the_table_can_hold_is_widened(db):
    held = "a BIGINT, b DOUBLE, c DECIMAL(20,3), d TIMESTAMP, e VARCHAR[], f STRUCT(x BIGINT, y VARCHAR), g UUID"
    sql(db, f"CREATE TABLE t ({held})")
    rows = batch(
        a=pa.array([1], pa.uint32()),
        b=pa.array([1], pa.int32()),
        c=pa.array([7], pa.int32()),
        d=pa.array([WHEN.replace(microsecond=0)], pa.timestamp("s")),
        e=pa.array([["x"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        f=pa.array([{"y": "b"}]),
        g=pa.array(["7b5b5a5e-0000-0000-0000-000000000001"]),
    )
    write(WriteToDuckDB(db, "t"), "1", rows)
    found = sql(db, "SELECT a, b, c, d, e, f.x, f.y, g::VARCHAR FROM t")
    assert found == [(1, 1.0, 7, WHEN.replace(microsecond=0), ["x"], None, "b", "7b5b5a5e-0000-0000-0000-000000000001")]


def test_rows_of_one_run_that_have_no_common_type_are_an_error(db):
    with pytest.raises(ConfigError, match="column 'a' is int64 in some rows and string in others"):
        write(WriteToDuckDB(db, "t"), "1", batch(a=[1]), batch(a=["x"]), bundles=2)
    with pytest.raises(ConfigError, match="differ in case only"):
        write(WriteToDuckDB(db, "t"), "1", batch(a=[1], A=[1]))


def test_what_the_table_refuses_is_said_and_changes_nothing(db):
    sql(db, "CREATE TABLE t (i BIGINT CHECK (i < 10))")
    with pytest.raises(ConfigError, match=r"the table refuses the rows(?s:.*)CHECK"):
        write(WriteToDuckDB(db, "t"), "1", batch(i=[1, 11]))
    assert sql(db, "FROM t") == []


def test_names_need_no_care(db):
    write(WriteToDuckDB(db, 'odd schema.a "table"'), "run/../1", RowBatch.from_pydict({'sel"ect': [1], "from": ["x"], "a b": [2.5]}))
    assert sql(db, 'FROM "odd schema"."a ""table"""') == [(1, "x", 2.5)]
    assert sorted(p.name for p in Path(db).parent.iterdir()) == ["shop.duckdb"]


def test_a_lost_staged_file_is_a_loud_error(db):
    sink = WriteToDuckDB(db, "t")
    pieces, _ = stage(sink, "1", batch(i=[1]))
    Path(pieces[0].handle).unlink()
    with pytest.raises(FileNotFoundError, match="is gone, and its run was never published"):
        sink.publish("1", pieces)


def test_an_aborted_writer_leaves_nothing(db):
    writer = WriteToDuckDB(db, "t").writer("1")
    list(writer.write(batch(i=[1])))
    writer.abort()
    assert [p for p in Path(f"{db}.staging").rglob("*") if p.is_file()] == []


def test_a_failed_run_discards_what_it_staged(db):
    sink = WriteToDuckDB(db, "t")
    stage(sink, "1", batch(i=[1]))
    kept, _ = stage(WriteToDuckDB(db, "u"), "1", batch(i=[1]))
    sink.discard("1")
    assert [str(p) for p in Path(f"{db}.staging").rglob("*.arrow")] == [kept[0].handle]


def test_old_stages_are_swept_and_young_ones_are_not(db):
    sink = WriteToDuckDB(db, "t")
    old, young = (Path(stage(sink, run_id, batch(i=[1]))[0][0].handle) for run_id in ("old", "young"))
    yesterday = time.time() - 25 * 3600
    for path in (old, old.parent, old.parent.parent):
        os.utime(path, (yesterday, yesterday))
    other = WriteToDuckDB(db, "other")
    waiting, _ = stage(other, "now", batch(i=[2]))
    write(sink, "now", batch(i=[3]))
    assert not old.parent.parent.exists()
    assert young.exists()
    assert other.publish("now", waiting)


# ----------------------------------------------------------------------------------------------------------------- upsert


def changes(rows):
    kinds = {**RESERVED, "k": pa.int64(), "j": pa.string(), "v": pa.int64()}
    return RowBatch.from_pylist(rows, schema=pa.schema([(name, kinds[name]) for name in rows[0]]))


EVENT = st.fixed_dictionaries(
    {
        "k": st.integers(0, 3),
        "j": st.sampled_from(["a", "b"]),
        "v": st.integers(0, 99) | st.none(),
        "row_change": st.sampled_from(["insert", "update", "delete", "snapshot", None]),
        "row_time": st.none() | st.integers(0, 3).map(lambda s: dt.datetime(2026, 1, 1, 0, 0, s, tzinfo=UTC)),
    }
)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(EVENT, min_size=1, max_size=12), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_upsert_is_what_a_dictionary_would_do(tmp_path_factory, runs, random):
    db = str(tmp_path_factory.mktemp("upsert") / "t.duckdb")
    sink = WriteToDuckDB(db, "t", mode="upsert", key=("k", "j"))
    model, number = {}, 8
    for name, events in enumerate(runs):
        for event in events:
            event["row_position"] = f"file.jsonl:{number}"
            number += 1
        beginning = dt.datetime(1, 1, 1, tzinfo=UTC)
        for event in sorted(events, key=lambda e: (e["row_time"] or beginning, int(e["row_position"].split(":")[1]))):
            key = event["k"], event["j"]
            if event["row_change"] == "delete":
                model.pop(key, None)
            else:
                model[key] = event["v"], event["row_time"], event["row_position"]
        arrived = random.sample(events, len(events))
        size = random.randint(1, len(arrived))
        write(sink, str(name), *cut(changes(arrived), size), bundles=random.randint(1, 3))
    found = sql(db, "SET TimeZone = 'UTC'; SELECT k, j, v, row_time, row_position FROM t")
    assert sorted(found, key=str) == sorted(((*key, *value) for key, value in model.items()), key=str)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.permutations([(1, 1), (1, 2), (1, 3), (2, 5), (2, 4)]), st.integers(1, 5))
def test_rows_that_no_time_and_position_tells_apart_do_not_depend_on_arrival(tmp_path_factory, order, size):
    db = str(tmp_path_factory.mktemp("ties") / "t.duckdb")
    rows = batch(k=[k for k, _ in order], v=[v for _, v in order])
    write(WriteToDuckDB(db, "t", mode="upsert", key=("k",)), "1", *cut(rows, size), bundles=2)
    write(WriteToDuckDB(db, "expected", mode="upsert", key=("k",)), "1", batch(k=[1, 1, 1, 2, 2], v=[1, 2, 3, 4, 5]))
    assert sorted(sql(db, "FROM t")) == sorted(sql(db, "FROM expected"))


def test_upsert_leaves_columns_alone_that_the_run_does_not_have(db):
    sink = WriteToDuckDB(db, "t", mode="upsert", key=("k",))
    write(sink, "1", batch(k=[1, 2], a=["x", "y"], b=[1, 2]))
    write(sink, "2", batch(k=[2, 3], b=[20, 30]))
    write(sink, "3", batch(k=[3, 4]))
    assert sql(db, "FROM t ORDER BY k") == [(1, "x", 1), (2, "y", 20), (3, None, 30), (4, None, None)]


def test_rows_without_a_key_are_refused_and_their_neighbours_are_not(db):
    sink = WriteToDuckDB(db, "t", mode="upsert", key=("k", "j"))
    pieces, letters = stage(sink, "1", batch(k=[1, None, 3], j=pa.array(["a", "b", "c"], pa.string_view())), batch(k=[9]))
    assert [x for letter in letters for x in letter.batch.column("reason").to_pylist()] == ["no_key", "no_key"]
    assert sum(p.rows for p in pieces) == 2
    sink.publish("1", pieces)
    assert sql(db, "FROM t ORDER BY k") == [(1, "a"), (3, "c")]


def test_append_keeps_changes_as_rows(db):
    write(WriteToDuckDB(db, "t"), "1", changes([{"k": 1, "row_change": "delete"}]))
    assert sql(db, "FROM t") == [(1, "delete")]


def test_ping_of_the_sink_says_what_is_wrong_and_creates_nothing(db, tmp_path):
    WriteToDuckDB(str(tmp_path / "new" / "x.duckdb"), "t").ping()
    assert list(tmp_path.iterdir()) == []
    sql(db, "CREATE TABLE t (i INTEGER); CREATE VIEW v AS FROM t")
    WriteToDuckDB(db, "t").ping()
    with pytest.raises(ConfigError, match=r"no column k(?s:.*)it has: i"):
        WriteToDuckDB(db, "t", mode="upsert", key=("k",)).ping()
    with pytest.raises(ConfigError, match="v is a view"):
        WriteToDuckDB(db, "v").ping()
    with pytest.raises(ConfigError, match="is no folder"):
        WriteToDuckDB(f"{db}/x.duckdb", "t").ping()


# ------------------------------------------------------------------------------------------------- other processes, deaths


def start(script, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    return process


@pytest.fixture
def held(db):
    numbers(db, 10)
    process = start("import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('here', flush=True); sys.stdin.read()", db)
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_a_locked_file_is_told_with_its_holder_before_anything_moves(db, held):
    for connector in (WriteToDuckDB(db, "t"), ReadFromDuckDB(db, "t")):
        with pytest.raises(ConfigError, match=rf"{re.escape(db)} is locked by process {held.pid}: .*python.* -c import duckdb"):
            connector.ping()


def test_a_locked_file_is_waited_for(db, held, monkeypatch):
    sink = WriteToDuckDB(db, "new", wait_secs=0)
    pieces, _ = stage(sink, "1", batch(i=[1]))
    with pytest.raises(TransientError, match=f"locked by process {held.pid}"):
        sink.publish("1", pieces)
    released = []

    def release(secs):
        held.stdin.close()
        released.append(held.wait())

    monkeypatch.setattr(_duckdb.time, "sleep", release)
    assert WriteToDuckDB(db, "new", wait_secs=30).publish("1", pieces)
    assert released == [0]
    assert sql(db, "FROM new") == [(1,)]


JOB = """
    import sys
    import apache_beam as beam
    from tiebeam.delivery import Delivery
    from tiebeam.io import duckdb as module
    from tiebeam.rows import RowBatch

    db, dead_letters, fault = sys.argv[1:]
    note = module.note

    def stop(*ignored):
        print("here", flush=True)
        sys.stdin.read()

    if fault == "before publish":
        module.WriteToDuckDB.publish = stop
    if fault == "within the transaction":
        module.note = lambda *a: (note(*a), stop())
    if fault == "before the sweep":
        module.WriteToDuckDB._sweep = stop

    store = module.WriteToDuckDB(dead_letters, "letters")
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, dead_letters=store, run_id="monday"):
        batches = [RowBatch.from_pydict({"i": list(range(k, k + 100))}) for k in range(0, 1000, 100)]
        p | beam.Create(batches).with_output_types(RowBatch) | module.WriteToDuckDB(db, "t")
    print("here", flush=True)
"""


@pytest.mark.parametrize("fault", ["before publish", "within the transaction", "before the sweep"])
def test_a_run_killed_at_any_point_and_run_again_writes_every_row_once(db, tmp_path, fault):
    sql(db, "CREATE TABLE t AS SELECT -1::BIGINT AS i")
    killed = start(JOB, db, str(tmp_path / "letters.duckdb"), fault)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(sql(db, "FROM t")) == (1001 if fault == "before the sweep" else 1)
    assert Path(f"{db}.staging").exists()
    start(JOB, db, str(tmp_path / "letters.duckdb"), "none").wait()
    assert sql(db, "SELECT count(*), count(DISTINCT i), sum(i) FROM t") == [(1001, 1001, sum(range(1000)) - 1)]
    assert not Path(f"{db}.staging").exists()


def test_staged_reports_survive_the_journey(db):
    pieces, _ = stage(WriteToDuckDB(db, "t"), "1", batch(i=[1]), batch(i=["x"]))
    assert len(pieces) == 2
    assert Staged.unpack([Staged.pack(pieces)]) == sorted(pieces, key=lambda s: s.handle)
    assert all(Path(s.handle).stat().st_size == s.bytes for s in pieces)
