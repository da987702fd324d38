"""Clients of Kafka: the settings that a connection needs, what a cluster says of its topics, and errors in plain words.

Built on confluent-kafka, and so on librdkafka: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import difflib
import functools
import re
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tiebeam.errors import ConfigError, Problem
from tiebeam.options import Secret

ANSWER_SECS = 15.0
PING_SECS = 8.0
REFUSED_SECS = 3.0
"""How long a cluster is asked that refuses who asks: one of its brokers may still be starting."""

DENIED = (29, 30, 31, 53)
"""The numbers of errors that say that a right is lacking: on a topic, a group, the cluster, a transactional id."""

_SECRET = re.compile(r"password|secret|sasl\.jaas|\.pem$|private\.key")

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
    "sasl.oauthbearer.client.id": "username",
    "sasl.oauthbearer.client.secret": "password",
    "sasl.oauthbearer.token.endpoint.url": "oauth_url",
    "ssl.ca.location": "ca_file",
    "ssl.certificate.location": "certificate_file",
    "ssl.key.location": "key_file",
    "ssl.key.password": "key_password",
    "compression.type": "compression",
    "compression.codec": "compression",
    "message.max.bytes": "max_message_bytes",
    "transaction.timeout.ms": None,
    "logger": None,
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

    def client(self, kind: Callable[[dict[str, Any]], Any], own: dict[str, Any], defaults: dict[str, Any] | None = None) -> Any:
        """A client of the library with the settings of this connection; those of `client_config` go before the defaults."""
        from confluent_kafka import KafkaException

        try:
            return kind((defaults or {}) | self.settings() | own)
        except KafkaException as e:
            said = re.sub(r"^Failed to create \w+(?: client)?: ", "", e.args[0].str())
            told = [name for setting, name in _OURS.items() if name and setting in said and getattr(self, name, None)]
            given = f" ({getattr(self, told[0])})" if told and told[0].endswith("_file") else ""
            fix = "a file in PEM format that can be read here and on every worker" if given else "see CONFIGURATION.md of librdkafka"
            raise ConfigError(Problem(f"the client cannot be made: {said}{given}", told[0] if told else "client_config", fix)) from None

    def settings(self) -> dict[str, Any]:
        told: dict[str, Any] = {"bootstrap.servers": self.servers, "security.protocol": self.security, "client.id": "tiebeam"}
        told["log_level"] = 2  # what goes wrong is told by errors, not beside them
        if self.sasl is not None:
            told["sasl.mechanisms"] = self.sasl
        if self.oauth_url is not None:
            told |= {"sasl.oauthbearer.method": "oidc", "sasl.oauthbearer.token.endpoint.url": self.oauth_url}
        oauth = self.sasl == "OAUTHBEARER"
        names = {
            "sasl.oauthbearer.client.id" if oauth else "sasl.username": self.username,
            "sasl.oauthbearer.client.secret" if oauth else "sasl.password": self.password,
            "ssl.ca.location": self.ca_file,
            "ssl.certificate.location": self.certificate_file,
            "ssl.key.location": self.key_file,
            "ssl.key.password": self.key_password,
        }
        told |= {name: value for name, value in names.items() if value is not None}
        for setting in self.more:
            name, _, value = setting.partition("=")
            told[name] = Secret(value) if _SECRET.search(name) else value
        return {name: value.resolve() if isinstance(value, Secret) else value for name, value in told.items()}

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
    elif _SECRET.search(name) and value.partition(":")[0] not in ("env", "file"):
        yield Problem(f"{name} is a secret", "client_config", f"give it by reference: {name}=env:NAME or file:PATH")
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
        "queued.max.messages.kbytes", "queued.min.messages", "receive.message.max.bytes", "socket.timeout.ms",
        "socket.keepalive.enable", "linger.ms", "batch.size", "compression.level", "acks", "request.timeout.ms",
        "message.timeout.ms", "queue.buffering.max.messages", "queue.buffering.max.kbytes", "client.rack",
        "metadata.max.age.ms", "reconnect.backoff.ms", "reconnect.backoff.max.ms", "broker.address.family", "check.crcs", "debug",
        "enable.ssl.certificate.verification", "ssl.endpoint.identification.algorithm", "ssl.cipher.suites", "ssl.keystore.location",
        "ssl.keystore.password", "ssl.ca.pem", "sasl.oauthbearer.scope", "sasl.oauthbearer.extensions", "sasl.kerberos.service.name",
    )  # fmt: skip


class Cluster:
    """What a cluster says of its topics."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.trouble: list[Any] = []
        self.admin = self._client()

    def _client(self) -> Any:
        from confluent_kafka.admin import AdminClient

        return self.connection.client(AdminClient, {"error_cb": self.trouble.append})

    def topics(self, secs: float = ANSWER_SECS) -> dict[str, int]:
        """The number of partitions of each topic; raises ConfigError when no broker answers.

        A topic that is just being made has no leader yet: it is waited for, since to leave it out would be to lose what it holds.
        """
        import confluent_kafka

        began = time.monotonic()
        while True:
            try:
                found = self.admin.list_topics(timeout=min(secs, 1.0)).topics
            except confluent_kafka.KafkaException as e:
                if time.monotonic() > began + (min(secs, REFUSED_SECS) if self._refused() else secs):
                    raise ConfigError(self.unreachable(e)) from None
                continue
            if not any(topic.error and topic.error.retriable() for topic in found.values()) or time.monotonic() > began + secs:
                return {name: len(topic.partitions) for name, topic in found.items() if topic.error is None}
            time.sleep(0.1)

    def _refused(self) -> bool:
        """Whether brokers were reached, and who asks was turned away."""
        from confluent_kafka import KafkaError

        self.admin.poll(0)
        return any(error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) or "SSL" in error.str() for error in self.trouble)

    def unreachable(self, error: Any) -> Problem:
        """Says why a cluster cannot be reached, as far as the library knows."""
        from confluent_kafka import KafkaError

        self.admin.poll(0)
        causes = [cause.str() for cause in self.trouble if cause.code() != KafkaError._ALL_BROKERS_DOWN] or [error.args[0].str()]
        said = re.sub(r"^[^ ]*://?[^ ]*: |^[^:]+:\d+/\w+: ", "", causes[0])
        where, fix = _advice(said, self.connection)
        return Problem(f"no broker answers: {said}", where, fix)

    def lacking(self, topic: str, rights: Collection[str]) -> list[str]:
        """The rights (READ, WRITE …) on a topic that this user does not have; all of them when it may not even be seen."""
        from confluent_kafka import KafkaError, KafkaException, TopicCollection

        asked = self.admin.describe_topics(TopicCollection([topic]), include_authorized_operations=True, request_timeout=PING_SECS)
        try:
            granted = asked[topic].result(PING_SECS + 5).authorized_operations
        except KafkaException as e:
            if e.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return []  # it is not there, or does not answer: others say so
            return list(rights)
        names = {right.name for right in granted or ()}
        return [right for right in rights if right not in names] if granted is not None else []

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

    def create(
        self, topic: str, partitions: int, replication: int, settings: Mapping[str, str], option: str, only_try: bool = False
    ) -> bool:
        """Creates a topic unless it is there; `only_try` asks whether it could be. False when it is there."""
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.admin import NewTopic

        wanted = NewTopic(topic, partitions, replication, config=dict(settings))
        made = self.admin.create_topics([wanted], operation_timeout=ANSWER_SECS, validate_only=only_try)
        try:
            made[topic].result(ANSWER_SECS + 5)
            return True
        except KafkaException as e:
            if e.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            what, fix = f"the topic {topic} cannot be created: {e.args[0].str()}", "create it, or correct the settings"
            if e.args[0].code() in DENIED:
                what = f"there is no topic {topic} that this user may see, and no right to create it"
                fix = "create it, or grant Create to this user"
            raise ConfigError(Problem(what, option, fix)) from None


