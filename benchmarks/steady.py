"""A stream for long: a backlog caught up and a steady rate on Flink, with memory and checkpoints; how soon windows are visible.

Events are JSON of 208 bytes in four partitions of a broker on the same cores. Those of the backlog are of the past; those of the
steady rate happen as they are sent, so the delay of a window is the time from its end until its last sum is in a visible file.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import comparing, events
from benchmarks.kafka import TOPIC, fill, make_topic, send
from benchmarks.measuring import WORK, resident_mb, say, show, tree

CHECKPOINT_MS = 2000
WINDOW_SECS = 10
SCHEMA = "id bigint, ts timestamptz, user varchar, amount double, note varchar, category varchar, kind varchar, pad varchar"
STEADY_SECS = 900
PER_SECOND = 30_000  # half of what the job can do on these cores (on_flink)
LOCAL_SECS, LOCAL_PER_SECOND = 90, 10_000
LOOK_SECS = 0.05
PATIENCE_SECS = 900


class Sender:
    """Sends events that happen now, at a rate."""

    def __init__(self, servers: str):
        import confluent_kafka

        settings = {"linger.ms": 5, "queue.buffering.max.messages": 500_000}
        self.producer = confluent_kafka.Producer({"bootstrap.servers": servers, "log_level": 0, **settings})
        self.at = events._HEAD.index(b"2026-")

    def now(self, per_second: int, secs: float) -> None:
        """Sends events that happen now, in their order in each partition."""
        with comparing.events_file(100_000).open("rb") as file:
            lines = [line.rstrip() for line in file]
        began, sent = time.monotonic(), 0
        while (gone := time.monotonic() - began) < secs:
            moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23].encode() + b"Z"
            while sent < int(gone * per_second):
                line = lines[sent % len(lines)]
                send(self.producer, line[: self.at] + moment + line[self.at + 24 :], sent)
                sent += 1
            self.producer.poll(0)
            time.sleep(0.005)
        self.producer.flush(120)


class Windows:
    """Looks, as a reader of the table does, for windows that have become visible."""

    def __init__(self, target: Path):
        self.target = target
        self.known: set[str] = set()
        self.seen: dict[float, float] = {}
        """By the end of a window: when its last row was seen."""
        self.events = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        import pyarrow.parquet as pq

        from tiebeam.io._manifest import committed_files

        while not self.over.wait(LOOK_SECS):
            for path in set(committed_files(str(self.target)) or ()) - self.known:
                self.known.add(path)
                rows, now = pq.read_table(path, columns=["window_end", "n"]), time.time()
                self.events += int(np.sum(rows.column("n").to_numpy()))
                self.seen.update((end.timestamp(), now) for end in rows.column("window_end").unique().to_pylist())

    def await_events(self, count: int, each: Callable[[], None]) -> None:
        until = time.monotonic() + PATIENCE_SECS
        while self.events < count:
            if time.monotonic() > until:
                raise SystemExit(f"{self.events:,} of {count:,} events are in visible windows after {PATIENCE_SECS} s")
            each()
            time.sleep(1)

    def delays(self, since: float) -> np.ndarray:
        return np.array([seen - end for end, seen in sorted(self.seen.items()) if end - WINDOW_SECS > since])


def graph(p: Any, servers: str, target: Path) -> None:
    from tiebeam.io.kafka import ReadFromKafka
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.transforms.aggregate import Aggregate, Count, Sum

    reading = ReadFromKafka(servers, (TOPIC,), event_time="ts", schema=SCHEMA, disorder_secs=4.0 if target.name == "flink" else 0.0)
    sums = Aggregate(by=("category", "kind"), window=WINDOW_SECS, shards=4, total=Sum("amount"), n=Count())
    p | reading | sums | WriteToParquet(str(target), commit_secs=1)


class Health:
    """Memory of workers and TaskManagers, and the last checkpoint, over time."""

    def __init__(self, cluster: Any, job: str):
        self.cluster, self.job = cluster, job
        self.began = time.monotonic()
        self.points: list[tuple[float, float, float, float, float]] = []

    def look(self) -> None:
        workers = [pid for server in self.cluster.taskmanagers for pid in server.workers()]
        java = [server.program.process.pid for server in self.cluster.taskmanagers]
        last = self.cluster.rest.latest_checkpoint(self.job) or {}
        size, took = last.get("state_size", 0) / 1e6, last.get("end_to_end_duration", 0) / 1e3
        of_workers, of_all = resident_mb(workers), resident_mb(pid for root in java for pid in tree(root))
        self.points.append((time.monotonic() - self.began, of_workers, of_all - of_workers, size, took))

    def rows(self, what: str, since: float) -> list[list[str]]:
        """Each figure in the first and last fifth of the time, and its slope."""
        points = np.array([point for point in self.points if point[0] >= since])
        fifth = max(1, len(points) // 5)
        named = enumerate(("workers, MB", "TaskManagers, MB", "checkpoint, MB", "checkpoint takes, s"), 1)
        out = []
        for column, name in named:
            slope = np.polyfit(points[:, 0] / 60, points[:, column], 1)[0]
            means = points[:fifth, column].mean(), points[-fifth:, column].mean()
            out.append([f"{what}: {name}", *(f"{mean:.2f}" for mean in means), f"{points[:, column].max():.2f}", f"{slope:+.3f}"])
        return out


def on_flink(size: int, secs: float) -> tuple[list[list[str]], list[str]]:
    """A backlog of so many events, then so many seconds at the steady rate."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from tiebeam.lab import flink

    with _broker("flink") as (servers, target), flink.obtain().cluster(taskmanagers=2, slots=2) as cluster:
        fill(servers, comparing.events_file(size), size)
        sender = Sender(servers)
        windows, began = Windows(target), time.monotonic()
        p = beam.Pipeline(options=PipelineOptions(cluster.flags(parallelism=2, checkpoint_ms=CHECKPOINT_MS)))
        graph(p, servers, target)
        p.run()
        job = cluster.rest.wait(lambda: next(iter(cluster.rest.jobs()), None), "a job", 120)
        cluster.rest.await_checkpoints(job, 1, secs=240)
        health = Health(cluster, job)
        windows.await_events(int(size * 0.99), health.look)  # the last windows close when later events come
        caught_up = time.monotonic() - began
        rows = health.rows("backlog", 0)
        say(f"steady: the backlog took {caught_up:.0f} s; now {PER_SECOND:,} events a second for {secs:.0f} s")
        since, moment = time.monotonic() - health.began + 60, time.time() + 60
        steady = threading.Thread(target=sender.now, args=(PER_SECOND, secs))
        steady.start()
        while steady.is_alive():
            health.look()
            time.sleep(5)
        time.sleep(3 * WINDOW_SECS)
        delays = windows.delays(moment)
        windows.over.set()
        cluster.rest.cancel(job)
        rows += health.rows("steady", since)
        told = [f"backlog of {size:,} events: {caught_up:.0f} s from submission, {size / caught_up:,.0f} events/s"]
        said = f"on Flink, checkpoints every {CHECKPOINT_MS / 1e3:g} s, disorder of 4 s"
        return rows, [*told, _told(f"{said}, {PER_SECOND:,} events/s, {secs / 60:.0f} minutes", delays)]


