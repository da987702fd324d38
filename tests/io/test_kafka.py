"""Kafka, with a real broker: what is read, where it begins and ends, what is refused, and what is written once."""

from __future__ import annotations

import functools
import io
import json
import time
import uuid
from typing import Any

import confluent_kafka
import fastavro
import pyarrow as pa
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from google.protobuf import message_factory

from tiebeam import commits
from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, TransientError
from tiebeam.io import _kafka_writer, _protobuf
from tiebeam.io._endless import Progress
from tiebeam.io.kafka import ReadFromKafka, WriteToKafka
from tiebeam.rows import RowBatch

AT = 1_767_225_600_000  # 2026-01-01 in milliseconds


@pytest.fixture
def topic(kafka):
    """A topic of three partitions."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    create(kafka, name, 3)
    return name


def create(kafka, name: str, partitions: int = 1, **config: str) -> None:
    admin(kafka).create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(20)


@functools.cache
def admin(kafka) -> AdminClient:
    """One for all: what it promised is void when it is gone."""
    return AdminClient({"bootstrap.servers": kafka.servers, "log_level": 0})


def producer(kafka, **settings: Any) -> confluent_kafka.Producer:
    return confluent_kafka.Producer({"bootstrap.servers": kafka.servers, "log_level": 0, "message.max.bytes": 20_000_000, **settings})


def send(kafka, topic: str, *values: bytes | None, partition: int = 0, **settings: Any) -> None:
    sending = producer(kafka)
    for i, value in enumerate(values):
        sending.produce(topic, value, partition=partition, timestamp=AT + i, **settings)
    assert sending.flush(30) == 0


def lines(*rows: dict[str, Any]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


def source(kafka, topic: str | tuple[str, ...], **options: Any) -> ReadFromKafka:
    return ReadFromKafka(kafka.servers, topic, **{"until": "latest", **options})


def read(reading: ReadFromKafka) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and dead letters."""
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for result in reading.source().read_all():
        if isinstance(result, Letters):
            refused += result.batch.to_pylist()
        else:
            rows += result.to_pylist()
    return rows, refused


def ids(rows: list[dict[str, Any]]) -> list[int]:
    return sorted(row["id"] for row in rows)


# What is read.


def test_rows_have_their_columns_time_and_position_and_bad_ones_are_kept(kafka, topic):
    send(kafka, topic, *lines({"id": 1, "name": "é", "price": 2.5}, {"id": 2, "name": None, "price": 3}), b"{broken", partition=1)
    rows, refused = read(source(kafka, topic))
    assert [(row["id"], row["name"], row["price"], row["row_position"]) for row in rows] == [
        (1, "é", 2.5, f"{topic}/1/0"),
        (2, None, 3.0, f"{topic}/1/1"),
    ]
    assert [row["row_time"].timestamp() * 1000 for row in rows] == [AT, AT + 1]
    (letter,) = refused
    assert (letter["reason"], letter["original"], letter["row_position"], letter["source"]) == (
        "malformed",
        b"{broken",
        f"{topic}/1/2",
        topic,
    )


def test_every_message_of_every_partition_is_read_once(kafka, topic):
    for partition in range(3):
        send(kafka, topic, *lines(*({"id": partition * 10_000 + i} for i in range(5_500))), partition=partition)
    rows, refused = read(source(kafka, topic))
    assert ids(rows) == sorted(partition * 10_000 + i for partition in range(3) for i in range(5_500))
    assert len({row["row_position"] for row in rows}) == len(rows)
    assert not refused


def test_pretty_printed_json_is_one_message(kafka, topic):
    send(kafka, topic, json.dumps({"id": 1, "tags": ["a"]}, indent=2).encode())
    rows, refused = read(source(kafka, topic))
    assert ids(rows) == [1]
    assert not refused


