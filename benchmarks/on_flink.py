"""Kafka to sums per minute on Flink: record batches, Beam element by element, PyFlink, Flink SQL, and a bare loop beside it.

All events are in the topic before the clock starts, within a transaction that is still open: no job sees one while it starts. The
clock starts when the transaction is committed, and stops when the last window is visible in files. Processor seconds are of that
time, by kind of process: what runs Python, what runs Java, the broker. Each contender has a cluster and a broker of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import comparing, events, windowed_sum
from benchmarks.kafka import PARTITIONS, TOPIC, make_topic, send
from benchmarks.measuring import ROOT, WORK, python, say, show

PARALLELISM = 2
CHECKPOINT_MS = 2000
CENTURY_SECS = 100 * 365 * 24 * 3600  # the events are of the past: no clock may close their windows
PYFLINK = WORK / "pyflink"
FLINK = "1.19.3"
KAFKA_CONNECTOR = "org.apache.flink:flink-sql-connector-kafka:3.2.0-1.19"
TICK = os.sysconf("SC_CLK_TCK")
PATIENCE_SECS = 900
SHARE = {"beam_rows": 0.1, "pyflink": 0.25}
"""Of the events, what slow contenders are given."""


# The contenders: each submits a job that runs for ever.


def tiebeam(cluster: Any, servers: str, target: str) -> None:
    from tiebeam.io.kafka import ReadFromKafka
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.transforms.aggregate import Aggregate, Sum

    reading = ReadFromKafka(servers, (TOPIC,), event_time="ts", lag_secs=CENTURY_SECS, schema=SCHEMA)
    sums = Aggregate(by=("category", "kind"), window="1m", total=Sum("amount"))
    _on_beam(cluster, lambda p: p | reading | sums | WriteToParquet(target, commit_secs=1))


def beam_rows(cluster: Any, servers: str, target: str) -> None:
    """Read by our source, as Beam's own needs Java; its messages are elements from there on. Sums are batches again, for our sink."""
    import datetime

    import apache_beam as beam
    from apache_beam.transforms.window import FixedWindows, TimestampedValue

    from tiebeam.io.kafka import ReadFromKafka
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.rows import RowBatch

    def timed(event):
        at = datetime.datetime.fromisoformat(event["ts"]).timestamp()
        return TimestampedValue(((event["category"], event["kind"]), event["amount"]), at)

    def row(pair, window=beam.DoFn.WindowParam):
        (category, kind), total = pair
        start = window.start.to_utc_datetime()
        return RowBatch.from_pylist([{"window_start": start, "category": category, "kind": kind, "total": total}])

    def build(p):
        messages = p | ReadFromKafka(servers, (TOPIC,), format="raw", lag_secs=CENTURY_SECS)
        values = messages | beam.FlatMap(lambda batch: batch.column("value").to_pylist())
        keyed = values | beam.Map(json.loads) | beam.Map(timed) | beam.WindowInto(FixedWindows(60))
        sums = keyed | beam.CombinePerKey(sum) | beam.Map(row).with_output_types(RowBatch)
        sums | WriteToParquet(target, commit_secs=1)

    _on_beam(cluster, build)


def pyflink(cluster: Any, servers: str, target: str) -> None:
    _on_pyflink(cluster, "datastream", servers, target)


def flink_sql(cluster: Any, servers: str, target: str) -> None:
    _on_pyflink(cluster, "sql", servers, target)


SCHEMA = "ts timestamptz, category varchar, kind varchar, amount double"
CONTENDERS: dict[str, Callable[[Any, str, str], None]] = {f.__name__: f for f in (tiebeam, beam_rows, pyflink, flink_sql)}
VISIBLE = {
    "tiebeam": "SELECT window_start, total FROM '{}/*.parquet'",
    "beam_rows": "SELECT window_start, total FROM '{}/*.parquet'",
    "pyflink": "SELECT make_timestamp(start * 1000) window_start, total FROM read_csv('{}/*/*', names=['start', 'c', 'k', 'total'])",
    "flink_sql": "SELECT window_start, total FROM read_csv('{}/*', names=['window_start', 'c', 'k', 'total'])",
}


