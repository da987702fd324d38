"""Runs by cursor: each row of a table reaches each sink once, however often a run is repeated or killed, and whatever comes meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import duckdb
import pytest
from google.cloud import bigquery as google

from tiebeam import cli
from tiebeam.io._bigquery_client import Connection
from tiebeam.io.avro import ReadFromAvro
from tiebeam.io.bigquery import ReadFromBigQuery

SINKS = {
    **{kind: [f"--sink={kind}", "--sink_path=out/"] for kind in ("parquet", "jsonl", "csv", "avro")},
    "duckdb": ["--sink=duckdb", "--sink_path=out.duckdb", "--sink_table=t"],
    "bigquery": ["--sink=bigquery", "--sink_table={}.copy"],
    "bigquery by streams": ["--sink=bigquery", "--sink_table={}.copy", "--sink_method=storage_write"],
}


@pytest.fixture
def client(bigquery, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in bigquery.environment.items():
        monkeypatch.setenv(name, value)
    return Connection(patience_secs=20).open().rest


@pytest.fixture
def dataset(client):
    name = f"d_{uuid.uuid4().hex[:12]}"
    client.create_dataset(name)
    make(client, f"{name}.sales", n="INTEGER", at="TIMESTAMP", amount="NUMERIC")
    return name


def make(client, table, **columns):
    client.create_table(google.Table(f"lab.{table}", [google.SchemaField(name, kind) for name, kind in columns.items()]))


def add(client, dataset, *rows):
    """Adds rows (number, second)."""
    at = {second: f"TIMESTAMP '2026-11-27 00:00:{second:02}+00'" for _, second in rows if second is not None}
    values = ", ".join(f"({n}, {at.get(second, 'NULL')}, {n})" for n, second in rows)
    client.query_and_wait(f"INSERT INTO {dataset}.sales VALUES {values}")


def flags(dataset, sink, *more):
    source = ["--source=bigquery", f"--source_table={dataset}.sales", "--source_cursor=at", "--dead_letters=rejected/"]
    return [*source, *(flag.format(dataset) for flag in SINKS[sink]), *more]


def ingest(dataset, sink, *more):
    return cli.main(["run", "ingest", *flags(dataset, sink, *more)])


def written(dataset, sink):
    """The numbers that the sink holds."""
    if sink == "duckdb":
        with duckdb.connect("out.duckdb", read_only=True) as con:
            return sorted(n for (n,) in con.execute("SELECT n FROM t").fetchall())
    if sink == "avro":
        found = ReadFromAvro("out/").sample(1000)
    elif sink.startswith("bigquery"):
        found = ReadFromBigQuery(f"{dataset}.copy").sample(1000)
    else:
        found = duckdb.sql(f"SELECT n FROM 'out/*.{sink}'").to_arrow_table()
    return sorted(found.column("n").to_pylist())


@pytest.mark.parametrize("sink", SINKS)
def test_a_run_reads_what_is_new_and_the_next_one_nothing(sink, client, dataset, capsys):
    add(client, dataset, (1, 1), (2, 2), (3, 3))
    assert ingest(dataset, sink) == 0, capsys.readouterr()
    assert written(dataset, sink) == [1, 2, 3]
    add(client, dataset, (4, 4), (5, 5))
    assert ingest(dataset, sink) == 0, capsys.readouterr()
    told = capsys.readouterr()
    assert "2 read = 2 accepted" in told.out
    assert "at above 2026-11-27T00:00:03+00:00 up to 2026-11-27T00:00:05+00:00" in told.err
    assert ingest(dataset, sink) == 0
    assert "nothing new since ingest-" in capsys.readouterr().out
    assert written(dataset, sink) == [1, 2, 3, 4, 5]


KINDS = {
    "INTEGER": ["-5", "7", "70"],
    "DATE": ["DATE '2026-01-31'", "DATE '2026-02-01'", "DATE '2026-11-27'"],
    "DATETIME": ["DATETIME '2026-01-31 00:00:00'", "DATETIME '2026-01-31 00:00:00.000001'", "DATETIME '2026-11-27 10:00:00'"],
    "TIMESTAMP": ["TIMESTAMP '2026-01-31 00:00:00+00'", "TIMESTAMP '2026-01-31 00:00:00.000001+00'", "TIMESTAMP '2026-11-27 10:00:00+00'"],
    "NUMERIC": ["NUMERIC '9.5'", "NUMERIC '10'", "NUMERIC '12345678901234567890.000000001'"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["table", "query"])
def test_every_kind_of_cursor_goes_on_where_it_ended(kind, what, client, dataset, capsys):
    make(client, f"{dataset}.kinds", n="INTEGER", c=kind)
    named = f"{dataset}.kinds" if what == "table" else f"SELECT * FROM {dataset}.kinds -- all of it"
    told = [
        "--source=bigquery",
        f"--source_{what}={named}",
        "--source_cursor=c",
        "--sink=duckdb",
        "--sink_path=out.duckdb",
        "--sink_table=t",
    ]
    if what == "query":
        told.append(f"--source_temp_dataset={dataset}")
    for n, value in enumerate(KINDS[kind]):
        client.query_and_wait(f"INSERT INTO {dataset}.kinds VALUES ({n}, {value})")
        assert cli.main(["run", "ingest", *told]) == 0, capsys.readouterr()
        assert "1 read = 1 accepted" in capsys.readouterr().out
    assert written(dataset, "duckdb") == [0, 1, 2]


KILL = """
import os, signal, sys
from tiebeam import cli, delivery
from tiebeam.io import _manifest, _bigquery_jobs
def kill(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
{}
sys.exit(cli.main(sys.argv[1:]))
"""


def kill(told, patch):
    """Runs a job that is killed at a moment."""
    killed = subprocess.run([sys.executable, "-c", KILL.format(patch), "run", "ingest", *told], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


BEFORE = "delivery._PublishFn.process = lambda *a, **k: iter([kill()])"
AFTER = """
real = delivery._PublishFn.process
def process(self, *a, name=None, **k):
    yield from real(self, *a, name=name, **k)
    name or kill()
delivery._PublishFn.process = process
"""
MOMENTS = [
    *(("before publication", sink, BEFORE) for sink in ("parquet", "duckdb", "bigquery", "bigquery by streams")),
    *(("after publication", sink, AFTER) for sink in ("parquet", "duckdb", "bigquery")),
    ("between intent and entry", "parquet", "_manifest.commit = kill"),
    ("between streams and ledger", "bigquery by streams", "_bigquery_jobs.Ledger.tell = kill"),
    ("while the service moves the rows", "bigquery", "_bigquery_jobs._outcome = kill"),
]


@pytest.mark.parametrize(("moment", "sink", "patch"), MOMENTS, ids=[f"{m}: {s}" for m, s, _ in MOMENTS])
def test_a_run_killed_and_repeated_brings_each_row_once(moment, sink, patch, client, dataset, capsys):
    add(client, dataset, (1, 1))
    assert ingest(dataset, sink) == 0, capsys.readouterr()
    add(client, dataset, (2, 2), (3, 3))
    killed = subprocess.run(
        [sys.executable, "-c", KILL.format(patch), "run", "ingest", *flags(dataset, sink)], capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    add(client, dataset, (4, 4))
    assert ingest(dataset, sink) == 0, capsys.readouterr()
    assert written(dataset, sink) == [1, 2, 3, 4]


def test_a_run_killed_while_it_is_made_visible_is_finished_though_nothing_is_new(client, dataset, capsys):
    add(client, dataset, (1, 1))
    kill(flags(dataset, "parquet"), "_manifest.commit = kill")
    assert ingest(dataset, "parquet") == 0
    assert "nothing new" in capsys.readouterr().out
    assert written(dataset, "parquet") == [1]


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
      - name: amount
        logicalType: number
        required: true
"""


def test_a_cursor_goes_on_when_every_row_was_rejected(client, dataset, capsys):
    add(client, dataset, (1, 1))
    assert ingest(dataset, "bigquery") == 0, capsys.readouterr()
    client.query_and_wait(f"INSERT INTO {dataset}.sales VALUES (2, TIMESTAMP '2026-11-27 00:00:02+00', NULL)")
    Path("c.yaml").write_text(CONTRACT)
    assert ingest(dataset, "bigquery", "--contract=c.yaml") == 0, capsys.readouterr()
    assert "1 rejected" in capsys.readouterr().out
    assert ingest(dataset, "bigquery", "--contract=c.yaml") == 0
    assert "nothing new" in capsys.readouterr().out


UPSERT = ("--sink_mode=upsert", "--sink_key=n", "--source_cursor_overlap_secs=10")


@pytest.mark.parametrize("sink", ["duckdb", "bigquery"])
def test_an_overlap_brings_rows_that_were_committed_late_and_doubles_none(sink, client, dataset, capsys):
    add(client, dataset, (1, 20))
    assert ingest(dataset, sink, *UPSERT) == 0, capsys.readouterr()
    add(client, dataset, (2, 11), (3, 21), (4, 9))
    assert ingest(dataset, sink, *UPSERT) == 0, capsys.readouterr()
    assert written(dataset, sink) == [1, 2, 3]


def test_rows_without_a_cursor_are_told(client, dataset, capsys):
    add(client, dataset, (1, 1), (2, None), (3, None))
    assert ingest(dataset, "duckdb") == 0, capsys.readouterr()
    assert "2 rows without at are not read, by any run" in capsys.readouterr().err
    assert ingest(dataset, "duckdb") == 0
    assert "2 rows without at" in capsys.readouterr().out
    assert written(dataset, "duckdb") == [1]


def test_a_plan_shows_from_where_to_where_and_moves_nothing(client, dataset, capsys):
    add(client, dataset, (1, 1), (2, None))
    assert cli.main(["plan", "ingest", *flags(dataset, "parquet"), "--json"]) == 0, capsys.readouterr()
    about = json.loads(capsys.readouterr().out)
    assert about["cursor"] == ["at from the beginning up to 2026-11-27T00:00:01+00:00", "1 rows without at are not read, by any run"]
    assert ingest(dataset, "parquet") == 0
    capsys.readouterr()
    assert cli.main(["plan", "ingest", *flags(dataset, "parquet")]) == 0
    assert "nothing new since" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sink", "more", "said"),
    [
        ("duckdb", ["--source_cursor_overlap_secs=5"], "would be doubled"),
        ("parquet", ["--sink_mode=replace"], "would leave the new rows only"),
        ("parquet", ["--run_id=r"], "is named by it"),
        ("bigquery", ["--sink_method=storage_write", "--sink_delivery=at_least_once"], "cannot tell which run"),
        ("duckdb", ["--source_cursor=nowhere"], "--source_cursor"),
        ("duckdb", ["--source_snapshot_time=2026-11-27T00:00:00Z"], "the past holds nothing new"),
    ],
)
def test_what_cannot_go_on_from_a_cursor_is_refused_before_anything_moves(sink, more, said, client, dataset, capsys, tmp_path):
    add(client, dataset, (1, 1))
    assert ingest(dataset, sink, *more) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