def test_event_times_come_from_a_column_when_asked(kafka, topic):
    send(kafka, topic, *lines({"id": 1, "at": "2026-02-03T04:05:06Z"}, {"id": 2, "at": "soon"}, {"id": 3}))
    rows, refused = read(source(kafka, topic, event_time="at"))
    assert [(row["id"], row["row_time"].isoformat()) for row in rows] == [(1, "2026-02-03T04:05:06+00:00")]
    assert [(r["reason"], r["detail"]) for r in refused] == [
        ("bad_event_time", "at is 'soon', which cannot be read as iso"),
        ("bad_event_time", "at is absent"),
    ]


def test_what_else_a_message_says_becomes_columns(kafka, topic):
    send(kafka, topic, *lines({"id": 1}), partition=2, key="k\xff".encode("latin-1"), headers=[("trace", b"1"), ("trace", b"2")])
    (row,), _ = read(source(kafka, topic, metadata=("key", "headers", "timestamp", "topic", "partition", "offset")))
    assert row["kafka_key"] == "k�"
    assert row["kafka_headers"] == [{"name": "trace", "value": b"1"}, {"name": "trace", "value": b"2"}]
    assert (row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]) == (topic, 2, 0)
    assert row["kafka_timestamp"].timestamp() * 1000 == AT


@pytest.mark.parametrize("how", ["reject", "skip", "delete"])
def test_messages_without_a_value(kafka, topic, how):
    send(kafka, topic, *lines({"id": 1}), key="a")
    send(kafka, topic, None, key="b")
    rows, refused = read(source(kafka, topic, null_values=how, metadata=("key",)))
    assert [row["id"] for row in rows if row["id"]] == [1]
    assert [r["reason"] for r in refused] == (["no_value"] if how == "reject" else [])
    deleted = [(row["kafka_key"], row["row_change"]) for row in rows if row.get("row_change")]
    assert deleted == ([("b", "delete")] if how == "delete" else [])


def test_csv_and_raw_messages(kafka, topic):
    send(kafka, topic, b'1,"a,b"', b"x,y", b"1,a\n2,b")
    rows, refused = read(source(kafka, topic, format="csv", schema="id bigint, name text"))
    assert [(row["id"], row["name"]) for row in rows] == [(1, "a,b")]
    assert sorted(r["reason"] for r in refused) == ["newline", "wrong_type"]
    rows, refused = read(source(kafka, topic, format="raw"))
    assert [row["value"] for row in rows] == [b'1,"a,b"', b"x,y", b"1,a\n2,b"]


def test_avro_messages_are_decoded_one_by_one(kafka, topic):
    schema = {
        "type": "record",
        "name": "R",
        "fields": [{"name": "id", "type": "long"}, {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}}],
    }

    def datum(row: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, schema, row)
        return out.getvalue()

    good = datum({"id": 7, "at": 1_000_000})
    send(kafka, topic, good, good + b"\0", good[:1], datum({"id": 8, "at": 0}))
    rows, refused = read(source(kafka, topic, format="avro", avro_schema=json.dumps(schema), event_time="at"))
    assert [(row["id"], row["row_time"].timestamp()) for row in rows] == [(7, 1.0), (8, 0.0)]
    assert [r["reason"] for r in refused] == ["malformed", "malformed"]


def test_protobuf_messages_of_a_descriptor_file(kafka, topic, tmp_path):
    source_text = """syntax = "proto3"; package shop; import "google/protobuf/timestamp.proto";
      message Sale { int64 id = 1; google.protobuf.Timestamp at = 2; map<string, int32> counts = 3; }"""
    (tmp_path / "shop.desc").write_bytes(_protobuf.compiled(source_text, {}))
    sale: Any = message_factory.GetMessageClass(_protobuf.DescriptorSet((tmp_path / "shop.desc").read_bytes()).named("shop.Sale"))
    send(kafka, topic, sale(id=2**63 - 1, at={"seconds": 1}, counts={"a": -1}).SerializeToString(), b"\x08")
    options = dict(format="protobuf", descriptor_file=str(tmp_path / "shop.desc"), message="shop.Sale", event_time="at")
    source(kafka, topic, **options).ping()
    rows, refused = read(source(kafka, topic, **options))
    assert [(row["id"], row["row_time"].timestamp(), row["counts"]) for row in rows] == [(2**63 - 1, 1.0, [("a", -1)])]
    assert [(r["reason"], r["original"], r["original_format"]) for r in refused] == [("malformed", b"\x08", "protobuf")]


