"""Kafka in trouble, with real brokers that are killed: nothing lost, nothing doubled, and silence is not taken for the end."""

from __future__ import annotations

import io
import json
import threading
import time
import uuid
from decimal import Decimal
from typing import Any

import confluent_kafka
import fastavro
import pytest
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from support import registry, services
from tiebeam.dead_letters import Letters
from tiebeam.errors import BadFileError, ConfigError, TransientError
from tiebeam.io import _endless, _kafka_reader, _schema_registry
from tiebeam.io._endless import Progress, _Adapted
from tiebeam.io.kafka import ReadFromKafka, WriteToKafka
from tiebeam.rows import RowBatch

PATIENCE = 60


@pytest.fixture(scope="module")
def brokers(tmp_path_factory):
    """Three brokers that keep every row twice more; tests kill them and start them again."""
    with services.obtain("kafka").cluster(tmp_path_factory.mktemp("three"), brokers=3) as cluster:
        if not cluster.brokers:
            pytest.skip("the brokers given cannot be killed")
        yield cluster


@pytest.fixture
def topic(brokers):
    name = f"t-{uuid.uuid4().hex[:10]}"
    create(brokers, name, 3, copies=3)
    return name


def create(cluster, name: str, partitions: int, copies: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.servers, "log_level": 0})
    until = time.monotonic() + PATIENCE
    while True:
        try:
            admin.create_topics([NewTopic(name, partitions, copies)])[name].result(30)
            return
        except confluent_kafka.KafkaException:  # a broker that was killed is not back in its place yet
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def send(cluster, topic: str, *numbers: int, partition: int | None = None) -> None:
    settings = {"bootstrap.servers": cluster.servers, "log_level": 0, "enable.idempotence": True}
    sending = confluent_kafka.Producer(settings)
    for n in numbers:
        sending.produce(topic, b'{"id":%d}' % n, partition=n % 3 if partition is None else partition)
    assert sending.flush(PATIENCE) == 0


def reading(cluster, topic: str, **options: Any) -> _kafka_reader.TopicReader:
    source = ReadFromKafka(cluster.servers, (topic,), schema="id bigint", **options).source()
    reader = source.reader(names := source.partitions())
    reader.seek(dict.fromkeys(names))
    return reader


def take(reader: _kafka_reader.TopicReader, count: int) -> list[int]:
    """So many rows, or as many as come."""
    found: list[int] = []
    until = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < until:
        if (piece := reader.poll(list(reader.parts))) is not None:
            found += [n for rows in piece.rows for n in rows.column("id").to_pylist()]
    return found


def test_a_killed_broker_is_waited_for_and_its_silence_is_not_the_end(brokers, topic):
    numbers = range(3_000)
    send(brokers, topic, *numbers[:1_500])
    reader = reading(brokers, topic)
    found = take(reader, 1_500)
    for broker in brokers.brokers:
        broker.kill()
    quiet_until = time.monotonic() + 3
    while time.monotonic() < quiet_until:
        assert reader.poll(list(reader.parts)) is None
        states = {reader.progress(name) for name in reader.parts}
        if states == {Progress.BEHIND}:
            break
    assert states == {Progress.BEHIND}
    for broker in brokers.brokers:
        broker.launch()
    for broker in brokers.brokers:
        broker.await_ready()
    send(brokers, topic, *numbers[1_500:])
    found += take(reader, 1_500)
    reader.close()
    assert sorted(found) == list(numbers)


def test_one_dead_broker_of_three_stops_neither_reading_nor_writing(brokers, topic, tmp_path):
    send(brokers, topic, *range(300))
    brokers.brokers[1].kill()
    try:
        reader = reading(brokers, topic)
        assert sorted(take(reader, 300)) == list(range(300))
        reader.close()
        out = f"{topic}-out"
        writing = WriteToKafka(brokers.servers, out, staging=str(tmp_path), ledger=f"{topic}-ledger")
        writer = writing.writer("c")
        list(writer.write(RowBatch.from_pydict({"id": list(range(100))})) or ())
        assert writing.publish("c", writer.close()) is True
        assert writing.publish("c", []) is False
        assert sorted(take(reading(brokers, out), 100)) == list(range(100))
    finally:
        brokers.brokers[1].restart()


def test_a_broker_killed_while_a_commit_is_sent(brokers, topic, tmp_path):
    """However far the transaction was: after as many tries as it takes the rows are there once."""
    writing = WriteToKafka(brokers.servers, topic, staging=str(tmp_path), ledger=f"{topic}-ledger")
    writer = writing.writer("c")
    rows = 60_000
    list(writer.write(RowBatch.from_pydict({"id": list(range(rows)), "pad": ["x" * 200] * rows})) or ())
    pieces = writer.close()
    killer = threading.Timer(0.4, brokers.brokers[0].kill)
    killer.start()
    until = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < until:
        try:
            writing.publish("c", pieces)
            break
        except TransientError:
            if not brokers.brokers[0].program.runs:
                brokers.brokers[0].restart()
    killer.join()
    if not brokers.brokers[0].program.runs:
        brokers.brokers[0].restart()
    assert writing.publish("c", pieces) is False
    found = take(reading(brokers, topic), rows)
    assert sorted(found) == list(range(rows))


