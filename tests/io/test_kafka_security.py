"""Kafka behind doors: every way in, every way to be turned away, and what is said of it; with a real broker."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

import pytest
from apache_beam.internal import pickler
from apache_beam.transforms.display import DisplayData
from confluent_kafka.admin import AclOperation, NewTopic, ResourceType

from support import guarded, services
from support.guarded import PASSWORD
from tiebeam.errors import ConfigError
from tiebeam.io.kafka import ReadFromKafka, WriteToKafka
from tiebeam.options import Secret
from tiebeam.rows import RowBatch

SOON_SECS = 12
"""A ping that is turned away is over by then, also on a machine that has much to do."""


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    """A broker that can be reached in every way."""
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patched:
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={(folder / 'keys.json').as_uri()}"
        patched.setenv("JDK_JAVA_OPTIONS", allowed)
        patched.setenv("TEST_PASSWORD", PASSWORD)
        patched.setenv("WRONG_PASSWORD", "guessed-7391")
        with guarded.broker(services.obtain("kafka"), folder) as found:
            if not found.cluster.brokers:
                pytest.skip("the brokers given have other doors")
            yield found


@pytest.fixture
def topic(doors):
    name = f"t-{uuid.uuid4().hex[:10]}"
    doors.admin.create_topics([NewTopic(name, 2, 1)])[name].result(20)
    return name


RIGHT, WRONG = Secret("env:TEST_PASSWORD"), Secret("env:WRONG_PASSWORD")
SASL = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


def read(topic: str, **settings: Any) -> list[int]:
    parts = ReadFromKafka(topics=(topic,), until="latest", schema="id bigint", **settings).source().read_all()
    return sorted(n for rows in parts if isinstance(rows, RowBatch) for n in rows.column("id").to_pylist())


def write(topic: str, staging: Any, *ids: int, **settings: Any) -> None:
    sink = WriteToKafka(topic=topic, staging=str(staging), ledger=f"{topic}-ledger", **settings)
    writer = sink.writer("r1")
    assert list(writer.write(RowBatch.from_pydict({"id": list(ids)})) or ()) == []
    assert sink.publish("r1", writer.close()) is True


def refusal(connector: Any) -> str:
    """What a ping says that is turned away, soon."""
    began = time.monotonic()
    with pytest.raises(ConfigError) as told:
        connector.ping()
    assert time.monotonic() - began < SOON_SECS
    assert all(problem.fix for problem in told.value.problems)
    text = str(told.value)
    assert PASSWORD not in text
    assert "guessed-7391" not in text
    return text


# Ways in.


@pytest.mark.parametrize("way", SASL)
def test_users_come_in_read_and_write(doors, topic, tmp_path, way):
    settings = doors.settings(way) | {"password": RIGHT}
    WriteToKafka(topic=topic, staging=str(tmp_path), **settings).ping()
    write(topic, tmp_path, 1, 2, **settings)
    ReadFromKafka(topics=(topic,), **settings).ping()
    assert read(topic, **settings) == [1, 2]


def test_users_come_in_through_tls(doors, topic, tmp_path):
    settings = doors.settings("SCRAM-SHA-512") | {"password": RIGHT, "security": "sasl_ssl", "ca_file": doors.authority.file}
    settings["servers"] = doors.cluster.listeners["SASLTLS"]
    write(topic, tmp_path, 1, **settings)
    assert read(topic, **settings) == [1]


def test_certificates_are_names_of_users(doors, topic, tmp_path):
    certificate, key = doors.authority.issue("alice", PASSWORD.encode())
    settings = doors.settings("MUTUAL") | {"certificate_file": certificate, "key_file": key, "key_password": RIGHT}
    write(topic, tmp_path, 1, **settings)
    assert read(topic, **settings) == [1]


def test_other_secrets_of_the_library_are_references_too(doors, topic):
    doors.grant("*", (ResourceType.TOPIC, topic, AclOperation.READ))
    settings = doors.settings("TLS")
    certificate = settings.pop("ca_file")
    ReadFromKafka(topics=(topic,), client_config=(f"ssl.ca.pem=file:{certificate}",), **settings).ping()


# Turned away.


@pytest.mark.parametrize("way", SASL)
def test_a_wrong_password_is_told(doors, topic, way):
    settings = doors.settings(way) | {"password": WRONG}
    told = refusal(ReadFromKafka(topics=(topic,), **settings))
    assert "oauth_url:" in told if way == "OAUTHBEARER" else "check username, password and sasl" in told
    assert "no broker answers" in refusal(WriteToKafka(topic=topic, delivery="at_least_once", **settings))


def test_a_token_service_that_is_not_there_is_told(doors, topic):
    settings = doors.settings("OAUTHBEARER") | {"password": RIGHT, "oauth_url": "http://127.0.0.1:1/token"}
    assert "check oauth_url" in refusal(ReadFromKafka(topics=(topic,), **settings))


def test_a_broker_of_another_authority_is_not_trusted(doors, topic, tmp_path):
    other = guarded.Authority(tmp_path, "other")
    settings = doors.settings("TLS") | {"ca_file": other.file}
    told = refusal(ReadFromKafka(topics=(topic,), **settings))
    assert "ca_file: no broker answers" in told
    assert "certificate could not be verified" in told


def test_a_certificate_that_is_lacking_or_of_another_authority_is_told(doors, topic, tmp_path):
    assert "give certificate_file and key_file" in refusal(ReadFromKafka(topics=(topic,), **doors.settings("MUTUAL")))
    certificate, key = guarded.Authority(tmp_path, "other").issue("alice")
    settings = doors.settings("MUTUAL") | {"certificate_file": certificate, "key_file": key}
    assert "do not take this certificate" in refusal(ReadFromKafka(topics=(topic,), **settings))


@pytest.mark.parametrize(
    ("door", "more", "message"),
    [
        ("TLS", {}, "does not take security=plaintext"),
        ("SASL", {}, "does not take security=plaintext"),
        ("PLAINTEXT", {"security": "ssl"}, "may not speak TLS"),
        ("PLAINTEXT", {"security": "sasl_plaintext", "sasl": "PLAIN", "username": "alice", "password": RIGHT}, "check sasl, security"),
        ("TLS", {"security": "ssl", "ca_file": "/nowhere.pem"}, r"ca_file: the client cannot be made.*/nowhere.pem"),
        ("MUTUAL", {"security": "ssl", "certificate_file": "/nowhere.pem", "key_file": "/nowhere.key"}, r"certificate_file: the client"),
        ("TLS", {"security": "sasl_ssl", "sasl": "PLAIN", "username": "a", "password": Secret("env:NOT_SET")}, "NOT_SET cannot be read"),
    ],
)
def test_the_wrong_door_is_told(doors, topic, door, more, message):
    servers = doors.cluster.listeners.get(door, doors.cluster.servers)
    assert re.search(message, refusal(ReadFromKafka(servers, (topic,), **more)))


# Rights.


@pytest.fixture
def user(doors):
    """A user without rights, and the options to come in."""
    name = f"u{uuid.uuid4().hex[:8]}"
    doors.add_user(name)
    return name, doors.settings("SCRAM-SHA-256", name) | {"password": RIGHT}


def test_who_may_only_read_reads_and_tells_no_group(doors, topic, user, tmp_path):
    name, settings = user
    write(topic, tmp_path, 1, 2, **doors.settings("PLAIN") | {"password": RIGHT})
    reading = ReadFromKafka(topics=(topic,), **settings)
    assert f"no right to see a topic {topic}" in refusal(reading)
    doors.grant(name, (ResourceType.TOPIC, topic, AclOperation.DESCRIBE))
    assert f"no right to read {topic}" in refusal(reading)
    with pytest.raises(ConfigError, match="no right to read"):
        read(topic, **settings)
    doors.grant(name, (ResourceType.TOPIC, topic, AclOperation.READ))
    reading.ping()
    assert read(topic, **settings) == [1, 2]
    with pytest.raises(ConfigError, match=r"group: this user has no right"):
        read(topic, start="committed", **settings)


def test_what_writing_takes_is_asked_for_right_by_right(doors, topic, user, tmp_path):
    name, settings = user
    new = f"{topic}-new"
    writing = WriteToKafka(topic=new, staging=str(tmp_path), ledger=f"{new}-ledger", **settings)
    assert f"no topic {new} that this user may see, and no right to create it" in refusal(writing)
    doors.grant(name, (ResourceType.TOPIC, f"{topic}*", AclOperation.CREATE))
    assert "transactional ids that begin with tiebeam-" in refusal(writing)
    doors.grant(name, (ResourceType.TRANSACTIONAL_ID, "tiebeam-*", AclOperation.WRITE))
    writing.ping()
    with pytest.raises(ConfigError, match="no right to read and write"):
        write(new, tmp_path, 1, **settings)
    assert f"topic: this user has no right to write {new}" in refusal(writing)
    doors.grant(name, (ResourceType.TOPIC, f"{topic}*", AclOperation.WRITE))
    assert f"ledger: this user has no right to read {new}-ledger" in refusal(writing)
    doors.grant(name, (ResourceType.TOPIC, f"{new}-ledger", AclOperation.READ))
    writing.ping()
    write(new, tmp_path, 1, **settings)
    assert read(new, **doors.settings("PLAIN") | {"password": RIGHT}) == [1]


def test_who_writes_at_once_needs_no_transactions(doors, topic, user):
    name, settings = user
    writing = WriteToKafka(topic=topic, delivery="at_least_once", **settings)
    doors.grant(name, (ResourceType.TOPIC, topic, AclOperation.WRITE))
    writing.ping()
    writer = writing.writer("r1")
    list(writer.write(RowBatch.from_pydict({"id": [7]})) or ())
    writer.close()
    assert read(topic, **doors.settings("PLAIN") | {"password": RIGHT}) == [7]


def test_settings_of_a_new_topic_that_no_broker_takes_are_told_before_the_run(doors, topic, tmp_path):
    settings = doors.settings("PLAIN") | {"password": RIGHT}
    for more in ({"topic_config": ("retention.milliseconds=1",)}, {"replication": 3}):
        told = refusal(WriteToKafka(topic=f"{topic}-x", staging=str(tmp_path), **more, **settings))
        assert f"the topic {topic}-x cannot be created" in told


# Secrets.


def test_secrets_are_shown_nowhere(doors, topic):
    settings = doors.settings("SCRAM-SHA-256") | {"password": RIGHT}
    reading = ReadFromKafka(topics=(topic,), schema="id bigint", client_config=("ssl.keystore.password=env:TEST_PASSWORD",), **settings)
    shown = [repr(reading), repr(reading.connection), str(DisplayData.create_from(reading).items), repr(reading.source())]
    assert not [text for text in shown if PASSWORD in text]
    assert PASSWORD.encode() not in pickler.dumps(reading)


def test_a_secret_itself_is_refused_and_not_repeated():
    for given in (dict(password="guessed-7391"), dict(client_config=("ssl.keystore.password=guessed-7391",))):
        with pytest.raises(ConfigError) as told:
            ReadFromKafka("localhost:9092", ("t",), **given)
        assert "guessed-7391" not in str(told.value)