def test_a_message_of_ten_megabytes(kafka):
    name = f"large-{uuid.uuid4().hex[:8]}"
    create(kafka, name, **{"max.message.bytes": "20000000"})
    send(kafka, name, *lines({"id": 1, "pad": "x" * 10_000_000}, {"id": 2, "pad": ""}))
    rows, _ = read(source(kafka, name))
    assert [(row["id"], len(row["pad"])) for row in rows] == [(1, 10_000_000), (2, 0)]


def test_dead_letters_are_parsed_again_as_the_same_messages_are(kafka, topic):
    send(kafka, topic, *lines({"id": 1, "at": "2026-02-03T04:05:06Z"}))
    reading = source(kafka, topic, event_time="at")
    (again,) = reading.decode(lines({"id": 5, "at": "2026-02-03T04:05:07Z"}), [f"{topic}/0/9"], "Read")
    assert isinstance(again, RowBatch)
    (row,) = again.to_pylist()
    assert (row["id"], row["row_position"], row["row_time"].second) == (5, f"{topic}/0/9", 7)


# Where it begins and ends.


def test_a_bounded_input_ends_where_it_was_when_it_was_planned(kafka, topic):
    send(kafka, topic, *lines({"id": 1}, {"id": 2}))
    reading = source(kafka, topic)
    first = reading.source()
    send(kafka, topic, *lines({"id": 3}))
    assert reading.source() == first
    assert ids(read(reading)[0]) == [1, 2]
    assert ids(read(source(kafka, topic))[0]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("start", "until", "expected"),
    [
        ("earliest", "latest", [0, 1, 2, 3, 4, 5]),
        ("{topic}/0:2", "latest", [2, 3, 4, 5]),
        ("earliest", "{topic}/0:4", [0, 1, 2, 3]),
        ("2026-01-01T00:00:00.003Z", "latest", [3, 4, 5]),
        ("earliest", "2026-01-01T00:00:00.002+00:00", [0, 1]),
        ("2030-01-01", "latest", []),
        ("latest", "latest", []),
    ],
)
def test_places_to_begin_and_to_end(kafka, topic, start, until, expected):
    send(kafka, topic, *lines(*({"id": i} for i in range(6))))
    reading = source(kafka, topic, start=start.format(topic=topic), until=until.format(topic=topic), schema="id bigint")
    assert ids(read(reading)[0]) == expected


def test_reading_goes_on_where_the_group_is(kafka, topic):
    send(kafka, topic, *lines(*({"id": i} for i in range(6))))
    group = uuid.uuid4().hex
    member = confluent_kafka.Consumer({"bootstrap.servers": kafka.servers, "group.id": group, "log_level": 0})
    member.commit(offsets=[TopicPartition(topic, 0, 4)], asynchronous=False)
    member.close()
    assert ids(read(source(kafka, topic, start="committed", group=group))[0]) == [4, 5]


def test_a_reader_knows_how_far_it_lags_before_it_has_fetched_anything(kafka, topic):
    send(kafka, topic, *lines(*({"id": n} for n in range(30))))
    reader = source(kafka, topic, schema="id bigint", until=None).source().reader([f"{topic}/0"])
    reader.seek({f"{topic}/0": 10})
    assert reader.lag(f"{topic}/0") == 20
    while reader.progress(f"{topic}/0") is not Progress.CAUGHT_UP:
        reader.poll([f"{topic}/0"])
    assert reader.lag(f"{topic}/0") == 0
    reader.close()


