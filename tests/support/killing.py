"""Kills a stream on a real Flink, again and again, and counts: numbered rows from Kafka to each sink, missing 0, doubled 0.

    make kill-matrix            20 rounds for each sink, and two sinks that are built too simply, which must fail
    python -m support.killing --sinks=parquet --rounds=5 --seed=7

Every round picks a fault at random, at a random time, and waits until all rows sent before it are visible. The seed is
printed: with it a run picks the same faults again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam
import confluent_kafka
import duckdb
import numpy as np
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions
from confluent_kafka.admin import AdminClient, NewTopic
from google.api_core.exceptions import NotFound

from tiebeam import commits
from tiebeam.delivery import Delivery
from tiebeam.io._bigquery_client import Connection
from tiebeam.io._folder import folder_at
from tiebeam.io._manifest import committed_files
from tiebeam.io.bigquery import WriteToBigQuery
from tiebeam.io.duckdb import WriteToDuckDB
from tiebeam.io.kafka import ReadFromKafka, WriteToKafka
from tiebeam.io.parquet import WriteToParquet
from tiebeam.lab import bigquery, flink, kafka
from tiebeam.rows import RowBatch

PARTITIONS = 4
HEAL_SECS = 240
EVERY_MS = 2000


class AtFirstMessageFn(commits._PublishFn):
    """Publishes with the first message that a bundle with the commit is durable: nearly right."""

    def process(
        self, keyed, waiting=beam.DoFn.StateParam(commits._PublishFn.WAITING), finalizer=beam.DoFn.BundleFinalizerParam
    ):  # fmt: skip
        _, report = keyed
        if report.schema.names[0] != "poke":
            waiting.add(report)
        left = {name: batch for batch in waiting.read() if not commits.PROGRESS.is_published(name := commits._name_of(batch))}
        waiting.clear()
        for batch in left.values():
            waiting.add(batch)
        due = {name: commits.pieces_of(batch) for name, batch in left.items()}
        finalizer.register(lambda: commits._finalize(self.sink, {}, due))


class WhenTheBundleEndsFn(commits._PublishFn):
    """Publishes as soon as a commit is there: what a sink does that writes in `finish_bundle`."""

    def process(self, keyed, waiting=beam.DoFn.StateParam(commits._PublishFn.WAITING), finalizer=beam.DoFn.BundleFinalizerParam):
        _, report = keyed
        if report.schema.names[0] != "poke":
            self.sink.publish(commits._name_of(report), commits.pieces_of(report))


# Where rows go, and how those are read that are visible there.


@contextmanager
def of_parquet(folder: Path, servers: str) -> Iterator[WriteToParquet]:
    yield WriteToParquet(str(folder / "parquet"), commit_secs=1)


@contextmanager
def of_duckdb(folder: Path, servers: str) -> Iterator[WriteToDuckDB]:
    yield WriteToDuckDB(str(folder / "out.duckdb"), "numbers", commit_secs=1)


@contextmanager
def of_kafka(folder: Path, servers: str) -> Iterator[WriteToKafka]:
    yield WriteToKafka(servers, "out", staging=str(folder / "staging"), ledger="out-ledger", commit_secs=1)


class InParquet:
    """The rows of the files that the manifest lists; no other file may be visible."""

    def __init__(self, sink: WriteToParquet):
        self.path = sink.path
        self.known: dict[str, np.ndarray] = {}

    def __call__(self) -> np.ndarray:
        listed = committed_files(self.path) or []
        visible = {folder_at(self.path).path(name) for name, _ in folder_at(self.path).data_files()}
        unlisted = visible - set(listed)
        if unlisted:  # moved to their place, and listed in a moment
            unlisted -= set(committed_files(self.path) or [])
            assert not [path for path in unlisted if Path(path).stat().st_mtime < time.time() - 60], f"visible, not listed: {unlisted}"
        for path in listed:
            if path not in self.known:
                self.known[path] = pq.read_table(path, columns=["n"]).column("n").to_numpy()
        return np.concatenate([*(self.known[path] for path in listed), np.empty(0, np.int64)])


class InDuckDB:
    """The rows of the table."""

    def __init__(self, sink: WriteToDuckDB):
        self.path, self.table = sink.path, sink.table

    def __call__(self) -> np.ndarray:
        until = time.monotonic() + 60
        while Path(self.path).exists():
            try:
                with duckdb.connect(self.path, read_only=True) as con:
                    return con.execute(f"SELECT n FROM {self.table}").fetchnumpy()["n"]
            except duckdb.CatalogException:
                break
            except duckdb.IOException:  # a worker is publishing
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        return np.empty(0, np.int64)


class InKafka:
    """What a reader of committed messages gets: one that is not ours."""

    def __init__(self, sink: WriteToKafka):
        self.topic = sink.topic
        reading = {"group.id": "count", "isolation.level": "read_committed", "enable.auto.commit": False, "log_level": 0}
        self.consumer = confluent_kafka.Consumer({"bootstrap.servers": sink.servers, **reading})
        self.assigned: list[int] = []
        self.found: list[np.ndarray] = []

    def __call__(self) -> np.ndarray:
        if not self.assigned and (told := self.consumer.list_topics(timeout=20).topics.get(self.topic)) and told.partitions:
            self.assigned = list(told.partitions)
            start = confluent_kafka.OFFSET_BEGINNING
            self.consumer.assign([confluent_kafka.TopicPartition(self.topic, number, start) for number in self.assigned])
        messages = self.consumer.consume(1_000_000, 1.0) if self.assigned else []
        values = [message.value() for message in messages if not message.error()]
        self.found.append(np.array([json.loads(value)["n"] for value in values], np.int64))
        return np.concatenate([*self.found, np.empty(0, np.int64)])


class InBigQuery:
    """The rows of the table."""

    def __init__(self, sink: WriteToBigQuery):
        self.client = Connection(endpoint=sink.bigquery_endpoint, storage_endpoint=sink.bigquery_storage_endpoint).open().rest
        self.query = f"SELECT n FROM `{bigquery.PROJECT}.{sink.table}`"

    def __call__(self) -> np.ndarray:
        try:
            return np.array([row["n"] for row in self.client.query_and_wait(self.query)], np.int64)
        except NotFound:  # the first commit makes the table
            return np.empty(0, np.int64)


@contextmanager
def of_bigquery(folder: Path, servers: str) -> Iterator[WriteToBigQuery]:
    with bigquery.obtain().cluster(folder / "bigquery") as emulator:
        Connection(endpoint=emulator.rest, storage_endpoint=emulator.storage).open().rest.create_dataset("kills")
        places = {"bigquery_endpoint": emulator.rest, "bigquery_storage_endpoint": emulator.storage}
        yield WriteToBigQuery("kills.numbers", project=bigquery.PROJECT, commit_secs=1, **places)


@dataclass(frozen=True)
class Case:
    """A sink, with what it needs while it is used, how to read it, and the step that publishes where it is not ours."""

    made: Callable[[Path, str], AbstractContextManager[Any]]
    reader: Callable[[Any], Callable[[], np.ndarray]]
    publishing: type | None = None


CASES = {
    "parquet": Case(of_parquet, InParquet),
    "duckdb": Case(of_duckdb, InDuckDB),
    "kafka": Case(of_kafka, InKafka),
    "bigquery": Case(of_bigquery, InBigQuery),
    "published when the bundle ends": Case(of_parquet, InParquet, WhenTheBundleEndsFn),
    "published at the first message": Case(of_parquet, InParquet, AtFirstMessageFn),
}
OURS = ("parquet", "duckdb", "kafka", "bigquery")


class Numbers:
    """Sends the numbers 0, 1, 2, … to a topic, evenly, until it is stopped."""

    def __init__(self, servers: str, topic: str, per_second: int):
        admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
        settings = {"bootstrap.servers": servers, "log_level": 0, "enable.idempotence": True, "linger.ms": 10, "message.timeout.ms": 0}
        self.producer = confluent_kafka.Producer(settings)
        self.topic, self.per_second = topic, per_second
        self.sent = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._send, name="numbers", daemon=True)
        self.thread.start()

    def _send(self) -> None:
        began = time.monotonic()
        while not self.stopped.is_set():
            due = int((time.monotonic() - began) * self.per_second)
            while self.sent < due:
                try:
                    self.producer.produce(self.topic, b'{"n":%d}' % self.sent, partition=self.sent % PARTITIONS)
                except BufferError:
                    self.producer.poll(0.1)
                    continue
                self.sent += 1
            self.producer.poll(0)
            self.stopped.wait(0.01)

    def stop(self) -> int:
        """Ends, and says how many numbers have arrived."""
        self.stopped.set()
        self.thread.join()
        assert self.producer.flush(120) == 0, "the broker did not take all numbers"
        return self.sent


@dataclass
class Trial:
    """A job that runs, and everything that can go wrong with it."""

    flink: Any
    broker: Any
    folder: Path
    case: Case
    numbers: Numbers
    chance: random.Random
    sink: Any
    visible: Callable[[], np.ndarray]
    """The numbers at the destination."""
    job: str = ""
    parallelism: int = 4
    begun: float = field(default_factory=time.monotonic)

    def submit(self) -> None:
        flags = self.flink.flags(parallelism=self.parallelism, checkpoint_ms=EVERY_MS)
        if self.case.publishing:
            flags.append("--max_bundle_time_mills=20")  # more bundles end while a checkpoint is on its way
        before = commits._PublishFn
        commits._PublishFn = self.case.publishing or before  # type: ignore[misc]
        try:
            p = beam.Pipeline(options=PipelineOptions(flags))
            with Delivery(p, str(self.folder / "rejected"), run_id="kills"):
                p | ReadFromKafka(self.broker.servers, (self.numbers.topic,), schema="n bigint") | self.sink
            p.run()
        finally:
            commits._PublishFn = before  # type: ignore[misc]
        self.job = next(iter(self.flink.rest.jobs()))

    def published(self) -> int:
        """Tells, as fast as can be, whether something was published."""
        log = self.folder / "parquet" / "_manifest"
        return len(list(log.iterdir())) if log.exists() else len(self.visible())

    def await_visible(self, numbers: int, secs: float = HEAL_SECS) -> None:
        """Waits until all numbers below one are visible."""
        until = time.monotonic() + secs
        while True:
            found = self.visible()
            missing = numbers - len(np.unique(found[found < numbers]))
            if not missing:
                return
            if time.monotonic() > until:
                raise TimeoutError(self._diagnosis(np.setdiff1d(np.arange(numbers), found), secs))
            time.sleep(0.25)

    def _diagnosis(self, missing: np.ndarray, secs: float) -> str:
        """What can be said of rows that do not come: were they ever sent, where is the job, what do its workers say."""
        source = ReadFromKafka(self.broker.servers, (self.numbers.topic,), schema="n bigint", until="latest").source()
        sent = np.concatenate([part.column("n").to_numpy() for part in source.read_all() if isinstance(part, RowBatch)])
        waiting = (path for path in self.folder.rglob("*") if "staging" in str(path) and path.is_file())
        staged = sorted(str(path.relative_to(self.folder)) for path in waiting)
        words = [line for line in (self.flink.folder / "workers.log").read_text(errors="replace").splitlines() if "Error" in line]
        return (
            f"{len(missing)} rows are not visible after {secs} s, from {missing[0]} to {missing[-1]}, of partitions "
            f"{np.unique(missing % PARTITIONS).tolist()}; {len(np.setdiff1d(missing, sent))} of them never came to their topic; "
            f"the job is {self.flink.rest.state(self.job)}; staged: {staged[-5:]}; last words: {words[-5:]}"
        )

    # ---- faults

    def kill_taskmanager(self) -> str:
        server = self.chance.choice(self.flink.taskmanagers)
        server.kill()
        self.flink.restart(server)
        return f"{server.name} killed with its workers"

    def kill_java_alone(self) -> str:
        """The workers are left behind, and have to find out by themselves."""
        server = self.chance.choice(self.flink.taskmanagers)
        workers = server.workers()
        server.kill_java()
        time.sleep(self.chance.uniform(0, 1))
        self.flink.restart(server)
        return f"{server.name} killed, {len(workers)} workers orphaned"

    def kill_worker(self) -> str:
        server = self.chance.choice([server for server in self.flink.taskmanagers if server.workers()])
        return f"{len(server.kill_workers())} workers of {server.name} killed"

    def freeze(self, secs: float) -> str:
        server = self.chance.choice(self.flink.taskmanagers)
        server.freeze()
        time.sleep(secs)
        server.thaw()
        return f"{server.name} frozen for {secs:.1f} s"

    def freeze_shortly(self) -> str:
        return self.freeze(self.chance.uniform(1, 4))

    def freeze_for_long(self) -> str:
        return self.freeze(self.chance.uniform(8, 11))  # more than a heartbeat's timeout: it is given up, and comes back

    def kill_broker(self) -> str:
        self.broker.brokers[0].kill()
        time.sleep(self.chance.uniform(0, 3))
        self.broker.brokers[0].restart()
        return "the broker killed"

    def kill_jobmanager(self) -> str:
        self.flink.jobmanager.kill()
        self.flink.restart(self.flink.jobmanager)
        found = (self.flink.folder / "checkpoints" / self.job).glob("chk-*/_metadata")
        last = max(found, key=lambda path: int(path.parent.name.removeprefix("chk-"))).parent
        self.job = self.flink.rest.run_jar(self.flink.rest.jars()[0], savepoint=last.as_uri(), parallelism=self.parallelism)
        return f"the JobManager killed, the job run again from {last.name}"

    def stop_and_resume(self) -> str:
        place = self.flink.rest.stop(self.job, (self.flink.folder / "savepoints").as_uri())
        self.flink.rest.await_state(self.job)
        self.parallelism = 6 - self.parallelism
        self.job = self.flink.rest.run_jar(self.flink.rest.jars()[0], savepoint=place, parallelism=self.parallelism)
        return f"stopped with a savepoint, resumed with parallelism {self.parallelism}"

    def kill_behind_a_publication(self) -> str:
        """All TaskManagers, in the moment in which rows become visible; some were staged before the checkpoint was complete."""
        with self.slow_checkpoint():
            before, until = self.published(), time.monotonic() + 60
        while self.published() == before and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(self.chance.uniform(0, 0.3))  # one publication is rarely alone
        for server in self.flink.taskmanagers:
            server.kill_java()
            server.kill_workers()
        for server in self.flink.taskmanagers:
            server.kill()
        for server in self.flink.taskmanagers:
            self.flink.restart(server)
        return "all TaskManagers killed right behind a publication"

    @contextmanager
    def slow_checkpoint(self) -> Iterator[None]:
        """Stops the JobManager for 1.5 s between the beginning of a checkpoint and its completion: all tasks go on meanwhile."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            last = max(self._checkpoints(), default=0)
            while (begun := max(self._checkpoints(), default=0)) == last and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(0.02)  # by now the tasks know of it
            self.flink.jobmanager.freeze()
            try:
                if not (self._folder_of(begun) / "_metadata").exists():
                    time.sleep(1.5)
                    yield
                    return
            finally:
                self.flink.jobmanager.thaw()
        raise TimeoutError("no checkpoint was caught before it was complete")

    def _folder_of(self, checkpoint: int) -> Path:
        return self.flink.folder / "checkpoints" / self.job / f"chk-{checkpoint}"

    def _checkpoints(self) -> list[int]:
        """Those begun, as far as they are kept: Flink makes their folders first."""
        return [int(path.name.removeprefix("chk-")) for path in self._folder_of(0).parent.glob("chk-*")]