def test_partitions_that_are_added_are_found_while_reading(kafka, monkeypatch):
    monkeypatch.setattr(_kafka_reader, "NEW_SECS", 0.5)
    name = f"grows-{uuid.uuid4().hex[:8]}"
    create(kafka, name, 1)
    send(kafka, name, 1, partition=0)
    source = ReadFromKafka(kafka.servers, (name,), schema="id bigint").source()
    reader = _Adapted(source, whole=True).create_reader(None, None)
    admin = AdminClient({"bootstrap.servers": kafka.servers, "log_level": 0})
    admin.create_partitions([NewPartitions(name, 3)])[name].result(30)
    send(kafka, name, 2, partition=1)
    send(kafka, name, 3, partition=2)
    found, until = [], time.monotonic() + PATIENCE
    while len(found) < 3 and time.monotonic() < until:
        if reader.advance():
            found += [n for rows in reader.get_current().results for n in rows.column("id").to_pylist()]
    assert sorted(found) == [1, 2, 3]
    assert set(reader.get_checkpoint_mark().places) == {f"{name}/{i}" for i in range(3)}


def watermark(reader, ready) -> Timestamp:
    until = time.monotonic() + PATIENCE
    while not ready(reader.get_watermark()) and time.monotonic() < until:
        reader.advance()
    return reader.get_watermark()


def test_idle_partitions_follow_the_clock_and_one_ahead_of_time_makes_nobody_late(kafka):
    """Of 64 partitions 62 have never had a message; the clock of one is three days ahead."""
    name = f"idle-{uuid.uuid4().hex[:8]}"
    create(kafka, name, 64)
    now = int(time.time() * 1000)
    sending = confluent_kafka.Producer({"bootstrap.servers": kafka.servers, "log_level": 0})
    sending.produce(name, b'{"id":1}', partition=0, timestamp=now + 3 * 24 * 3600 * 1000)
    sending.produce(name, b'{"id":2}', partition=63, timestamp=now - 10_000)
    assert sending.flush(30) == 0
    source = ReadFromKafka(kafka.servers, (name,), schema="id bigint", disorder_secs=0, lag_secs=2).source()
    reader = _Adapted(source, whole=True).create_reader(None, None)
    reached = watermark(reader, lambda mark: mark > MIN_TIMESTAMP and mark.micros / 1e6 > time.time() - 4)
    behind = time.time() - reached.micros / 1e6
    assert 1.9 < behind < 5
    reader.close()


def test_reading_resumes_from_its_mark_in_another_process(kafka, monkeypatch):
    name = f"resume-{uuid.uuid4().hex[:8]}"
    create(kafka, name, 2)
    send(kafka, name, *range(0, 200, 2), partition=0)
    send(kafka, name, *range(1, 200, 2), partition=1)
    source = ReadFromKafka(kafka.servers, (name,), schema="id bigint").source()
    adapted = _Adapted(source, whole=True)
    first, found = adapted.create_reader(None, None), []
    while not found:
        if first.advance():
            found += [n for rows in first.get_current().results for n in rows.column("id").to_pylist()]
    coder = adapted.get_checkpoint_mark_coder()
    mark = coder.decode(coder.encode(first.get_checkpoint_mark()))
    monkeypatch.setattr(_endless, "POOL", _endless._Pool())
    second = adapted.create_reader(None, mark)
    until = time.monotonic() + PATIENCE
    while len(found) < 200 and time.monotonic() < until:
        if second.advance():
            found += [n for rows in second.get_current().results for n in rows.column("id").to_pylist()]
    assert sorted(found) == list(range(200))