def test_single_partitions_and_patterns(kafka):
    stem = uuid.uuid4().hex[:8]
    for name in ("a", "b"):
        create(kafka, f"{stem}-{name}", 2)
        for partition in range(2):
            send(kafka, f"{stem}-{name}", *lines({"id": partition}), partition=partition)
    positions = [row["row_position"] for row in read(source(kafka, (f"^{stem}-",)))[0]]
    assert sorted(positions) == [f"{stem}-a/0/0", f"{stem}-a/1/0", f"{stem}-b/0/0", f"{stem}-b/1/0"]
    one = ReadFromKafka(kafka.servers, partitions=(f"{stem}-b/1",), until="latest")
    assert [row["row_position"] for row in read(one)[0]] == [f"{stem}-b/1/0"]


def test_aborted_transactions_are_not_read_and_the_end_is_found_behind_their_markers(kafka, topic):
    sending = producer(kafka, **{"transactional.id": uuid.uuid4().hex})
    sending.init_transactions(20)
    for kept, value in ((True, 1), (False, 2), (True, 3), (False, 4)):
        sending.begin_transaction()
        sending.produce(topic, *lines({"id": value}), partition=0)
        sending.flush(20)
        (sending.commit_transaction if kept else sending.abort_transaction)(20)
    assert ids(read(source(kafka, topic))[0]) == [1, 3]
    assert ids(read(source(kafka, topic, isolation="read_uncommitted"))[0]) == [1, 2, 3, 4]


def test_an_open_transaction_is_not_waited_for(kafka, topic):
    send(kafka, topic, *lines({"id": 1}))
    sending = producer(kafka, **{"transactional.id": uuid.uuid4().hex})
    sending.init_transactions(20)
    sending.begin_transaction()
    sending.produce(topic, *lines({"id": 2}), partition=0)
    sending.flush(20)
    assert ids(read(source(kafka, topic))[0]) == [1]
    sending.abort_transaction(20)


# What is refused.


def test_expired_offsets_stop_with_the_way_to_go_on(kafka, topic):
    send(kafka, topic, *lines(*({"id": i} for i in range(6))))
    admin(kafka).delete_records([TopicPartition(topic, 0, 3)])[TopicPartition(topic, 0)].result(20)
    with pytest.raises(ConfigError, match=r"begins at offset 3 now.*1 messages have expired"):
        read(source(kafka, topic, start=f"{topic}/0:2"))
    assert ids(read(source(kafka, topic, start=f"{topic}/0:2", on_offset_out_of_range="earliest"))[0]) == [3, 4, 5]


