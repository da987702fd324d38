"""`ingest` from Pub/Sub on the command line: to its end, drained, and killed in the middle and run again; nothing is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiebeam import cli
from tiebeam.io._manifest import committed_files
from tiebeam.io._pubsub_client import Connection

PROJECT = "projects/beam-proj"


class Sender:
    """Sends numbered messages, one in fifty of them broken, until it is told to end."""

    def __init__(self, server):
        name = f"t-{uuid.uuid4().hex[:12]}"
        self.topic, self.subscription = f"{PROJECT}/topics/{name}", f"{PROJECT}/subscriptions/{name}"
        connection = Connection(server.address)
        self.publisher, self.subscriber = connection.publisher(), connection.subscriber()
        self.publisher.create_topic(name=self.topic)
        self.subscriber.create_subscription(name=self.subscription, topic=self.topic, ack_deadline_seconds=10)
        self.sent: list[int] = []
        self.broken: list[bytes] = []
        self.over = threading.Event()

    def send(self, count: int) -> None:
        first = len(self.sent) + len(self.broken)
        values = [f'{{"id": {n}}}' if n % 50 else f'{{"id": {n}' for n in range(first, first + count)]
        self.publisher.publish(topic=self.topic, messages=[{"data": v.encode()} for v in values], timeout=60)
        self.sent += [n for n in range(first, first + count) if n % 50]
        self.broken += [v.encode() for v in values if not v.endswith("}")]

    @contextmanager
    def sending(self):
        def run():
            while not self.over.wait(0.4):
                self.send(20)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join(60)

    def left(self, secs: float, wanted: int | None = None) -> list[Any]:
        """What the subscription still delivers within so long, or until so many are there."""
        found: dict[str, Any] = {}
        until = time.monotonic() + secs
        while time.monotonic() < until and (wanted is None or len(found) < wanted):
            asked = {"subscription": self.subscription, "max_messages": 1000, "return_immediately": True}
            for received in self.subscriber.pull(request=asked, timeout=20).received_messages:
                found.setdefault(received.message.message_id, received.message)
            time.sleep(0.2)
        return list(found.values())


@pytest.fixture
def sender(pubsub):
    sender = Sender(pubsub)
    sender.send(200)
    return sender


def flags(sender: Sender, pubsub, *more: str) -> list[str]:
    reading = ["--source=pubsub", f"--source_subscription={sender.subscription}", f"--source_pubsub_endpoint={pubsub.address}"]
    return ["run", "ingest", *reading, "--source_deadline_secs=10", "--source_schema=id bigint", "--json", *more]


def start(argv: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tiebeam", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
    )


def await_(there, process: subprocess.Popen, secs: float = 500) -> None:
    until = time.monotonic() + secs
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.3)


def drained(process: subprocess.Popen) -> dict[str, Any]:
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "draining" in err
    return json.loads(out)


def in_parquet(folder: Path) -> list[tuple[int, str]]:
    files = committed_files(str(folder / "out")) or []
    tables = [pq.ParquetFile(file).read(columns=["id", "row_position"]) for file in files]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    return [(row["id"], row["row_position"]) for row in rows]


def in_duckdb(folder: Path) -> list[tuple[int, str]]:
    """Of a copy: who reads the database itself keeps the job out of it."""
    copy = folder / "copy.duckdb"
    try:
        for end in ("", ".wal"):
            Path(f"{copy}{end}").unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                shutil.copy(folder / f"out.duckdb{end}", f"{copy}{end}")
        if not copy.exists():
            return []
        with duckdb.connect(str(copy)) as db:
            return db.execute("select id, row_position from rows").fetchall()
    except duckdb.Error:
        return []  # copied while it was being written, or before the first commit


def test_a_bounded_job_reads_until_the_subscription_is_empty_and_acknowledges_what_it_has_published(sender, pubsub, tmp_path, capsys):
    argv = flags(sender, pubsub, "--source_until=empty", "--source_quiet_secs=2", "--sink=parquet", f"--sink_path={tmp_path}/out")
    assert cli.main([*argv, "--runner=FnApiRunner"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["read"], told["accepted"], told["rejected"]) == (200, len(sender.sent), len(sender.broken))
    assert sorted(n for n, _ in in_parquet(tmp_path)) == sender.sent
    assert sender.left(12) == []


def test_a_job_that_is_drained_leaves_in_the_subscription_what_it_has_not_read(sender, pubsub, prism, tmp_path):
    process = start(flags(sender, pubsub, "--sink=parquet", f"--sink_path={tmp_path}/out", "--sink_commit_secs=1"), tmp_path)
    try:
        with sender.sending():
            await_(lambda: len(in_parquet(tmp_path)) > 250, process)
            told = drained(process)
    finally:
        process.kill()
    published = [n for n, _ in in_parquet(tmp_path)]
    assert told["read"] == told["accepted"] + told["rejected"]
    assert len(published) == len(set(published)) == told["accepted"]
    left = sender.left(240, wanted=len(sender.sent) + len(sender.broken) - told["read"])
    ids = [json.loads(m.data)["id"] for m in left if m.data.endswith(b"}")]
    assert sorted(published + ids) == sender.sent, "each is published, or left for the next"
    kept = [line for file in (tmp_path / "out.rejected").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(kept) == told["rejected"] == len(sender.broken) - (len(left) - len(ids))


@pytest.mark.parametrize(
    ("sink", "rows_of"),
    [
        (["--sink=parquet", "--sink_path=out"], in_parquet),
        (["--sink=duckdb", "--sink_path=out.duckdb", "--sink_table=rows", "--sink_mode=upsert", "--sink_key=row_position"], in_duckdb),
    ],
    ids=["parquet", "duckdb"],
)
def test_a_job_that_is_killed_and_run_again_misses_nothing(sender, pubsub, prism, tmp_path, sink, rows_of):
    """Prism keeps nothing: what a killed job had published comes again, under the positions that it had. A sink with a key knows it."""
    argv = flags(sender, pubsub, *sink, "--sink_commit_secs=1", "--dead_letters=rejected")
    first = start(argv, tmp_path)
    try:
        with sender.sending():
            await_(lambda: len(rows_of(tmp_path)) > 250, first)
            os.killpg(first.pid, signal.SIGKILL)
            first.wait(60)
            sender.send(100)
    finally:
        first.kill()
    assert len(rows_of(tmp_path)) > 250
    second = start(argv, tmp_path)
    try:
        await_(lambda: {n for n, _ in rows_of(tmp_path)} == set(sender.sent), second)
        drained(second)
    finally:
        second.kill()
    rows = rows_of(tmp_path)
    assert {n for n, _ in rows} == set(sender.sent), "missing: 0"
    assert len({position for _, position in rows}) == len(sender.sent), "each message has the position that it had"
    if sink[0] == "--sink=duckdb":
        assert len(rows) == len(sender.sent), "doubled: 0"
    letters = [json.loads(line) for file in (tmp_path / "rejected").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len({letter["row_position"] for letter in letters}) == len(sender.broken)
    assert sender.left(12) == []
