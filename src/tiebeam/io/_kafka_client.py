"""Clients of Kafka: the settings that a connection needs, what a cluster says of its topics, and errors in plain words.

Built on confluent-kafka, and so on librdkafka: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.options import Secret

ANSWER_SECS = 15.0

_OURS = {
    "bootstrap.servers": "servers",
    "group.id": "group",
    "isolation.level": "isolation",
    "enable.auto.commit": None,
    "enable.auto.offset.store": None,
    "auto.offset.reset": "on_offset_out_of_range",
    "enable.partition.eof": None,
    "transactional.id": None,
    "enable.idempotence": None,
    "security.protocol": "security",
    "sasl.mechanisms": "sasl",
    "sasl.mechanism": "sasl",
    "sasl.username": "username",
    "sasl.password": "password",
    "ssl.ca.location": "ca_file",
    "ssl.key.password": "key_password",
}


@dataclass(frozen=True)
class Connection:
    """How a cluster is reached; secrets are references, read where a client is made."""

    servers: str
    security: str = "plaintext"
    sasl: str | None = None
    username: str | None = None
    password: Secret | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    key_password: Secret | None = None
    oauth_url: str | None = None
    more: tuple[str, ...] = ()

    def settings(self, **own: Any) -> dict[str, Any]:
        """The settings of a client."""
        told: dict[str, Any] = {"bootstrap.servers": self.servers, "security.protocol": self.security, "client.id": "tiebeam"}
        told["log_level"] = 2  # what goes wrong is told by errors, not beside them
        if self.sasl is not None:
            told["sasl.mechanisms"] = self.sasl
        if self.oauth_url is not None:
            told |= {"sasl.oauthbearer.method": "oidc", "sasl.oauthbearer.token.endpoint.url": self.oauth_url}
        oauth = self.sasl == "OAUTHBEARER"
        secret = self.password.resolve() if self.password is not None else None
        names = {
            "sasl.oauthbearer.client.id" if oauth else "sasl.username": self.username,
            "sasl.oauthbearer.client.secret" if oauth else "sasl.password": secret,
            "ssl.ca.location": self.ca_file,
            "ssl.certificate.location": self.certificate_file,
            "ssl.key.location": self.key_file,
            "ssl.key.password": self.key_password.resolve() if self.key_password is not None else None,
        }
        told |= {name: value for name, value in names.items() if value is not None}
        return told | dict(setting.split("=", 1) for setting in self.more) | own

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the settings themselves."""
        if not self.servers.strip():
            yield Problem("no broker given", "servers", "HOST:PORT of one broker or more, separated by commas")
        for server in filter(None, self.servers.split(",")):
            if not re.fullmatch(r"(\w+://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", server.strip()):
                yield Problem(f"{server!r} is no address of a broker", "servers", "HOST:PORT")
        if self.security.startswith("sasl") != (self.sasl is not None):
            yield Problem(
                f"security={self.security} with sasl={self.sasl}", "sasl", "security=sasl_ssl or sasl_plaintext, with a sasl mechanism"
            )
        if self.sasl is not None and (self.username is None or self.password is None):
            yield Problem(f"{self.sasl} needs a username and a password", "username", "username=NAME, password=env:NAME or file:PATH")
        if (self.oauth_url is not None) != (self.sasl == "OAUTHBEARER"):
            yield Problem("OAUTHBEARER and oauth_url go together", "oauth_url", "the URL that gives tokens")
        for setting in self.more:
            yield from _trouble_of(setting)


def _trouble_of(setting: str) -> Iterator[Problem]:
    name, given, value = setting.partition("=")
    if not given:
        yield Problem(f"{setting!r} is no setting", "client_config", "write name=value")
    elif name in _OURS:
        option = _OURS[name]
        yield Problem(f"{name} is set by tiebeam", "client_config", f"use the option {option}" if option else "delivery depends on it")
    elif re.search(r"password|secret|sasl\.jaas|\.pem$", name):
        yield Problem(f"{name} is a secret", "client_config", "give it by reference: password, key_password")
    elif trouble := _refused_by_the_library(name, value):
        yield Problem(trouble[0], "client_config", trouble[1])


def _refused_by_the_library(name: str, value: str) -> tuple[str, str] | None:
    """Why librdkafka does not take a setting, and what to do."""
    import confluent_kafka

    try:
        confluent_kafka.Consumer({"group.id": "check", "log_level": 0, name: value}).close()
    except confluent_kafka.KafkaException as e:
        told = e.args[0].str()
        if "No such configuration property" in told:
            near = difflib.get_close_matches(name, _known(), n=1)
            return f"there is no setting {name!r}", f"did you mean {near[0]}?" if near else "see CONFIGURATION.md of librdkafka"
        return told, "see CONFIGURATION.md of librdkafka"
    except (TypeError, ValueError) as e:
        return str(e), "see CONFIGURATION.md of librdkafka"
    return None