def denied(what: str, option: str, rights: Iterable[str]) -> Problem:
    """Says that this user may not do something."""
    return Problem(f"this user has no right {what}", option, f"grant {', '.join(right.capitalize() for right in rights)} to the user")


def _advice(said: str, connection: Connection) -> tuple[str, str]:
    """The option that is likely wrong, and what to do about it."""
    lower = said.lower()
    if "mechanism" in lower and ("handshake" in lower or "unsupported" in lower):
        return "sasl", "that listener does not take this mechanism: check sasl, security and the port"
    if "oauthbearer token" in lower:
        return "oauth_url", "check oauth_url, username (client id) and password (client secret)"
    if "authentication" in lower or "sasl" in lower:
        return "password", "check username, password and sasl"
    if "certificate could not be verified" in lower or "certificate verify failed" in lower:
        return "ca_file", "give the certificate of the authority that signed the brokers'; a broker's must name the host given in servers"
    if "alert" in lower and connection.certificate_file is None:
        return "certificate_file", "the brokers ask for a certificate: give certificate_file and key_file"
    if "alert" in lower:
        return "certificate_file", "the brokers do not take this certificate: check certificate_file, key_file and who signed them"
    if "ssl" in lower or "certificate" in lower:
        return "security", "that listener may not speak TLS: check security and the port"
    if "resolve" in lower:
        return "servers", "the name of the host is not known here"
    if "refused" not in lower and any(map(_listens, connection.servers.split(","))):
        return "security", f"something listens there that does not take security={connection.security}: check security and the port"
    return "servers", "check the address, and that a broker runs there and can be reached from here"


def _listens(server: str) -> bool:
    host, _, port = server.rpartition("://")[2].strip().rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True