def on_prism() -> str:
    """How soon windows are visible on this machine."""
    import subprocess

    with _broker("prism") as (servers, target):
        make_topic(servers)
        sender = Sender(servers)
        sender.now(LOCAL_PER_SECOND, 2)
        windows = Windows(target)
        job = subprocess.Popen([sys.executable, "-m", "benchmarks.steady", servers, str(target)], stderr=subprocess.DEVNULL)
        moment = time.time() + 20  # it has started by then
        sender.now(LOCAL_PER_SECOND, LOCAL_SECS)
        time.sleep(3)
        delays = windows.delays(moment)
        windows.over.set()
        job.kill()
        job.wait()
    return _told(f"on Prism, no disorder, {LOCAL_PER_SECOND:,} events/s", delays)


def _told(where: str, delays: np.ndarray) -> str:
    middle, most = (float(np.median(delays)), float(delays.max())) if len(delays) else (float("nan"), float("nan"))
    return f"{where}: {len(delays)} windows were in a visible file {middle:.1f} s after their end in the median, {most:.1f} s at most"


@contextmanager
def _broker(name: str) -> Iterator[tuple[str, Path]]:
    from tiebeam.lab import kafka

    target = WORK / "steady" / name
    comparing.empty(target)
    with tempfile.TemporaryDirectory(dir=WORK) as folder, kafka.obtain().cluster(Path(folder)) as broker:
        yield broker.servers, target


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table: the largest of the sizes is the backlog."""
    rows, told = on_flink(max(sizes), STEADY_SECS)
    told.append(on_prism())
    header = ["", "first fifth", "last fifth", "most", "slope, per minute"]
    figure = "; ".join(["memory is resident, looked at every second (backlog) or five (steady, without its first minute)", *told])
    show("A stream for long", header, rows, "steady" if save else None, figure)
    print("\n".join(told))


if __name__ == "__main__":
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from tiebeam.lab import prism

    p = beam.Pipeline(options=PipelineOptions(prism.obtain().flags()))
    graph(p, sys.argv[1], Path(sys.argv[2]))
    p.run().wait_until_finish()
