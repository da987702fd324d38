"""Pub/Sub, with Google's emulator: what is read, where it ends, what is refused, what comes once, and what is published again."""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from support import services
from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, TransientError
from tiebeam.io import _pubsub_reader, _pubsub_writer
from tiebeam.io._pubsub_client import Connection
from tiebeam.io._pubsub_messages import first_ones
from tiebeam.io._pubsub_reader import leases_of
from tiebeam.io.pubsub import ReadFromPubSub, WriteToPubSub
from tiebeam.rows import RowBatch
from tiebeam.staging import Staged

PROJECT = "projects/beam-proj"


class Place:
    """A topic with a subscription."""

    def __init__(self, server, **settings: Any):
        name = f"t-{uuid.uuid4().hex[:12]}"
        self.server, self.topic, self.subscription = server, f"{PROJECT}/topics/{name}", f"{PROJECT}/subscriptions/{name}"
        connection = Connection(server.address)
        self.publisher, self.subscriber = connection.publisher(), connection.subscriber()
        topic = {"name": self.topic, **({"schema_settings": settings.pop("schema_settings")} if "schema_settings" in settings else {})}
        self.publisher.create_topic(request=topic)
        wanted = {"name": self.subscription, "topic": self.topic, "ack_deadline_seconds": 10, **settings}
        self.subscriber.create_subscription(request=wanted)

    def send(self, *values: bytes, key: str = "", **attributes: str) -> list[str]:
        ids: list[str] = []
        for start in range(0, len(values), 1000):
            messages = [{"data": v, "attributes": attributes, "ordering_key": key} for v in values[start : start + 1000]]
            ids += self.publisher.publish(topic=self.topic, messages=messages, timeout=60).message_ids
        return ids

    def source(self, **options: Any) -> ReadFromPubSub:
        told = {"until": "empty", "quiet_secs": 2, "pubsub_endpoint": self.server.address, "schema": "id bigint", **options}
        return ReadFromPubSub(self.subscription, **told)

    def sink(self, folder: Any, **options: Any) -> WriteToPubSub:
        return WriteToPubSub(self.topic, str(folder), pubsub_endpoint=self.server.address, **options)

    def left(self, secs: float = 3.0) -> list[Any]:
        """The messages that the subscription still delivers, within so long; they are not acknowledged."""
        found: dict[str, Any] = {}
        until = time.monotonic() + secs
        while time.monotonic() < until:
            asked = {"subscription": self.subscription, "max_messages": 1000, "return_immediately": True}
            for received in self.subscriber.pull(request=asked, timeout=20).received_messages:
                found.setdefault(received.message.message_id, received.message)
            time.sleep(0.1)
        return list(found.values())


@pytest.fixture
def place(pubsub):
    return Place(pubsub)


