"""The same rows rolled up from files and from Kafka in batch, from Kafka on Prism and on Flink: one answer, late rows included."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import confluent_kafka
import polars as pl
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tiebeam import cli, runners, steps

ROWS = 6_000
PARTITIONS = 3
START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = ["--by=shop", "--window=10m", "--aggregates=n=count(),total=sum(amount)"]


def rows() -> list[dict[str, object]]:
    """Two hours, out of order by up to half a minute; every hundredth row comes an hour late."""
    chance = random.Random(11)
    moments = [(i * 7200 / ROWS + chance.uniform(0, 30) + (3600 if i % 100 == 0 else 0), i) for i in range(ROWS)]
    return [
        {"at": (START + timedelta(seconds=i * 7200 / ROWS)).isoformat(timespec="milliseconds"), "shop": f"s{i % 5}", "amount": i}
        for _, i in sorted(moments)
    ]


@pytest.fixture(scope="module")
def given(kafka, tmp_path_factory):
    """The rows as a file and as a topic."""
    folder = tmp_path_factory.mktemp("given")
    lines = [json.dumps(row).encode() for row in rows()]
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    topic = f"same-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka.servers, "log_level": 0})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    sending = confluent_kafka.Producer({"bootstrap.servers": kafka.servers, "log_level": 0})
    for i, line in enumerate(lines):
        sending.produce(topic, line, partition=i % PARTITIONS)
    assert sending.flush(30) == 0
    stream = ["--source=kafka", f"--source_servers={kafka.servers}", f"--source_topics={topic}", "--source_event_time=at"]
    return {"files": ["--source=jsonl", f"--source_path={folder}/rows.jsonl", "--source_event_time=at"], "kafka": stream}


def sinks(folder: Path) -> list[str]:
    out = ["--sink=parquet", f"--sink_path={folder}/windows", "--sink_commit_secs=1"]
    return [*out, "--late=parquet", f"--late_path={folder}/late", "--late_commit_secs=1", f"--dead_letters={folder}/rejected"]


def found(folder: Path) -> tuple[pl.DataFrame, int]:
    """The sums by window and shop, late rows added to those of their window; and how many of them there were."""
    windows = [pl.read_parquet(file).select("window_start", "shop", "n", "total") for file in (folder / "windows").glob("*.parquet")]
    late = [pl.read_parquet(file) for file in (folder / "late").glob("*.parquet")]
    start = pl.col("row_time").dt.truncate("10m").alias("window_start")
    sums = (pl.len().cast(pl.Int64).alias("n"), pl.col("amount").sum().alias("total"))
    parts = windows + [part.group_by(start, "shop").agg(sums) for part in late]
    if not parts:
        return pl.DataFrame(), 0
    whole = pl.concat(parts, how="vertical_relaxed").group_by("window_start", "shop").agg(pl.col("n", "total").sum())
    return whole.sort("window_start", "shop"), sum(part.height for part in late)


@pytest.fixture(scope="module")
def expected(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    assert cli.main(["run", "rollup", *given["files"], *WINDOW, *sinks(folder)]) == 0
    sums, late = found(folder)
    assert (sums["n"].sum(), sums.height, late) == (ROWS, 12 * 5, 0)
    return sums


def test_kafka_in_batch(given, expected, tmp_path):
    assert cli.main(["run", "rollup", *given["kafka"], "--source_until=latest", *WINDOW, *sinks(tmp_path)]) == 0
    sums, late = found(tmp_path)
    assert sums.equals(expected)
    assert late == 0


def test_kafka_on_prism(given, expected, prism, tmp_path):
    """Drained when all was read, as an interrupt would do it."""

    def drain():
        while steps.tally().get(("Read", steps.ROWS_OUT), 0) < ROWS:
            time.sleep(0.05)
        runners.DRAIN.set()

    steps.reset_tally()
    threading.Thread(target=drain, daemon=True).start()
    flags = ["--source_disorder_secs=60", f"--source_lag_secs={10**9}", "--source_poll_secs=0.05"]
    assert cli.main(["run", "rollup", *given["kafka"], *flags, *WINDOW, *sinks(tmp_path)]) == 0
    sums, _ = found(tmp_path)
    assert sums.equals(expected)


def test_kafka_on_flink(given, expected, flink, tmp_path):
    """Its last windows close because its partitions are idle, and then are as far as the clock."""
    flags = ["--source_disorder_secs=60", *flink.flags(parallelism=2, checkpoint_ms=1000)]
    assert cli.main(["run", "rollup", *given["kafka"], *flags, *WINDOW, *sinks(tmp_path)]) == 0
    job = next(iter(flink.rest.jobs()))
    until = time.monotonic() + 180
    try:
        while not (sums := found(tmp_path)[0]).equals(expected):
            assert time.monotonic() < until, f"{sums['n'].sum() if sums.height else 0} of {ROWS} rows, {flink.rest.state(job)}"
            time.sleep(0.5)
    finally:
        flink.rest.cancel(job)