def test_consumers_of_the_same_group_that_come_and_go_take_no_row_and_give_none(kafka):
    """Whoever joins the group makes it share out its partitions anew; what we read is not shared."""
    name, group = f"shared-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    create(kafka, name, 3)
    numbers = range(4_500)
    stopped, taken = threading.Event(), []

    def come_and_go() -> None:
        while not stopped.is_set():
            settings = {"bootstrap.servers": kafka.servers, "group.id": group, "log_level": 0, "auto.offset.reset": "earliest"}
            other = confluent_kafka.Consumer(settings)
            other.subscribe([name])
            until = time.monotonic() + 4
            while time.monotonic() < until and not stopped.is_set():
                taken.extend(message for message in other.consume(100, 0.1) if message.error() is None)
            other.close()

    strangers = [threading.Thread(target=come_and_go) for _ in range(2)]
    for stranger in strangers:
        stranger.start()
    try:
        reader, found = reading(kafka, name, group=group), []
        until = time.monotonic() + 3 * PATIENCE
        for part in range(3):
            send(kafka, name, *numbers[part * 1_500 : (part + 1) * 1_500])
            while len(found) < (part + 1) * 1_500 and time.monotonic() < until:
                if (piece := reader.poll(list(reader.parts))) is not None:
                    found += [n for rows in piece.rows for n in rows.column("id").to_pylist()]
                    reader.commit({piece.partition: piece.position})
            while not taken and time.monotonic() < until:
                time.sleep(0.05)
        reader.close()
    finally:
        stopped.set()
        for stranger in strangers:
            stranger.join()
    assert sorted(found) == list(numbers)
    assert taken, "the strangers were members"


@pytest.mark.parametrize(("compression", "checked"), [("none", True), ("lz4", True), ("lz4", False)])
def test_a_damaged_batch_stops_the_reading_and_none_of_it_is_a_row(kafka, compression, checked):
    """Bytes are changed on the disk of the broker, below what it looks at."""
    if not kafka.brokers:
        pytest.skip("the disk of the brokers given is not here")
    name = f"damaged-{uuid.uuid4().hex[:8]}"
    create(kafka, name, 1)
    for n in range(3):
        sending = confluent_kafka.Producer({"bootstrap.servers": kafka.servers, "log_level": 0, "compression.type": compression})
        sending.produce(name, b'{"id":%d,"pad":"%s"}' % (n, bytes(range(97, 123)) * 40), partition=0)
        assert sending.flush(PATIENCE) == 0
    (segment,) = (kafka.brokers[0].home / "data" / f"{name}-0").glob("*.log")
    with segment.open("r+b") as file:
        size = 12 + int.from_bytes(file.read(12)[8:], "big")  # of the first batch
        where = size + 61 + 12  # behind the header of the second
        file.seek(where)
        damage = bytes(byte ^ 0xFF for byte in file.read(24))
        file.seek(where)
        file.write(damage)
    more = () if checked else ("check.crcs=false",)
    reader, found = reading(kafka, name, client_config=more), []
    with pytest.raises(BadFileError, match=rf"{name}/0: a batch of messages .* is damaged.*start={name}/0:OFFSET"):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if (piece := reader.poll(list(reader.parts))) is not None:
                found += [n for rows in piece.rows for n in rows.column("id").to_pylist()]
    reader.close()
    assert found in ([], [0])
    rows, refused = all_of(kafka, name, start=f"{name}/0:2", schema="id bigint")
    assert [row["id"] for row in rows] == [2]
    assert not refused


# Schema registries.

ONE = {"type": "record", "name": "R", "fields": [{"name": "id", "type": "long"}]}
TWO = {
    "type": "record",
    "name": "R",
    "fields": [{"name": "id", "type": "long"}, {"name": "shop", "type": ["null", "string"], "default": None}],
}


def framed(schema: Any, number: int, row: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, row)
    return _schema_registry.framed(number, out.getvalue())


@pytest.fixture
def messages(kafka):
    """A topic, and a way to send values to it."""
    name = f"avro-{uuid.uuid4().hex[:8]}"
    create(kafka, name, 1)

    def fill(*values: bytes) -> str:
        sending = confluent_kafka.Producer({"bootstrap.servers": kafka.servers, "log_level": 0})
        for value in values:
            sending.produce(name, value, partition=0)
        assert sending.flush(30) == 0
        return name

    return fill