FAULTS = (
    "kill_taskmanager",
    "kill_java_alone",
    "kill_worker",
    "freeze_shortly",
    "freeze_for_long",
    "kill_broker",
    "kill_jobmanager",
    "stop_and_resume",
    "kill_behind_a_publication",
)


@dataclass(frozen=True)
class Count:
    """What came of a trial."""

    sent: int
    missing: int
    doubled: int


@contextmanager
def running(name: str, folder: Path, seed: int, per_second: int = 2_000) -> Iterator[Trial]:
    """A job from Kafka to a sink on a cluster of its own."""
    chance = random.Random(f"{name} {seed}")
    case = CASES[name]
    with (
        kafka.obtain().cluster(folder / "kafka") as broker,
        flink.obtain().cluster(taskmanagers=2, slots=4) as cluster,
        case.made(folder, broker.servers) as sink,
    ):
        numbers = Numbers(broker.servers, "numbers", per_second)
        trial = Trial(cluster, broker, folder, case, numbers, chance, sink, case.reader(sink))
        try:
            trial.submit()
            cluster.rest.await_checkpoints(trial.job, 1, secs=180)
            trial.await_visible(1)
            yield trial
        finally:
            numbers.stopped.set()
            with suppress(Exception):
                cluster.rest.cancel(trial.job)