@functools.cache
def _known() -> tuple[str, ...]:
    return (
        "fetch.min.bytes", "fetch.max.bytes", "fetch.wait.max.ms", "fetch.queue.backoff.ms", "max.partition.fetch.bytes",
        "queued.max.messages.kbytes", "queued.min.messages", "message.max.bytes", "receive.message.max.bytes", "socket.timeout.ms",
        "socket.keepalive.enable", "linger.ms", "batch.size", "compression.type", "compression.level", "acks", "request.timeout.ms",
        "message.timeout.ms", "transaction.timeout.ms", "queue.buffering.max.messages", "queue.buffering.max.kbytes", "client.rack",
        "metadata.max.age.ms", "reconnect.backoff.ms", "reconnect.backoff.max.ms", "broker.address.family", "check.crcs", "debug",
    )  # fmt: skip


class Cluster:
    """What a cluster says of its topics."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.trouble: list[str] = []
        self.admin = self._client()

    def _client(self) -> Any:
        from confluent_kafka.admin import AdminClient

        return AdminClient(self.connection.settings(error_cb=self._heard))

    def _heard(self, error: Any) -> None:
        self.trouble.append(error.str())

    def topics(self, secs: float = ANSWER_SECS) -> dict[str, int]:
        """The number of partitions of each topic; raises ConfigError when no broker answers.

        A topic that is just being made has no leader yet: it is waited for, since to leave it out would be to lose what it holds.
        """
        import confluent_kafka

        until = time.monotonic() + secs
        while True:
            try:
                found = self.admin.list_topics(timeout=secs).topics
            except confluent_kafka.KafkaException as e:
                raise ConfigError(self.unreachable(e)) from None
            if not any(topic.error and topic.error.retriable() for topic in found.values()) or time.monotonic() > until:
                return {name: len(topic.partitions) for name, topic in found.items() if topic.error is None}
            time.sleep(0.1)

    def unreachable(self, error: Any) -> Problem:
        """Says why a cluster cannot be reached, as far as the library knows."""
        self.admin.poll(0)
        causes = [cause for cause in self.trouble if "brokers are down" not in cause] or [error.args[0].str()]
        said = re.sub(r"^[^ ]*://?[^ ]*: |^[^:]+:\d+/\w+: ", "", causes[0])
        return Problem(f"no broker answers: {said}", "servers", _advice(said))

    def offsets(
        self, partitions: Iterable[tuple[str, int]], spec: Any, committed: bool, secs: float = ANSWER_SECS
    ) -> dict[tuple[str, int], int]:
        """Offsets of partitions: `spec` says which, `committed` leaves out what transactions have not committed.

        A partition between two leaders is asked again; KafkaException when there is no answer in time.
        """
        from confluent_kafka import OFFSET_INVALID, IsolationLevel, KafkaError, KafkaException, TopicPartition

        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        left = {TopicPartition(topic, number): spec for topic, number in partitions}
        found: dict[tuple[str, int], int] = {}
        until = time.monotonic() + secs
        trouble = KafkaException(KafkaError(KafkaError._TIMED_OUT))
        while left:
            patience = max(0.1, min(5.0, until - time.monotonic()))
            answers = self.admin.list_offsets(left, isolation_level=level, request_timeout=patience)
            for place, answer in answers.items():
                try:
                    offset = answer.result(secs + 5).offset
                except KafkaException as e:
                    trouble = e
                    continue
                if offset != OFFSET_INVALID:
                    found[place.topic, place.partition] = offset
                    del left[place]
            if left and time.monotonic() > until:
                raise trouble
            if left:
                self.admin = self._client()  # this one may wait for a leader that is dead
                time.sleep(0.1)
        return found

    def create(self, topic: str, partitions: int, replication: int, settings: Mapping[str, str]) -> None:
        """Creates a topic unless it is there."""
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.admin import NewTopic

        made = self.admin.create_topics([NewTopic(topic, partitions, replication, config=dict(settings))], operation_timeout=ANSWER_SECS)
        try:
            made[topic].result(ANSWER_SECS + 5)
        except KafkaException as e:
            if e.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise ConfigError(
                    Problem(f"the topic {topic} cannot be created: {e.args[0].str()}", "topic", "create it, or correct the settings")
                ) from None


def _advice(said: str) -> str:
    lower = said.lower()
    if "authentication" in lower or "sasl" in lower:
        return "check username, password and sasl"
    if "ssl" in lower or "certificate" in lower:
        return "check ca_file, certificate_file and security"
    if "resolve" in lower:
        return "the name of the host is not known here"
    return "check the address, and that a broker runs there and can be reached from here"


def host() -> str:
    """The name of this machine, for names that people look at."""
    return re.sub(r"[^\w.-]", "-", socket.gethostname())


def transient(error: Any, what: str) -> TransientError:
    """An error of the library as one that is tried again."""
    return TransientError(f"{what}: {error.str() if hasattr(error, 'str') else json.dumps(str(error))}")