def lines(*rows: dict[str, Any]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


def ints(*ids: int) -> list[bytes]:
    return lines(*({"id": i} for i in ids))


def read(source: ReadFromPubSub, *, settle: bool = True) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and dead letters, as a job would have them, without its state."""
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    parser = source._rows()
    seen: list[RowBatch] = []
    for messages in source.source().read_all():
        fresh = first_ones(messages, seen)
        seen.append(fresh)
        for result in parser.parse(fresh) if fresh.num_rows else ():
            if isinstance(result, Letters):
                refused += result.batch.to_pylist()
            else:
                rows += result.to_pylist()
    if settle:
        source.settle()
    return rows, refused


def ids(rows: list[dict[str, Any]]) -> list[int]:
    return sorted(row["id"] for row in rows)


# What is read.


def test_rows_have_their_columns_time_and_position_and_bad_ones_are_kept(place):
    one, two, bad = place.send(b'{"id": 1, "name": "\xc3\xa9"}', b'{"id": 2, "name": null}', b"{broken")
    rows, refused = read(place.source(schema="id bigint, name text", metadata=("message_id", "publish_time")))
    rows.sort(key=lambda row: row["id"])
    assert [(row["id"], row["name"], row["row_position"], row["pubsub_message_id"]) for row in rows] == [
        (1, "é", f"{place.subscription}/{one}", one),
        (2, None, f"{place.subscription}/{two}", two),
    ]
    assert all(row["row_time"] == row["pubsub_publish_time"] for row in rows)
    (letter,) = refused
    told = letter["reason"], letter["original"], letter["row_position"], letter["source"]
    assert told == ("malformed", b"{broken", f"{place.subscription}/{bad}", place.subscription)
    assert place.left() == [], "all is acknowledged, the bad one too: it is kept"


def test_every_message_is_read_once_and_acknowledged(place):
    place.send(*ints(*range(5_500)))
    rows, refused = read(place.source())
    assert ids(rows) == list(range(5_500))
    assert len({row["row_position"] for row in rows}) == 5_500
    assert not refused
    assert place.left() == []


def test_what_was_read_and_not_settled_is_delivered_again(place):
    place.send(*ints(1, 2, 3))
    source = place.source(deadline_secs=10)
    rows, _ = read(source, settle=False)
    assert ids(rows) == [1, 2, 3]
    assert place.left(12) == [], "its deadline of 10 s is extended while this process lives"
    leases = leases_of(source.source())
    leases.let_go(list(leases._held))  # as if it had died
    again = place.left(14)
    assert len(again) == 3


def test_empty_messages_and_blanks_are_dead_letters_and_rows_where_bytes_are_rows(place):
    place.send(b"", b"  ", b"null", why="nothing")
    rows, refused = read(place.source())
    assert rows == []
    assert {letter["original"]: letter["reason"] for letter in refused}[b""] == "no_value"
    assert sorted(letter["original"] for letter in refused) == [b"", b"  ", b"null"]
    place.send(b"", b"x", why="nothing")
    rows, refused = read(place.source(format="raw", schema=None))
    assert sorted(row["value"] for row in rows) == [b"", b"x"]
    assert refused == []


def test_large_messages(place):
    large = json.dumps({"id": 1, "text": "x" * 9_900_000}).encode()
    for _ in range(3):
        place.send(large)
    rows, refused = read(place.source(schema="id bigint, text text"))
    assert [len(row["text"]) for row in rows] == [9_900_000] * 3
    assert not refused


def test_attributes_keys_and_more_become_columns(place):
    place.send(*ints(1), key="k1", country="fr", odd="ü\n")
    ((row,), _) = read(place.source(attributes=("country", "nothing"), metadata=("ordering_key", "attributes")))
    assert (row["country"], row["nothing"], row["pubsub_ordering_key"]) == ("fr", None, "k1")
    assert row["pubsub_attributes"] == [{"name": "country", "value": "fr"}, {"name": "odd", "value": "ü\n"}]


def test_event_times_come_from_a_column_or_an_attribute(place):
    place.send(*lines({"id": 1, "at": "2026-02-03T04:05:06Z"}, {"id": 2, "at": "soon"}))
    rows, refused = read(place.source(schema="id bigint, at text", event_time="at"))
    assert [(row["id"], row["row_time"].isoformat()) for row in rows] == [(1, "2026-02-03T04:05:06+00:00")]
    assert [letter["reason"] for letter in refused] == ["bad_event_time"]
    place.send(*ints(3), at="1767225600000")
    place.send(*ints(4), at="later")
    place.send(*ints(5))
    rows, refused = read(place.source(event_time_attribute="at", event_time_format="unix_millis"))
    assert [(row["id"], row["row_time"].isoformat()) for row in rows] == [(3, "2026-01-01T00:00:00+00:00")]
    assert sorted(letter["detail"] for letter in refused) == ["at is 'later', which cannot be read as unix_millis", "at is absent"]


def test_columns_are_those_that_messages_show_and_the_sample_takes_nothing(place):
    place.send(*lines({"id": 1, "price": 2.5}, {"id": 2, "city": "Oslo"}))
    source = place.source(schema=None)
    sample = source.sample(10)
    assert sorted(name for name in sample.schema.names if not name.startswith("row_")) == ["city", "id", "price"]
    assert sample.schema.field("price").type == pa.float64()
    rows, _ = read(source)
    assert ids(rows) == [1, 2]


def test_avro_of_the_topics_schema(pubsub):
    avro = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}, {"name": "note", "type": ["null", "string"]}]}
    name = f"s-{uuid.uuid4().hex[:10]}"
    schema = {"name": f"{PROJECT}/schemas/{name}", "type_": "AVRO", "definition": json.dumps(avro)}
    Connection(pubsub.address).schemas().create_schema(parent=PROJECT, schema=schema, schema_id=name)
    place = Place(pubsub, schema_settings={"schema": f"{PROJECT}/schemas/{name}", "encoding": "BINARY"})
    place.send(*[_datum(avro, {"id": 1, "note": "a"}), _datum(avro, {"id": 2, "note": None})])
    source = place.source(format="avro", schema=None)
    source.ping()
    rows, refused = read(source)
    assert sorted((row["id"], row["note"]) for row in rows) == [(1, "a"), (2, None)]
    assert not refused


def test_columns_of_the_topics_schema_for_json(pubsub):
    avro = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}, {"name": "price", "type": "double"}]}
    name = f"s-{uuid.uuid4().hex[:10]}"
    schema = {"name": f"{PROJECT}/schemas/{name}", "type_": "AVRO", "definition": json.dumps(avro)}
    Connection(pubsub.address).schemas().create_schema(parent=PROJECT, schema=schema, schema_id=name)
    place = Place(pubsub, schema_settings={"schema": f"{PROJECT}/schemas/{name}", "encoding": "JSON"})
    assert dict(place.source(schema=None)._rows().columns) == {"id": pa.int64(), "price": pa.float64()}


def _datum(schema: Any, value: dict[str, Any]) -> bytes:
    import io

    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, value)
    return stream.getvalue()


def test_a_time_as_end_leaves_what_was_published_later(place):
    place.send(*ints(1, 2))
    time.sleep(0.05)
    moment = time.time()
    time.sleep(0.05)
    place.send(*ints(3))
    until = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1e6):06}Z"
    rows, _ = read(place.source(until=until))
    assert ids(rows) == [1, 2]
    assert [json.loads(m.data)["id"] for m in place.left()] == [3]


def test_an_empty_subscription_ends_soon(place):
    began = time.monotonic()
    assert read(place.source()) == ([], [])
    assert time.monotonic() - began < 40


# What comes again.


def test_a_publishers_double_is_known_by_its_attribute(place):
    place.send(*ints(1), row_id="a")
    place.send(*ints(1), row_id="a")
    place.send(*ints(2), row_id="b")
    place.send(*ints(3))
    rows, _ = read(place.source(id_attribute="row_id"))
    assert ids(rows) == [1, 2, 3]
    assert place.left() == []


def test_a_reader_hands_back_what_it_has_not_handed_out(place):
    place.send(*ints(*range(10)))
    source = place.source(until=None).source(at_end=False)
    (lane, *_) = source.partitions()
    reader = source.reader([lane])
    reader.seek({lane: None})
    _await(lambda: len(reader._waiting) == 10)
    reader.close()
    assert len(place.left()) == 10


def test_what_a_checkpoint_has_is_acknowledged_and_the_rest_comes_again(place):
    """The mark of one reader says nothing to another, and what a dead reader held is let go."""
    place.send(*ints(1, 2))
    source = place.source(until=None, readers=1, deadline_secs=10).source(at_end=False)
    (lane,) = source.partitions()
    reader = source.reader([lane])
    reader.seek({lane: None})
    first = _polled(reader, lane, 2)
    place.send(*ints(3))
    _polled(reader, lane, 1)
    reader.commit({lane: {"reader": "another", "read": 99}})
    reader.close()
    reader.commit({lane: first})
    again = place.left(16)
    assert [json.loads(m.data)["id"] for m in again] == [3]


def _polled(reader: Any, lane: str, count: int) -> Any:
    got, position = 0, None
    until = time.monotonic() + 60
    while got < count:
        assert time.monotonic() < until
        if (piece := reader.poll([lane])) is not None:
            got += sum(rows.num_rows for rows in piece.rows)
            position = piece.position
    assert got == count
    return position


def _await(there: Any, secs: float = 60) -> None:
    until = time.monotonic() + secs
    while not there():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.05)


def test_a_service_that_is_silent_for_longer_than_the_deadline_loses_and_doubles_nothing(place, pubsub):
    """Deadlines pass while nobody can extend them, and all is delivered again under other ids of delivery."""
    place.send(*ints(*range(300)))
    source = place.source(deadline_secs=10, quiet_secs=15)
    found: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
    thread = threading.Thread(target=lambda: found.append(read(source)))
    thread.start()
    leases = leases_of(source.source())
    _await(lambda: len(leases._held) > 0)
    pubsub.freeze()
    time.sleep(12)
    pubsub.thaw()
    thread.join(240)
    ((rows, refused),) = found
    assert ids(rows) == list(range(300))
    assert not refused
    assert place.left(12) == []


def test_a_service_that_is_gone_is_told_in_time_and_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(_pubsub_reader, "BOUNDED_PATIENCE_SECS", 2.0)
    with services.obtain("pubsub").cluster(tmp_path) as own:
        if not own.process:
            pytest.skip("it is not ours to end")
        place = Place(own)
        place.send(*ints(*range(10)))
        source = place.source(quiet_secs=30)
        threading.Timer(3.0, own.kill).start()
        with pytest.raises(TransientError, match="does not answer"):
            read(source)
        assert leases_of(source.source())._kept == [], "nothing is acknowledged of what was not read to its end"


# What is told before a run.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"until": "soon"}, "no end"),
        ({"event_time": "a", "event_time_attribute": "b"}, "both given"),
        ({"schema": "id nonsense"}, "schema"),
        ({"format": "avro", "avro_schema": "{"}, "no Avro schema"),
        ({"format": "csv", "schema": None}, "no header"),
        ({"pubsub_endpoint": "here"}, "no address"),
        ({"event_time_zone": "Nowhere"}, "no time zone"),
    ],
)
def test_impossible_options_are_refused(place, options, says):
    with pytest.raises(ConfigError, match=says):
        place.source(**options)


def test_what_is_not_there_is_told_before_a_run(place, pubsub, tmp_path):
    place.source().ping()
    place.sink(tmp_path).ping()
    with pytest.raises(ConfigError, match="is not there"):
        ReadFromPubSub(f"{PROJECT}/subscriptions/nothing", pubsub_endpoint=pubsub.address).ping()
    with pytest.raises(ConfigError, match="is not there"):
        WriteToPubSub(f"{PROJECT}/topics/nothing", str(tmp_path), pubsub_endpoint=pubsub.address).ping()
    with pytest.raises(ConfigError, match="no subscription"):
        ReadFromPubSub("orders")
    with pytest.raises(ConfigError, match="has no Avro schema"):
        place.source(format="avro", schema=None).ping()
    with pytest.raises(ConfigError, match="shows what columns"):
        place.source(schema=None)._rows()


def test_nobody_at_the_endpoint_is_told_soon(tmp_path):
    from tiebeam.lab._machine import free_ports

    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    began = time.monotonic()
    with pytest.raises(ConfigError, match="does not answer"):
        ReadFromPubSub(f"{PROJECT}/subscriptions/any", pubsub_endpoint=nobody).ping()
    assert time.monotonic() - began < 40


def test_the_standard_variable_names_an_emulator_and_an_option_wins(monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "localhost:1")
    assert ReadFromPubSub(f"{PROJECT}/subscriptions/any").connection.endpoint == "localhost:1"
    assert ReadFromPubSub(f"{PROJECT}/subscriptions/any", pubsub_endpoint="localhost:2").connection.endpoint == "localhost:2"
    assert not Connection("europe-west1-pubsub.googleapis.com:443").in_clear


def test_credentials_that_are_none_are_told_and_never_shown(tmp_path):
    from tiebeam.options import Secret

    (tmp_path / "key.json").write_text('{"private_key": "hidden"}')
    source = ReadFromPubSub(f"{PROJECT}/subscriptions/any", credentials=Secret(f"file:{tmp_path}/key.json"))
    with pytest.raises(ConfigError, match="no key of a service account") as caught:
        source.ping()
    assert "hidden" not in str(caught.value) + repr(source)


# What is written.


def stage(sink: WriteToPubSub, run: str, *batches: RowBatch) -> tuple[list[Staged], list[dict[str, Any]]]:
    writer, refused = sink.writer(run), []
    for batch in batches:
        for letters in writer.write(batch):
            refused += letters.batch.to_pylist()
    return Staged.unpack([Staged.pack(writer.close())]), refused


def batch(*ns: int, **columns: list[Any]) -> RowBatch:
    return RowBatch.from_pydict({"id": pa.array(ns, pa.int64()), **columns})


def test_rows_are_published_when_told_and_once(place, tmp_path):
    sink = place.sink(tmp_path, attributes=("country",), ordering_key="shop")
    staged, refused = stage(sink, "r1", batch(1, 2, country=["fr", None], shop=["a", "b"]))
    assert refused == []
    assert place.left(1) == []
    assert not sink.is_published("r1")
    assert sink.publish("r1", staged) is True
    assert sink.is_published("r1")
    assert sink.publish("r1", staged) is False
    found = sorted(place.left(), key=lambda m: m.data)
    assert [(json.loads(m.data), m.ordering_key, m.attributes.get("country")) for m in found] == [
        ({"id": 1, "shop": "a"}, "a", "fr"),
        ({"id": 2, "shop": "b"}, "b", None),
    ]
    assert len({m.attributes["row_id"] for m in found}) == 2


def test_many_rows_in_order_of_their_key(place, tmp_path):
    sink = place.sink(tmp_path, ordering_key="shop")
    n = 2_500
    staged, _ = stage(sink, "r1", batch(*range(n), shop=[f"s{i % 3}" for i in range(n)]))
    assert sink.publish("r1", staged)
    rows, _ = read(place.source(metadata=("ordering_key", "message_id")))
    assert ids(rows) == list(range(n))
    for shop in ("s0", "s1", "s2"):
        own = [row for row in rows if row["pubsub_ordering_key"] == shop]
        own.sort(key=lambda row: int(row["pubsub_message_id"]))
        assert [row["id"] for row in own] == sorted(row["id"] for row in own)


def test_rows_that_the_service_would_refuse_are_dead_letters_and_their_neighbours_are_not(place, tmp_path):
    sink = place.sink(tmp_path, attributes=("note",), ordering_key="shop")
    rows = batch(1, 2, 3, 4, text=["x" * 9_950_000, "", "", ""], note=["", "n" * 1025, "", "ü"], shop=["a", "a", "s" * 1025, "a"])
    staged, refused = stage(sink, "r1", rows)
    assert sorted(letter["reason"] for letter in refused) == ["bad_attribute", "bad_key", "too_large"]
    assert sink.publish("r1", staged)
    assert [json.loads(m.data)["id"] for m in place.left()] == [4]


def test_a_publication_that_dies_is_completed_under_the_same_row_ids(place, tmp_path, monkeypatch):
    """It dies after its messages were taken and before that was noted: the worst moment."""
    monkeypatch.setattr(_pubsub_writer, "PIECE_ROWS", 10)
    sink = place.sink(tmp_path)
    staged, _ = stage(sink, "r1", batch(*range(35)))
    assert len(staged) == 4
    real, calls = _pubsub_writer.Sending.send, []

    def dying(self, messages):
        real(self, messages)
        calls.append(messages.num_rows)
        if len(calls) == 2:
            raise InterruptedError

    monkeypatch.setattr(_pubsub_writer.Sending, "send", dying)
    with pytest.raises(InterruptedError):
        sink.publish("r1", staged)
    assert not sink.is_published("r1")
    assert sink.publish("r1", staged) is True
    assert sum(calls) == 45, "one piece was sent again, and no other"
    rows, _ = read(place.source(id_attribute="row_id"))
    assert ids(rows) == list(range(35))


def test_pieces_that_are_gone_are_a_loud_error_and_discarded_ones_are_gone(place, tmp_path):
    from tiebeam.io._publication import LostPiecesError

    sink = place.sink(tmp_path)
    staged, _ = stage(sink, "r1", batch(1))
    sink.discard("r1")
    sink.discard("r1")
    with pytest.raises(LostPiecesError):
        sink.publish("r1", staged)
    assert place.left(1) == []


def test_columns_that_are_not_there_are_named(place, tmp_path):
    with pytest.raises(ConfigError, match="no column 'shop'"):
        list(place.sink(tmp_path, ordering_key="shop").writer("r").write(batch(1)))
    with pytest.raises(ConfigError, match="no column 'data'"):
        list(place.sink(tmp_path, format="raw").writer("r").write(batch(1)))
    with pytest.raises(ConfigError, match="cannot be the name of an attribute"):
        place.sink(tmp_path, attributes=("row_id",))