def test_what_is_wrong_is_said_before_anything_runs(kafka, topic):
    with pytest.raises(ConfigError, match=f"did you mean {topic}"):
        source(kafka, topic + "x").ping()
    with pytest.raises(ConfigError, match=r"no partition .*/9"):
        ReadFromKafka(kafka.servers, partitions=(f"{topic}/9",)).ping()
    with pytest.raises(ConfigError, match="shows what columns there are"):
        source(kafka, topic).sample(5)
    with pytest.raises(ConfigError, match=r"no broker answers: .*refused"):
        ReadFromKafka("127.0.0.1:1", ("x",)).ping()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(servers="nowhere"), "no address of a broker"),
        (dict(topics=()), "give topics or partitions"),
        (dict(topics=("^[",)), "no pattern"),
        (dict(start="yesterday"), "no place in a topic"),
        (dict(until="earliest"), "no place in a topic"),
        (dict(format="csv"), "no header"),
        (dict(format="avro"), "schema_registry or an avro_schema"),
        (dict(format="protobuf"), "schema_registry or a descriptor_file"),
        (dict(format="protobuf", descriptor_file="shop.desc"), "descriptor_file and message go together"),
        (dict(sasl="PLAIN"), "security=plaintext with sasl=PLAIN"),
        (dict(security="sasl_ssl", sasl="PLAIN"), "username and a password"),
        (dict(client_config=("fetch.min.byte=1",)), "did you mean fetch.min.bytes"),
        (dict(client_config=("group.id=x",)), "use the option group"),
        (dict(client_config=("enable.auto.commit=true",)), "delivery depends on it"),
        (dict(client_config=("sasl.oauthbearer.client.secret=x",)), "use the option password"),
        (dict(client_config=("ssl.keystore.password=x",)), "is a secret"),
        (dict(client_config=("ssl.keystore.pasword=x",)), "did you mean ssl.keystore.password"),
        (dict(client_config=("ssl.store.password=env:x",)), "there is no setting 'ssl.store.password'"),
        (dict(client_config=("logger=x",)), "delivery depends on it"),
        (dict(client_config=("fetch.min.bytes=many",)), "client_config"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        ReadFromKafka(**{"servers": "localhost:9092", "topics": ("t",), **options})


# What is written.


def batch(*rows: dict[str, Any]) -> RowBatch:
    return RowBatch.from_pylist(list(rows))


def sink(kafka, topic: str, tmp_path, **options: Any) -> WriteToKafka:
    ledger = f"ledger-{topic}"
    return WriteToKafka(kafka.servers, topic, **{"staging": str(tmp_path / "staging"), "ledger": ledger, **options})


def stage(writing: WriteToKafka, run_id: str, *batches: RowBatch) -> tuple[list[Any], list[Letters]]:
    writer = writing.writer(run_id)
    refused = [letters for rows in batches for letters in writer.write(rows)]
    return writer.close(), refused


def test_a_commit_is_invisible_until_published_and_then_there_once(kafka, topic, tmp_path):
    writing = sink(kafka, topic, tmp_path)
    pieces, _ = stage(writing, "c1", batch({"id": 1}, {"id": 2}))
    assert read(source(kafka, topic, schema="id bigint"))[0] == []
    assert not writing.is_published("c1")
    assert writing.publish("c1", pieces) is True
    assert writing.is_published("c1")
    assert writing.publish("c1", pieces) is False
    assert ids(read(source(kafka, topic))[0]) == [1, 2]
    assert not list((tmp_path / "staging").rglob("*.arrow"))


def test_another_process_finds_the_commit_in_the_ledger(kafka, topic, tmp_path, monkeypatch):
    writing = sink(kafka, topic, tmp_path)
    pieces, _ = stage(writing, "c1", batch({"id": 1}))
    writing.publish("c1", pieces)
    monkeypatch.setattr(_kafka_writer, "_ledgers", {})
    assert writing.publish("c1", pieces) is False
    assert ids(read(source(kafka, topic))[0]) == [1]


def test_a_crash_in_the_transaction_leaves_nothing_and_the_next_try_heals(kafka, topic, tmp_path, monkeypatch):
    writing = sink(kafka, topic, tmp_path)
    pieces, _ = stage(writing, "c1", batch({"id": 1}))
    zombies = []

    def die(commit):
        zombies.append(commit)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_kafka_writer, "_insist", die)
        with pytest.raises(KeyboardInterrupt):
            writing.publish("c1", pieces)
    assert writing.publish("c1", pieces) is True
    assert ids(read(source(kafka, topic))[0]) == [1]
    with pytest.raises(confluent_kafka.KafkaException):  # who was thought dead is fenced
        zombies[0]()
    assert ids(read(source(kafka, topic))[0]) == [1]


def test_a_commit_that_is_neither_staged_nor_sent_is_told(kafka, topic, tmp_path):
    writing = sink(kafka, topic, tmp_path)
    pieces, _ = stage(writing, "c1", batch({"id": 1}))
    _kafka_writer.discard(writing.target, "c1")
    with pytest.raises(_kafka_writer.LostPiecesError, match="1 rows is neither staged nor sent"):
        writing.publish("c1", pieces)