def rounds(trial: Trial, faults: list[str], say: Callable[[str], None], secs: float = HEAL_SECS, brave: bool = False) -> Count:
    """One fault after the other, each healed within so many seconds; then all that was sent is counted.

    The brave, who expect the worst, end with the first round that doubles rows, and with one that is not healed; others raise TimeoutError.
    """
    for number, fault in enumerate(faults, 1):
        time.sleep(trial.chance.uniform(0, 2 * EVERY_MS / 1000))
        began = time.monotonic()
        told = getattr(trial, fault)()
        try:
            trial.await_visible(trial.numbers.sent, secs)
        except TimeoutError as e:
            if not brave:
                raise
            say(f"  {number:>3}  {told:<62} {e}")
            break
        say(f"  {number:>3}  {told:<62} healed in {time.monotonic() - began:5.1f} s, {trial.numbers.sent:,} rows sent")
        if brave and len(found := trial.visible()) > len(np.unique(found)):
            break
    sent = trial.numbers.stop()
    with suppress(TimeoutError):
        trial.await_visible(sent, secs)
    found, more = trial.visible(), trial.visible()
    while len(more) > len(found):
        found, more = more, trial.visible()
    return Count(sent, sent - len(np.unique(found)), len(found) - len(np.unique(found)))


def chosen(chance: random.Random, count: int) -> list[str]:
    """Every fault as often as the others, in an order of their own."""
    faults = [FAULTS[i % len(FAULTS)] for i in range(count)]
    chance.shuffle(faults)
    return faults


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinks", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--faults", help="these, in this order, instead of any")
    parser.add_argument("--per_second", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args(argv)
    print(f"seed {asked.seed}", flush=True)
    good = True
    for name in asked.sinks.split(","):
        ours = name in OURS
        print(f"\n{name}", flush=True)
        place = tempfile.TemporaryDirectory(prefix="tiebeam-kills-")
        with place as folder, running(name, Path(folder), asked.seed, asked.per_second) as trial:
            simple = ["kill_behind_a_publication"] * asked.rounds  # until one doubles rows
            faults = asked.faults.split(",") if asked.faults else chosen(trial.chance, asked.rounds) if ours else simple
            count = rounds(trial, faults, lambda line: print(line, flush=True), brave=not ours)
        good &= (count.missing == count.doubled == 0) if ours else count.missing + count.doubled > 0
        print(f"       {count.sent:,} rows sent: missing {count.missing:,}, doubled {count.doubled:,}", flush=True)
    print("\nAs it should be." if good else "\nNOT AS IT SHOULD BE", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
