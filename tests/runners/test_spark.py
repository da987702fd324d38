"""Spark, a real one with Beam's job server on this machine: what remembers rows, what aggregates, and files through the command line."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

import duckdb
import pyarrow as pa

from support import matrix
from support.matrix import Trial
from tiebeam import cli
from tiebeam.lab.spark import JobServer
from tiebeam.rows import RowBatch
from tiebeam.transforms.aggregate import Aggregate, Count, Sum
from tiebeam.transforms.sessionize import Sessionize

START = datetime(2026, 1, 1, tzinfo=UTC)
# Each user comes every 70 seconds, and is away for ten minutes after each ten events.
EVENTS = [
    {"user": f"u{user}", "amount": i % 5, "row_time": START + timedelta(seconds=70 * i + 600 * (i // 10) + user)}
    for i in range(60)
    for user in range(7)
]
SCHEMA = pa.schema([("user", pa.string()), ("amount", pa.int64()), ("row_time", pa.timestamp("us", tz="UTC"))])
BATCHES = [RowBatch.from_pylist(EVENTS[i::9], SCHEMA) for i in range(9)]


def test_a_keyed_fold_and_an_aggregate_are_exact(spark):
    trials = {
        "sessions": Trial(Sessionize(by="user", gap="5m", total=Sum("amount")), BATCHES),
        "sums": Trial(Aggregate(by="user", window="10m", n=Count(), total=Sum("amount")), BATCHES),
    }
    found = matrix.run(trials, matrix.bounded, spark.flags())
    sessions = [(s["user"], s["session_start"], s["session_rows"], s["total"]) for s in found["sessions"].rows]
    assert sorted(sessions) == sorted(sessions_by_hand())
    sums = [(s["user"], s["window_start"], s["n"], s["total"]) for s in found["sums"].rows]
    assert sorted(sums) == sorted(sums_by_hand())
    assert found["sessions"].letters == found["sums"].letters == []


def sessions_by_hand():
    for user in range(7):
        mine = EVENTS[user::7]
        for i in range(0, 60, 10):
            yield f"u{user}", mine[i]["row_time"], 10, sum(e["amount"] for e in mine[i : i + 10])


def sums_by_hand():
    def group(event):
        return event["user"], START + (event["row_time"] - START) // timedelta(minutes=10) * timedelta(minutes=10)

    for (user, start), events in groupby(sorted(EVENTS, key=group), group):
        amounts = [e["amount"] for e in events]
        yield user, start, len(amounts), sum(amounts)


def test_files_go_through_the_command_line(spark, tmp_path, capsys):
    """Published once: the same run again changes nothing."""
    (tmp_path / "in").mkdir()
    for part in range(3):
        with (tmp_path / f"in/{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("id", "shop", "net"), *((i, "ab"[i % 2], i / 4) for i in range(part * 100, part * 100 + 100))])
    job = ["run", "ingest", "--source=csv", f"--source_path={tmp_path}/in/*.csv", "--sink=parquet", f"--sink_path={tmp_path}/out"]
    assert cli.main([*job, *spark.flags()]) == 0
    assert "300 read = 300 accepted + 0 rejected" in capsys.readouterr().out
    rows = duckdb.sql(f"SELECT id, shop, net FROM '{tmp_path}/out/*.parquet' ORDER BY id").fetchall()
    assert rows == [(i, "ab"[i % 2], i / 4) for i in range(300)]
    before = sorted(Path(tmp_path, "out").glob("*.parquet"))
    assert cli.main([*job, *spark.flags()]) == 0
    assert sorted(Path(tmp_path, "out").glob("*.parquet")) == before


def test_a_stream_is_refused_before_anything_is_submitted(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("id\n1\n")
    nowhere = JobServer("localhost:1", "no.jar")  # reaching it would end with another error
    job = ["run", "ingest", "--source=csv", f"--source_path={tmp_path}/rows.csv", "--sink=parquet", f"--sink_path={tmp_path}/out"]
    assert cli.main([*job, *nowhere.flags(), "--streaming"]) == 2
    assert "cannot run streams" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