def _on_beam(cluster: Any, build: Callable[[Any], Any]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    p = beam.Pipeline(options=PipelineOptions(cluster.flags(parallelism=PARALLELISM, checkpoint_ms=CHECKPOINT_MS)))
    build(p)
    p.run()


def _on_pyflink(cluster: Any, kind: str, servers: str, target: str) -> None:
    script = Path(__file__).parent / "pyflink_jobs.py"
    told = [kind, cluster.address, servers, target, str(_connector()), str(_packages() / "opt" / f"flink-python-{FLINK}.jar")]
    log = WORK / "pyflink.log"
    with log.open("wb") as file:
        if subprocess.run([str(PYFLINK / "bin" / "python"), str(script), *told], stdout=file, stderr=file).returncode:
            raise SystemExit(f"PyFlink did not take its job:\n{log.read_text(errors='replace')[-4000:]}")


# What they run on.


@contextmanager
def _cluster(name: str) -> Iterator[Any]:
    from tiebeam.lab import flink

    found = flink.obtain()
    if name in ("pyflink", "flink_sql"):
        _install_pyflink()
        found = flink.Flink(str(_jars()), "PyFlink's")
    settings = {"taskmanager.memory.managed.size": "512m", "taskmanager.memory.task.heap.size": "512m"}
    with found.cluster(taskmanagers=2, slots=2, settings=settings) as cluster:
        yield cluster


def _install_pyflink() -> None:
    if not (PYFLINK / "ready").exists():
        say(f"installing PyFlink {FLINK} into {PYFLINK}: some minutes, 1 GB")
        subprocess.run([sys.executable, "-m", "venv", PYFLINK], check=True)
        pip = [PYFLINK / "bin" / "pip", "install", "--quiet", "--prefer-binary"]
        subprocess.run([*pip, "setuptools<81", "wheel"], check=True)
        subprocess.run([*pip, f"apache-flink=={FLINK}"], check=True)
        (PYFLINK / "ready").touch()


def _packages() -> Path:
    return next(PYFLINK.glob("lib/python*/site-packages/pyflink"))


def _connector() -> Path:
    jar = WORK / f"{KAFKA_CONNECTOR.split(':')[1]}-{KAFKA_CONNECTOR.split(':')[2]}.jar"
    if not jar.exists():
        get = ["mvn", "-q", "dependency:copy", f"-Dartifact={KAFKA_CONNECTOR}", f"-DoutputDirectory={WORK}"]
        subprocess.run(get, check=True)
    return jar


def _jars() -> Path:
    """The class path of a cluster that also runs PyFlink and SQL."""
    folder = WORK / "pyflink-jars"
    comparing.empty(folder)
    for jar in [*(_packages() / "lib").glob("*.jar"), _packages() / "opt" / f"flink-python-{FLINK}.jar", _connector()]:
        (folder / jar.name).symlink_to(jar)
    return folder


# The clock.


class Loaded:
    """A topic that is full, of events that nobody can read yet."""

    def __init__(self, servers: str, size: int):
        import confluent_kafka

        make_topic(servers)
        settings = {"linger.ms": 50, "queue.buffering.max.messages": 500_000, "transaction.timeout.ms": 890_000}
        self.producer = confluent_kafka.Producer({"bootstrap.servers": servers, "transactional.id": "gun", "log_level": 0, **settings})
        self.producer.init_transactions(60)
        self.producer.begin_transaction()
        at = events._HEAD.index(b"2026-")
        with comparing.events_file(size).open("rb") as lines:
            for number, line in enumerate(lines):
                send(self.producer, line.rstrip(), number, timestamp=_millis(line, at))
        last = line.replace(line[at : at + 24], b"2026-01-02T23:00:00.000Z")
        for partition in range(PARTITIONS):  # moves the watermark over all windows
            send(self.producer, last.rstrip(), partition, timestamp=_millis(last, at))
        self.producer.flush(120)

    def fire(self) -> None:
        self.producer.commit_transaction(120)


def _millis(line: bytes, at: int) -> int:
    """Since 1970, of the time in a line: all events are of the first two days of 2026."""
    day, hour, minute, second, milli = (int(line[at + a : at + b]) for a, b in ((8, 10), (11, 13), (14, 16), (17, 19), (20, 23)))
    return 1_767_225_600_000 + ((((day - 1) * 24 + hour) * 60 + minute) * 60 + second) * 1000 + milli


@dataclass
class Spent:
    """Seconds by the clock, and processor seconds by kind of process."""

    secs: float
    python: float
    java: float
    broker: float


def _processor(groups: dict[int, str]) -> dict[int, tuple[str, float]]:
    """Processor seconds of each process in these process groups."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        if (group := int(fields[2])) in groups:
            kind = "python" if "python" in name and groups[group] == "java" else groups[group]
            found[int(stat.parent.name)] = (kind, (int(fields[11]) + int(fields[12])) / TICK)
    return found


def run(name: str, size: int) -> Spent:
    """One contender: its job is started, the events fired, and its windows awaited."""
    from tiebeam.lab import kafka

    target = WORK / "on_flink" / name
    comparing.empty(target)
    with tempfile.TemporaryDirectory(dir=WORK) as folder, kafka.obtain().cluster(Path(folder)) as broker, _cluster(name) as cluster:
        say(f"on Flink: {name}, sending {size:,} events")
        loaded = Loaded(broker.servers, size)
        CONTENDERS[name](cluster, broker.servers, str(target))
        expected = _expected(size)
        job = cluster.rest.wait(lambda: next(iter(cluster.rest.jobs()), None), "a job", 120)
        cluster.rest.await_checkpoints(job, 2, secs=240)
        groups = {server.program.process.pid: "java" for server in cluster.servers.values()}
        groups |= {one.program.process.pid: "broker" for one in broker.brokers}
        before, began = _processor(groups), time.perf_counter()
        say(f"on Flink: {name}, fire")
        loaded.fire()
        _await(name, target, expected)
        secs, after = time.perf_counter() - began, _processor(groups)
        cluster.rest.cancel(job)
    sums = dict.fromkeys(("python", "java", "broker"), 0.0)
    for pid, (kind, cpu) in after.items():
        sums[kind] += cpu - before.get(pid, (kind, 0.0))[1]
    return Spent(secs, **sums)


def _expected(size: int) -> tuple[int, float]:
    """How many windows the events make, and the sum of all."""
    import duckdb

    events_of = f"read_json('{comparing.events_file(size)}', format='newline_delimited', columns={windowed_sum.COLUMNS})"
    return duckdb.sql(f"SELECT count(DISTINCT (date_trunc('minute', ts), category, kind)), sum(amount) FROM {events_of}").fetchall()[0]


def _await(name: str, target: Path, expected: tuple[int, float]) -> None:
    """Waits until all windows are visible, and holds their sum to that of the events."""
    import duckdb

    until, found = time.monotonic() + PATIENCE_SECS, (0, 0.0)
    while found[0] < expected[0]:
        if time.monotonic() > until:
            raise SystemExit(f"{name}: {found} of {expected} windows after {PATIENCE_SECS} s")
        time.sleep(0.1)
        try:
            query = f"SELECT count(*), sum(total) FROM ({VISIBLE[name].format(target)}) WHERE window_start < '2026-01-02'"
            found = duckdb.sql(query).fetchall()[0]
        except duckdb.Error:
            continue
    if found[0] != expected[0] or abs(found[1] - expected[1]) > 1:
        raise SystemExit(f"{name} gives another answer: {found} instead of {expected}")


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size."""
    from benchmarks import kafka as loop

    for size in sizes:
        rows = []
        for name in CONTENDERS:
            count = int(size * SHARE.get(name, 1))
            spent = run(name, count)
            rows.append(_row(name, count, spent))
        rows.append(_row("bare loop", size, _bare_loop(loop, size)))
        header = ["", "events", "seconds", "events/s", "events/CPU s", "CPU s Python", "CPU s Java", "CPU s broker"]
        figure = "from the commit of all events to the last window in a visible file; events/CPU s is of workers and TaskManagers"
        show(f"Kafka to sums per minute on Flink, parallelism {PARALLELISM}", header, rows, f"on_flink_{size}" if save else None, figure)


def _row(name: str, count: int, spent: Spent) -> list[str]:
    rates = [f"{count / spent.secs:,.0f}", f"{count / (spent.python + spent.java):,.0f}"]
    processors = [f"{secs:.1f}" for secs in (spent.python, spent.java, spent.broker)]
    return [name.replace("_", " "), f"{count:,}", f"{spent.secs:.1f}", *rates, *processors]


def _bare_loop(loop: Any, size: int) -> Spent:
    """One Python process that fetches, parses by blocks and sums: no checkpoint, no watermark."""
    from tiebeam.lab import kafka

    target = WORK / "on_flink" / "bare_loop"
    comparing.empty(target)
    with tempfile.TemporaryDirectory(dir=WORK) as folder, kafka.obtain().cluster(Path(folder)) as broker:
        loop.fill(broker.servers, comparing.events_file(size), size)
        groups = {one.program.process.pid: "broker" for one in broker.brokers}
        before, began = sum(cpu for _, cpu in _processor(groups).values()), time.perf_counter()
        process = subprocess.Popen(
            python("benchmarks.kafka", "bare_loop", broker.servers, target, size), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("the bare loop failed")
        after = sum(cpu for _, cpu in _processor(groups).values())
        return Spent(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, 0.0, after - before)
