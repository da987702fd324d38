"""`ingest` from Pub/Sub on the command line: to its end, drained, killed and run again, and of rows that change; nothing is missing."""

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
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery as google

from tiebeam import cli
from tiebeam.io import _bigquery_client
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
        self.publish(values)
        self.sent += [n for n in range(first, first + count) if n % 50]
        self.broken += [v.encode() for v in values if not v.endswith("}")]

    def publish(self, values: list[str]) -> None:
        self.publisher.publish(topic=self.topic, messages=[{"data": v.encode()} for v in values], timeout=60)

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


CONTRACT = """\
apiVersion: v3.0.2
kind: DataContract
id: shop
version: 1.0.0
status: active
customProperties: [{{property: new_columns, value: {new_columns}}}]
schema:
  - name: sales
    logicalType: object
    properties:
      - {{name: id, logicalType: integer, required: true}}
      - {{name: word, logicalType: string}}
      - {{name: net, logicalType: {net}}}
"""
CITY = "      - {name: city, logicalType: string}\n"


class Warehouse:
    """A dataset with a table of sales, and the dead letters beside it."""

    def __init__(self):
        self.client = _bigquery_client.Connection(patience_secs=20).open().rest
        self.dataset = f"d_{uuid.uuid4().hex[:12]}"
        self.client.create_dataset(self.dataset)
        columns = [("id", "INTEGER", "REQUIRED"), ("word", "STRING", "REQUIRED"), ("net", "FLOAT", "NULLABLE")]
        fields = [google.SchemaField(*column) for column in columns]
        self.client.create_table(google.Table(f"lab.{self.dataset}.sales", schema=fields))

    def ask(self, sql: str) -> list[dict[str, Any]]:
        return [dict(row) for row in self.client.query_and_wait(sql.format(f"`lab.{self.dataset}.sales`"))]

    def rows(self) -> list[dict[str, Any]]:
        return self.ask("SELECT * FROM {} ORDER BY id")

    def letters(self) -> list[dict[str, Any]]:
        """Dead letters, with the id of the row that each was."""
        if "rejected" not in {table.table_id for table in self.client.list_tables(self.dataset)}:
            return []
        found = [dict(row) for row in self.client.query_and_wait(f"SELECT * FROM `lab.{self.dataset}.rejected`")]
        return [{**letter, "id": self.row_of(letter)["id"]} for letter in found]

    @staticmethod
    def row_of(letter: dict[str, Any]) -> dict[str, Any]:
        if letter["original_format"] == "json":
            return json.loads(letter["original"])
        return pa.ipc.open_stream(letter["original"]).read_all().to_pylist()[0]

    def ids(self) -> list[int]:
        return sorted(row["id"] for row in [*self.rows(), *self.letters()])

    def knows_all(self, count: int) -> bool:
        return set(self.ids()) == set(range(count))

    def modes(self) -> dict[str, str]:
        return {field.name: field.mode for field in self.client.get_table(f"{self.dataset}.sales").schema}


@pytest.mark.parametrize("new_columns", ["evolve", "drop_row"])
def test_rows_that_change_their_shape_in_mid_stream_are_written_or_wait_for_a_mended_contract(
    new_columns, pubsub, bigquery, prism, tmp_path, monkeypatch, capsys
):
    for name, value in bigquery.environment.items():
        monkeypatch.setenv(name, value)
    warehouse, sender, contract = Warehouse(), Sender(pubsub), tmp_path / "c.yaml"
    store = f"--dead_letters=bigquery:{warehouse.dataset}.rejected"
    contract.write_text(CONTRACT.format(new_columns=new_columns, net="number"))
    writing = ["--sink=bigquery", f"--sink_table={warehouse.dataset}.sales", "--sink_commit_secs=1", store]
    process = start(flags(sender, pubsub, f"--contract={contract}", *writing), tmp_path)
    sent: list[str] = []
    try:
        for change in ({}, {"city": "Oslo"}, {"word": None}, {"net": "dear"}):
            told = [{"id": n, "word": "a", "net": n / 4} | (change if n % 2 else {}) for n in range(len(sent), len(sent) + 20)]
            sender.publish([json.dumps(row) for row in told])
            sent += [json.dumps(row) for row in told]
            await_(partial(warehouse.knows_all, len(sent)), process)
        account = drained(process)
    finally:
        process.kill()
    gained, emptied, changed = set(range(21, 40, 2)), set(range(41, 60, 2)), set(range(61, 80, 2))
    rows, letters = {row["id"]: row for row in warehouse.rows()}, warehouse.letters()
    assert warehouse.ids() == list(range(80)), "each is a row or a dead letter"
    assert (account["read"], account["accepted"], account["rejected"]) == (80, len(rows), len(letters))
    assert {letter["id"] for letter in letters if letter["reason"] == "wrong_type"} == changed
    assert all(letter["original"].decode() == sent[letter["id"]] for letter in letters if letter["reason"] == "wrong_type")
    assert {letter["id"] for letter in letters if letter["reason"] == "new_column"} == (gained if new_columns == "drop_row" else set())
    assert {n for n, row in rows.items() if row["word"] is None} == emptied
    assert {n for n, row in rows.items() if row.get("city") == "Oslo"} == (gained if new_columns == "evolve" else set())
    assert (warehouse.modes()["id"], warehouse.modes()["word"]) == ("REQUIRED", "NULLABLE")
    assert warehouse.modes().get("city") == ("NULLABLE" if new_columns == "evolve" else None)

    warehouse.ask("CREATE OR REPLACE TABLE {0} AS SELECT * REPLACE (CAST(net AS STRING) AS net) FROM {0}")
    contract.write_text(CONTRACT.format(new_columns=new_columns, net="string") + CITY)
    assert cli.main(["replay", store]) == 0, capsys.readouterr()
    assert warehouse.letters() == []
    rows = warehouse.rows()
    assert [row["id"] for row in rows] == list(range(80)), "each once"
    assert {row["id"] for row in rows if row["net"] == "dear"} == changed
    assert {row["id"] for row in rows if row["city"] == "Oslo"} == gained