def all_of(kafka, topic: str, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    parts = list(ReadFromKafka(kafka.servers, (topic,), until="latest", **options).source().read_all())
    rows = [row for part in parts if isinstance(part, RowBatch) for row in part.to_pylist()]
    return rows, [row for part in parts if isinstance(part, Letters) for row in part.batch.to_pylist()]


def test_schemas_that_change_while_running_and_numbers_that_nobody_knows(kafka, messages):
    with registry.running() as schemas:
        one, two = schemas.register("s-value", ONE), schemas.register("s-value", TWO)
        topic = messages(
            framed(ONE, one, {"id": 1}),
            framed(TWO, two, {"id": 2, "shop": "a"}),
            framed(ONE, one, {"id": 3}),
            framed(ONE, 99, {"id": 4}),
            b"\x07 no frame",
        )
        rows, refused = all_of(kafka, topic, format="avro", schema_registry=schemas.url)
        assert [(row["id"], row.get("shop")) for row in sorted(rows, key=lambda row: row["id"])] == [(1, None), (2, "a"), (3, None)]
        assert sorted((r["reason"], r["row_position"]) for r in refused) == [
            ("no_schema_id", f"{topic}/0/4"),
            ("unknown_schema", f"{topic}/0/3"),
        ]
        assert schemas.asked == 3  # each number once


def test_a_registry_that_is_down_is_waited_for(kafka, messages, monkeypatch):
    with registry.running() as schemas:
        topic = messages(framed(ONE, schemas.register("s-value", ONE), {"id": 1}))
        before = schemas.asked
        schemas.down.set()

        def back() -> None:
            while schemas.asked < before + 2:  # refused twice
                time.sleep(0.01)
            schemas.down.clear()

        threading.Thread(target=back, daemon=True).start()
        assert [row["id"] for row in all_of(kafka, topic, format="avro", schema_registry=schemas.url)[0]] == [1]
        assert schemas.asked >= before + 3


def test_a_registry_that_stays_away_stops_the_job_and_loses_nothing(kafka, messages, monkeypatch):
    monkeypatch.setattr(_schema_registry, "TRIES", 2)
    with registry.running() as schemas:
        topic = messages(framed(ONE, schemas.register("s-value", ONE), {"id": 1}))
        schemas.password = "right"
        with pytest.raises(TransientError, match="401"):
            all_of(kafka, topic, format="avro", schema_registry=schemas.url)


def test_json_in_the_frame_of_a_registry(kafka, messages):
    with registry.running() as schemas:
        topic = messages(_schema_registry.framed(1, json.dumps({"id": 5}).encode()))
        rows, refused = all_of(kafka, topic, schema_registry=schemas.url)
        assert [row["id"] for row in rows] == [5]
        assert not refused


# What a sink registers.


def staged(writing: WriteToKafka, run_id: str, *batches: RowBatch) -> list[Any]:
    writer = writing.writer(run_id)
    for rows in batches:
        assert list(writer.write(rows) or ()) == []
    return writer.close()


def test_avro_is_written_under_the_subject_of_the_topic_and_may_gain_a_column_while_running(kafka, tmp_path):
    name = f"avro-{uuid.uuid4().hex[:8]}"
    with registry.running() as schemas:
        options = dict(format="avro", schema_registry=schemas.url)
        writing = WriteToKafka(kafka.servers, name, staging=str(tmp_path), ledger=f"{name}-ledger", partitions=1, **options)
        writing.ping()
        assert schemas.subjects == {}, "a ping registers nothing"
        one = RowBatch.from_pydict({"id": [2**63 - 1, None], "price": [Decimal("1.10"), None]})
        two = RowBatch.from_pydict({"id": [3], "price": [Decimal("2.20")], "tags": [["a", None]], "row_change": ["update"]})
        gone = RowBatch.from_pydict({"id": [4], "price": [Decimal("3.30")], "row_change": ["delete"]})
        assert writing.publish("c1", staged(writing, "c1", one, two, gone, one.slice(0, 1))) is True
        assert list(schemas.subjects) == [f"{name}-value"]
        assert len(schemas.subjects[f"{name}-value"]) == 2
        rows, refused = all_of(kafka, name, null_values="skip", **options)
        assert [(row["id"], row["price"], row.get("tags")) for row in rows] == [
            (2**63 - 1, Decimal("1.10"), None),
            (None, None, None),
            (2**63 - 1, Decimal("1.10"), None),
            (3, Decimal("2.20"), ["a", None]),
        ]
        assert not refused


def test_a_schema_that_readers_could_not_read_is_told_and_nothing_is_written(kafka, tmp_path):
    name = f"avro-{uuid.uuid4().hex[:8]}"
    with registry.running() as schemas:
        options = dict(format="avro", schema_registry=schemas.url, staging=str(tmp_path), ledger=f"{name}-ledger")
        writing = WriteToKafka(kafka.servers, name, **options)
        staged(writing, "c1", RowBatch.from_pydict({"id": [1]}))
        with pytest.raises(ConfigError, match=rf"does not take the schema of {name}-value.*TYPE_MISMATCH: id"):
            staged(writing, "c2", RowBatch.from_pydict({"id": ["one"]}))
        with pytest.raises(ConfigError, match="column a b"):
            staged(writing, "c3", RowBatch.from_pydict({"a b": [1]}))


def test_a_registry_that_cannot_be_reached_is_told_before_the_run(kafka, messages, tmp_path):
    topic = messages(b"x")
    with registry.running() as schemas:
        schemas.password = "right"
        for url, trouble in ((schemas.url, "401"), ("http://127.0.0.1:1", "refused")):
            options = dict(format="avro", schema_registry=url)
            with pytest.raises(ConfigError, match=trouble):
                ReadFromKafka(kafka.servers, (topic,), **options).ping()
            with pytest.raises(ConfigError, match=trouble):
                WriteToKafka(kafka.servers, topic, staging=str(tmp_path), **options).ping()
