"""Pub/Sub on a real Flink: what a lost TaskManager had comes again, and nothing is missing or doubled."""

from __future__ import annotations

import json
import time
import uuid

import pyarrow.parquet as pq

from tiebeam import cli
from tiebeam.io._manifest import committed_files
from tiebeam.io._pubsub_client import Connection

PROJECT = "projects/beam-proj"


def published(folder) -> list[int]:
    files = committed_files(str(folder / "out")) or []
    return [n for file in files for n in pq.ParquetFile(file).read(columns=["id"]).column("id").to_pylist()]


def test_a_lost_taskmanager_costs_no_message_and_doubles_none(flink, pubsub, tmp_path):
    name = f"t-{uuid.uuid4().hex[:12]}"
    topic, subscription = f"{PROJECT}/topics/{name}", f"{PROJECT}/subscriptions/{name}"
    connection = Connection(pubsub.address)
    publisher, subscriber = connection.publisher(), connection.subscriber()
    publisher.create_topic(name=topic)
    subscriber.create_subscription(name=subscription, topic=topic, ack_deadline_seconds=10)
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        publisher.publish(topic=topic, messages=[{"data": json.dumps({"id": n}).encode()} for n in range(sent, sent + count)], timeout=60)
        sent += count

    send(200)
    before = set(flink.rest.jobs())
    job = ["run", "ingest", "--source=pubsub", f"--source_subscription={subscription}", f"--source_pubsub_endpoint={pubsub.address}"]
    job += ["--source_schema=id bigint", "--source_deadline_secs=10", "--sink=parquet", f"--sink_path={tmp_path}/out"]
    assert cli.main([*job, "--sink_commit_secs=1", *flink.flags(checkpoint_ms=1000)]) == 0
    (running,) = set(flink.rest.jobs()) - before
    try:
        flink.rest.wait(lambda: len(published(tmp_path)) >= 200, "the first rows", 240)
        for lost in flink.taskmanagers:
            send(150)
            time.sleep(1.0)  # some of them are on their way
            restored = flink.rest.checkpoints(running)["restored"]
            lost.kill()
            send(150)
            flink.restart(lost)
            flink.rest.wait(lambda restored=restored: flink.rest.checkpoints(running)["restored"] > restored, "a restored checkpoint", 240)
        flink.rest.wait(lambda: set(published(tmp_path)) == set(range(sent)), "every message", 400)
        flink.rest.await_checkpoints(running, 3)
        rows = published(tmp_path)
        assert len(rows) == len(set(rows)) == sent, "missing and doubled: 0"
        found = set()
        until = time.monotonic() + 14  # longer than the deadline of what nobody acknowledges
        asked = {"subscription": subscription, "max_messages": 1000, "return_immediately": True}
        while time.monotonic() < until:
            found |= {received.message.message_id for received in subscriber.pull(request=asked, timeout=20).received_messages}
            time.sleep(0.5)
        assert not found, "all is acknowledged"
    finally:
        flink.rest.cancel(running)