def test_keys_headers_times_and_deletions(kafka, topic, tmp_path):
    writing = sink(kafka, topic, tmp_path, key="shop", headers=("trace",))
    at = pa.scalar(AT * 1000, pa.timestamp("us", tz="UTC")).as_py()
    rows = batch(
        {"shop": "a", "n": 1, "trace": "t1", "row_change": "insert", "row_time": at},
        {"shop": "b", "n": None, "trace": None, "row_change": "delete", "row_time": at},
        {"shop": None, "n": 3, "trace": "t3", "row_change": None, "row_time": at},
    )
    pieces, _ = stage(writing, "c1", rows)
    writing.publish("c1", pieces)
    metadata = ("key", "headers", "timestamp")
    found, _ = read(source(kafka, topic, metadata=metadata, null_values="delete", schema="shop text, n bigint"))
    told = {(row["kafka_key"], row["n"], row.get("row_change"), str(row["kafka_headers"])) for row in found}
    assert told == {
        ("a", 1, None, "[{'name': 'trace', 'value': b't1'}]"),
        ("b", None, "delete", "None"),
        (None, 3, None, "[{'name': 'trace', 'value': b't3'}]"),
    }
    assert {row["kafka_timestamp"].timestamp() * 1000 for row in found} == {AT}


def test_rows_that_make_too_large_a_message_are_refused(kafka, topic, tmp_path):
    writing = sink(kafka, topic, tmp_path, max_message_bytes=2_000)
    pieces, (refused,) = stage(writing, "c1", batch({"id": 1, "pad": "x" * 3_000}, {"id": 2, "pad": ""}))
    assert refused.batch.column("reason").to_pylist() == ["too_large"]
    writing.publish("c1", pieces)
    assert ids(read(source(kafka, topic))[0]) == [2]


def test_at_least_once_sends_at_once(kafka, topic):
    writing = WriteToKafka(kafka.servers, topic, delivery="at_least_once")
    pieces, _ = stage(writing, "c1", batch({"id": 1}))
    assert ids(read(source(kafka, topic))[0]) == [1]
    assert writing.publish("c1", pieces) is True


def test_a_missing_topic_is_created_as_declared(kafka, tmp_path):
    name = f"new-{uuid.uuid4().hex[:8]}"
    writing = sink(kafka, name, tmp_path, partitions=5, topic_config=("retention.ms=1234567",))
    stage(writing, "c1", batch({"id": 1}))
    assert len(admin(kafka).list_topics(name, timeout=10).topics[name].partitions) == 5
    resource = confluent_kafka.admin.ConfigResource(confluent_kafka.admin.ResourceType.TOPIC, name)
    assert admin(kafka).describe_configs([resource])[resource].result(10)["retention.ms"].value == "1234567"


def test_a_broker_that_is_gone_is_a_transient_error(kafka, topic, tmp_path, monkeypatch):
    monkeypatch.setattr(_kafka_writer, "SEND_SECS", 2)
    writing = WriteToKafka("127.0.0.1:1", topic, delivery="at_least_once")
    monkeypatch.setattr(_kafka_writer, "_ready", {(writing.target.connection, topic)})
    with pytest.raises(TransientError, match=r"did not arrive|were not taken"):
        stage(writing, "c1", batch({"id": 1}))


def test_a_writer_that_died_in_its_transaction_holds_up_no_other(kafka, topic, tmp_path, monkeypatch):
    """One process may have to publish for both; if it waited for the end of the dead one's transaction, it would be for a minute."""
    writing = sink(kafka, topic, tmp_path)
    names = [commits.name_of("run", shard) for shard in (0, 1)]
    pieces = {name: stage(writing, name, batch({"id": shard}))[0] for shard, name in enumerate(names)}
    dead = _kafka_writer.Sending(writing.target, **_kafka_writer._transaction(writing.target, names[1]))
    dead.producer.init_transactions(20)
    dead.producer.begin_transaction()
    dead.producer.produce(topic, b'{"id":1}')
    dead.producer.produce(writing.ledger, b"{}", b"x", partition=_kafka_writer._partition(writing.target, names[1]))
    dead.producer.flush(20)
    began = time.monotonic()
    for name in names:
        assert writing.publish(name, pieces[name]) is True
    assert time.monotonic() - began < 30
    assert ids(read(source(kafka, topic))[0]) == [0, 1]
