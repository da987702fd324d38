"""Kafka: topics as streams, or up to a declared end as bounded inputs; messages in transactions.

Native, on confluent-kafka: install `tiebeam[kafka]`. https://kafka.apache.org/protocol.html
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import re
import zoneinfo
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

import apache_beam as beam
import pyarrow as pa

from tiebeam.connectors import Sink, Source
from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, Problem
from tiebeam.io import _kafka_writer
from tiebeam.io._endless import ReadEndless
from tiebeam.io._event_time import UNIX
from tiebeam.io._json_shown import shown_schema
from tiebeam.io._kafka_client import ANSWER_SECS, DENIED, PING_SECS, Cluster, Connection, denied
from tiebeam.io._kafka_messages import METADATA, MessageRows
from tiebeam.io._kafka_reader import Topics, parted, partitions_of
from tiebeam.io._kafka_writer import DirectWriter, StagingWriter, Target
from tiebeam.io._payloads import EventTime
from tiebeam.io._protobuf import decoder_of
from tiebeam.io._schema_registry import SchemaRegistry
from tiebeam.io._text_types import declared_schema, refuse_unsupported
from tiebeam.io._typed_files import plain
from tiebeam.options import Secret, option
from tiebeam.rows import RowBatch, concat
from tiebeam.staging import Staged, Writer

SAMPLED_MESSAGES = 1000

_OFFSETS = re.compile(r"\s*[\w.-]+/\d+:\d+\s*(,\s*[\w.-]+/\d+:\d+\s*)*")
_SECURITY = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_SASL = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


class ReadFromKafka(Source):
    """Reads topics: for ever, or up to `until` as a bounded input.

    Out: the columns of `schema`, or (JSON) those that the last messages show, or those of the writer's Avro schema; `metadata` adds
        `kafka_key`, `kafka_headers` and so on. `row_position` is `topic/partition/offset`.
    Errors: messages that cannot be parsed are dead letters: `malformed`, `no_value`, `unknown_schema`, `no_schema_id`, `bad_event_time` and
        those of the format. Offsets that have expired, or a deleted topic, stop the job with the way to go on.
    Delivery: exactly once into the job: where reading goes on is part of the runner's checkpoint. The group only shows the lag.
    Time: `row_time` is the time of the message, or `event_time`. The watermark is that of the slowest partition, its latest row less
        `disorder_secs`; a partition with nothing to read is as far as now less `lag_secs`.

    Example:
        >>> ReadFromKafka("localhost:9092", ("purchases",), event_time="at")
        ReadFromKafka(servers='localhost:9092', topics=('purchases',), event_time='at')
    """

    bounded = False
    formats = ("json", "csv", "avro", "protobuf", "raw")

    servers: str = option(help="Brokers, HOST:PORT separated by commas", example="localhost:9092")
    topics: tuple[str, ...] = option((), help="Topics to read; one that begins with ^ is a pattern", example="purchases,^clicks-.*")
    partitions: tuple[str, ...] = option((), help="Single partitions to read, instead of topics", example="purchases/0,purchases/3")
    format: str = option("json", help="What messages hold", choices=formats)
    schema: str | None = option(None, help="Names and types of the columns (json, csv)", example="id bigint, at timestamptz")
    delimiter: str = option(",", help="The character between fields (csv)")
    avro_schema: str | None = option(None, help="The Avro schema of the messages, as JSON, where no registry has it")
    descriptor_file: str | None = option(
        None, help="Compiled schema of protobuf messages, where no registry has it: protoc --include_imports", example="shop.desc"
    )
    message: str | None = option(None, help="Full name of the message in descriptor_file", example="shop.v1.Purchase")
    schema_registry: str | None = option(None, help="URL of a schema registry; messages are in its frame", example="http://registry:8081")
    registry_user: str | None = option(None, help="User of the schema registry")
    registry_password: Secret | None = option(None, help="Password of the schema registry")
    start: str = option(
        "earliest", help="Where to begin: earliest, latest, committed (by the group), a time, or offsets", example="2026-11-01T00:00:00Z"
    )
    until: str | None = option(None, help="Where to end: latest, a time, or offsets; the input is bounded then", example="orders/0:1000")
    event_time: str | None = option(
        None, help="The column that holds when each row happened; default: the time of the message", example="at"
    )
    event_time_format: str = option("iso", help="How event_time is written: iso, unix_secs, unix_millis, unix_micros or a strptime format")
    event_time_zone: str = option("UTC", help="The zone of event times that name none", example="Europe/Paris")
    disorder_secs: float = option(5.0, help="How much earlier than the latest row of its partition one may be", unit="seconds", low=0)
    lag_secs: float = option(1.0, help="How much earlier than now a row may be when it arrives in an idle partition", unit="seconds", low=0)
    metadata: tuple[str, ...] = option((), help="What else of a message becomes a column kafka_…", choices=METADATA, example="key,headers")
    key_format: str = option("text", help="How kafka_key is given", choices=("text", "bytes"))
    null_values: str = option(
        "reject",
        help="Messages without a value are dead letters, passed over, or rows with row_change=delete",
        choices=("reject", "skip", "delete"),
    )
    isolation: str = option(
        "read_committed", help="Whether messages of open and aborted transactions are read", choices=("read_committed", "read_uncommitted")
    )
    on_offset_out_of_range: str = option(
        "error", help="What to do when messages have expired before they were read", choices=("error", "earliest", "latest")
    )
    group: str = option("tiebeam", help="The consumer group that shows how far reading is")
    commit_offsets: bool = option(True, help="Whether the group is told how far reading is; advice only")
    poll_secs: float = option(1.0, help="How long an idle reader waits until it looks again; whole seconds on Flink", unit="seconds", low=0)
    security: str = option("plaintext", help="How the connection is secured", choices=_SECURITY)
    sasl: str | None = option(None, help="How the user is authenticated", choices=_SASL)
    username: str | None = option(None, help="User, or client id of OAUTHBEARER")
    password: Secret | None = option(None, help="Password, or client secret of OAUTHBEARER", example="env:KAFKA_PASSWORD")
    oauth_url: str | None = option(None, help="Where OAUTHBEARER tokens come from")
    ca_file: str | None = option(None, help="Certificates of the authority that signed the brokers'", example="/etc/kafka/ca.pem")
    certificate_file: str | None = option(None, help="Certificate of this client (mutual TLS)")
    key_file: str | None = option(None, help="Private key of this client (mutual TLS)")
    key_password: Secret | None = option(None, help="Password of the private key")
    client_config: tuple[str, ...] = option((), help="Other settings of librdkafka, name=value", example="fetch.max.bytes=10000000")

    def __post_init__(self):
        super().__post_init__()
        self.bounded = self.until is not None
        self._named = pa.schema([])
        self._range: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...] | None] | None = None
        self._columns: pa.Schema | None = None

    def check(self) -> Iterable[Problem]:
        yield from self.connection.problems()
        if bool(self.topics) == bool(self.partitions):
            yield Problem("give topics or partitions", "topics", "topics=purchases, or partitions=purchases/0")
        yield from _troubles_of_patterns(self.topics)
        for name in self.partitions:
            if not re.fullmatch(r"[\w.-]+/\d+", name):
                yield Problem(f"{name!r} is no partition", "partitions", "write TOPIC/NUMBER")
        for where, given, words in (("start", self.start, ("earliest", "latest", "committed")), ("until", self.until, ("latest",))):
            if given is not None and given not in words and not _OFFSETS.fullmatch(given) and _moment(given) is None:
                fix = f"{', '.join(words)}, a time such as 2026-11-01T00:00:00Z, or offsets such as purchases/0:1000"
                yield Problem(f"{given!r} is no place in a topic", where, fix)
        yield from self._troubles_of_format()

    def _troubles_of_format(self) -> Iterator[Problem]:
        try:
            refuse_unsupported(declared_schema(self.schema or ""))
        except ValueError as e:
            yield Problem(str(e), "schema", "write names and types, such as: id bigint, price decimal(12,2)")
        except ConfigError as e:
            yield from e.problems
        if self.format == "csv" and self.schema is None:
            yield Problem("csv messages have no header", "schema", "name the columns: id bigint, at timestamptz")
        if self.format == "avro" and (self.avro_schema is None) == (self.schema_registry is None):
            yield Problem("avro needs a schema_registry or an avro_schema", "schema_registry", "give one of them")
        if self.format == "protobuf" and (self.descriptor_file is None) == (self.schema_registry is None):
            yield Problem("protobuf needs a schema_registry or a descriptor_file", "schema_registry", "give one of them")
        if (self.descriptor_file is None) != (self.message is None):
            yield Problem("descriptor_file and message go together", "message", "the full name of a message in the file")
        if len(self.delimiter) != 1 or not self.delimiter.isascii():
            yield Problem(f"{self.delimiter!r} is not one character", "delimiter")
        if self.event_time_format not in ("iso", *UNIX) and "%" not in self.event_time_format:
            yield Problem("is no format of a time", "event_time_format", f"iso, {', '.join(UNIX)}, or a strptime format such as %d/%m/%Y")
        try:
            zoneinfo.ZoneInfo(self.event_time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            yield Problem(f"there is no time zone {self.event_time_zone!r}", "event_time_zone", "a name of the IANA database")

    @functools.cached_property
    def connection(self) -> Connection:
        return _connection(self)

    # ---- what a Source does

    def ping(self) -> None:
        if self.descriptor_file is not None and self.message is not None:
            decoder_of(self.descriptor_file, self.message)
        if self.schema_registry is not None:
            SchemaRegistry.at(self.schema_registry, self.registry_user, self.registry_password).ping()
        cluster = Cluster(self.connection)
        found = cluster.topics(PING_SECS)
        problems = [self._absent(cluster, topic, found) for topic in self.topics if not partitions_of(found, [topic])]
        for topic, number in map(parted, self.partitions):
            if found.get(topic, 0) <= number:
                problems.append(Problem(f"there is no partition {topic}/{number}", "partitions", f"{topic} has {found.get(topic, 0)}"))
        names = self.partitions or partitions_of(found, self.topics)
        present = sorted({topic for topic, _ in map(parted, names)} & set(found))
        problems += [denied(f"to read {topic}", "topics", lacking) for topic in present if (lacking := cluster.lacking(topic, ["READ"]))]
        if problems:
            raise ConfigError(*problems)

    @staticmethod
    def _absent(cluster: Cluster, topic: str, found: dict[str, int]) -> Problem:
        if not topic.startswith("^") and cluster.lacking(topic, ["DESCRIBE"]):
            return denied(f"to see a topic {topic}", "topics", ["Describe", "Read"])
        near = difflib.get_close_matches(topic.lstrip("^"), found, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(found)[:10]) or 'none that this user may see'}"
        return Problem(f"no topic {'matches' if topic.startswith('^') else 'is called'} {topic!r}", "topics", hint)

    def with_types(self, schema: pa.Schema) -> ReadFromKafka:
        """A copy that reads the columns named in a schema as the types given there; types of others are found out as before."""
        types = plain(schema)
        refuse_unsupported(types)
        typed = copy.copy(self)
        typed._named, typed._columns = types, None
        return typed

    def fingerprint(self) -> str | None:
        return str(self._between()) if self.bounded else None

    def sample(self, rows: int) -> RowBatch | None:
        parts = [r for r in self._last(min(rows, SAMPLED_MESSAGES), self._rows()) if isinstance(r, RowBatch)]
        alike = [part for part in parts if part.schema == parts[-1].schema]  # a registry may have had others before
        return concat(alike).slice(0, rows) if alike else None

    def read(self, begin: Any) -> beam.PCollection:
        return begin | "Stream" >> ReadEndless(self.source(), poll_secs=self.poll_secs, step=self.label)

    def decode(self, originals: list[bytes], positions: list[str | None], step: str) -> Iterable[RowBatch | Letters]:
        return self._rows().decode(originals, positions, step)

    # ---- what is read

    def source(self) -> Topics:
        """The partitions with their beginnings and ends: found out once, so that a retry reads the same."""
        first, last = self._between()
        return self._topics(self._rows(), begin=first, end=last)

    def _topics(self, rows: MessageRows, begin: Any, end: Any) -> Topics:
        return Topics(
            connection=self.connection,
            topics=self.topics,
            rows=rows,
            group=self.group,
            begin=begin,
            end=end,
            only=self.partitions,
            committed=self.isolation == "read_committed",
            out_of_range=self.on_offset_out_of_range,
            commit_offsets=self.commit_offsets,
            disorder=int(self.disorder_secs * 1_000_000),
            lag=int(self.lag_secs * 1_000_000),
            bounded=end is not None,
        )

    def _between(self) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...] | None]:
        """The offsets to begin with, and those to end before."""
        if self._range is None:
            cluster = Cluster(self.connection)
            names = list(self.partitions) or partitions_of(cluster.topics(), self.topics)
            first = self._placed(cluster, names, self.start)
            last = self._placed(cluster, names, self.until) if self.until is not None else None
            self._range = tuple(sorted(first.items())), None if last is None else tuple(sorted(last.items()))
        return self._range

    def _placed(self, cluster: Cluster, names: Sequence[str], place: str) -> dict[str, int]:
        """Offsets of a place; partitions without one begin with their first message."""
        from confluent_kafka.admin import OffsetSpec

        if place == "earliest":
            return {}
        if _OFFSETS.fullmatch(place):
            told = (part.strip().rpartition(":") for part in place.split(","))
            return {name: int(offset) for name, _, offset in told}
        if place == "committed":
            return _committed(cluster, self.group, names)
        spec = OffsetSpec.latest() if place == "latest" else OffsetSpec.for_timestamp(_moment(place) or 0)
        committed = self.isolation == "read_committed"
        found = cluster.offsets(map(parted, names), spec, committed)
        ends = cluster.offsets([p for p, offset in found.items() if offset < 0], OffsetSpec.latest(), committed)
        return {name: offset if (offset := found[parted(name)]) >= 0 else ends[parted(name)] for name in names}

    def _rows(self) -> MessageRows:
        columns = self._shown() if self.format in ("json", "csv") else pa.schema([])
        timed = EventTime(self.event_time, self.event_time_format, self.event_time_zone) if self.event_time is not None else None
        return MessageRows(
            step=self.label,
            format=self.format,
            columns=tuple((field.name, field.type) for field in columns),
            delimiter=self.delimiter,
            avro_schema=self.avro_schema,
            descriptor_file=self.descriptor_file,
            message=self.message,
            registry=self.schema_registry,
            registry_user=self.registry_user,
            registry_password=self.registry_password,
            event_time=timed,
            metadata=self.metadata,
            key_format=self.key_format,
            null_values=self.null_values,
        )

    def _shown(self) -> pa.Schema:
        """The columns: those declared, else those that the last messages show."""
        if self._columns is None:
            given = declared_schema(self.schema) if self.schema is not None else None
            if given is None:
                raw = MessageRows(step=self.label, format="raw")
                values = [
                    v for part in self._last(SAMPLED_MESSAGES, raw) if isinstance(part, RowBatch) for v in part.column("value").to_pylist()
                ]
                given = shown_schema(value[5:] if value.startswith(b"\0") else value for value in values)
                if not given.names and not self._named.names:
                    what = f"no message of {', '.join(self.topics or self.partitions)} shows what columns there are"
                    raise ConfigError(Problem(what, "schema", "name them: id bigint, at timestamptz"))
            known = {field.name: field.type for field in given} | {field.name: field.type for field in self._named}
            self._columns = pa.schema([*known.items()])
        return self._columns

    def _last(self, count: int, rows: MessageRows) -> list[RowBatch | Letters]:
        """The last messages of the partitions, as rows; more than `count` where offsets do not say how many there are."""
        from confluent_kafka.admin import OffsetSpec

        cluster = Cluster(self.connection)
        names = list(self.partitions) or partitions_of(cluster.topics(), self.topics)
        lows = cluster.offsets(map(parted, names), OffsetSpec.earliest(), False)
        ends = cluster.offsets(map(parted, names), OffsetSpec.latest(), self.isolation == "read_committed")
        each = max(1, count // max(1, len(names)))
        for back in (each, 4 * each, 16 * each):  # markers of transactions have offsets too
            begin = tuple((name, max(lows[parted(name)], ends[parted(name)] - back)) for name in names)
            found = list(self._topics(rows, begin, tuple((name, ends[parted(name)]) for name in names)).read_all())
            if sum((part.batch if isinstance(part, Letters) else part).num_rows for part in found) >= each * len(names):
                break
        return found


class WriteToKafka(Sink):
    """Writes rows as messages.

    In: any schema (json), what Avro can hold (avro), or a column `value` (raw). `row_time` becomes the time of a message; `row_change` =
        delete one without value.
    Errors: rows that make too large a message are refused as `too_large`. A schema that the registry does not take stops the job.
    Delivery: exactly once for readers of committed messages: rows are staged in files, and each commit is sent in one transaction that also
        notes it in the ledger topic. With delivery=at_least_once rows are sent at once, and again when a bundle is tried again.
    Time: messages of one key keep their order; rows of one key have one writer.

    Example:
        >>> WriteToKafka("localhost:9092", "totals", key="shop", staging="gs://bucket/staging")
        WriteToKafka(servers='localhost:9092', topic='totals', key='shop', staging='gs://bucket/staging')
    """

    modes: ClassVar[tuple[str, ...]] = ("append",)
    takes_changes: ClassVar[bool] = True
    takes_unbounded: ClassVar[bool] = True

    servers: str = option(help="Brokers, HOST:PORT separated by commas", example="localhost:9092")
    topic: str = option(help="Topic; created when missing", example="totals")
    mode: str = option("append", help="Messages are added to the topic", choices=modes)
    format: str = option(
        "json", help="What messages hold; avro is registered as the schema of TOPIC-value", choices=("json", "avro", "raw")
    )
    schema_registry: str | None = option(None, help="URL of the schema registry (avro)", example="http://registry:8081")
    registry_user: str | None = option(None, help="User of the schema registry")
    registry_password: Secret | None = option(None, help="Password of the schema registry", example="env:REGISTRY_PASSWORD")
    key: str | None = option(None, help="Column whose text is the key of the message, and so chooses its partition", example="shop")
    headers: tuple[str, ...] = option((), help="Columns that become headers instead of part of the value", example="trace_id")
    delivery: str = option("exactly_once", help="Transactions with a ledger, or sent at once", choices=("exactly_once", "at_least_once"))
    staging: str | None = option(
        None, help="Folder where commits wait, which every worker sees (exactly_once)", example="gs://bucket/staging"
    )
    ledger: str = option("tiebeam-ledger", help="Topic that lists the commits sent (exactly_once); created when missing")
    max_message_bytes: int = option(1_000_000, help="A larger message is refused", unit="bytes", low=1_000)
    compression: str = option("lz4", help="How batches of messages are compressed", choices=("none", "gzip", "snappy", "lz4", "zstd"))
    partitions: int = option(4, help="Partitions of a topic that is created", low=1)
    replication: int = option(-1, help="Copies of a topic that is created; -1: as the brokers are set", low=-1)
    topic_config: tuple[str, ...] = option((), help="Settings of a topic that is created, name=value", example="retention.ms=86400000")
    security: str = option("plaintext", help="How the connection is secured", choices=_SECURITY)
    sasl: str | None = option(None, help="How the user is authenticated", choices=_SASL)
    username: str | None = option(None, help="User, or client id of OAUTHBEARER")
    password: Secret | None = option(None, help="Password, or client secret of OAUTHBEARER", example="env:KAFKA_PASSWORD")
    oauth_url: str | None = option(None, help="Where OAUTHBEARER tokens come from")
    ca_file: str | None = option(None, help="Certificates of the authority that signed the brokers'", example="/etc/kafka/ca.pem")
    certificate_file: str | None = option(None, help="Certificate of this client (mutual TLS)")
    key_file: str | None = option(None, help="Private key of this client (mutual TLS)")
    key_password: Secret | None = option(None, help="Password of the private key")
    client_config: tuple[str, ...] = option((), help="Other settings of librdkafka, name=value", example="linger.ms=5")

    def check(self) -> Iterable[Problem]:
        yield from self.target.connection.problems()
        if self.delivery == "exactly_once" and not self.staging:
            yield Problem(
                "exactly_once stages commits in a folder", "staging", "a folder that every worker sees, or delivery=at_least_once"
            )
        for where, name in (("topic", self.topic), ("ledger", self.ledger)):
            if not re.fullmatch(r"[\w.-]{1,249}", name):
                yield Problem(f"{name!r} is no name of a topic", where, "letters, digits, ., _ and -")
        if (self.format == "avro") != (self.schema_registry is not None):
            yield Problem("format=avro and schema_registry go together", "schema_registry", "readers find the schema of a message there")
        if self.ledger == self.topic:
            yield Problem("the ledger is the topic itself", "ledger", "name another topic")
        for setting in self.topic_config:
            if "=" not in setting:
                yield Problem(f"{setting!r} is no setting", "topic_config", "write name=value")

    @property
    def target(self) -> Target:
        return Target(
            connection=_connection(self),
            topic=self.topic,
            step=self.label,
            format=self.format,
            registry=self.schema_registry,
            registry_user=self.registry_user,
            registry_password=self.registry_password,
            key=self.key,
            headers=self.headers,
            max_message_bytes=self.max_message_bytes,
            staging=self.staging if self.delivery == "exactly_once" else None,
            ledger=self.ledger,
            partitions=self.partitions,
            replication=self.replication,
            topic_config=self.topic_config,
            compression=self.compression,
        )

    def location(self) -> str:
        return self.target.location

    def ping(self) -> None:
        self.target.ping()

    def writer(self, run_id: str) -> Writer:
        return StagingWriter(self.target, run_id) if self.delivery == "exactly_once" else DirectWriter(self.target)

    def publish(self, run_id: str, staged: list[Staged]) -> bool:
        return _kafka_writer.publish(self.target, run_id, staged) if self.delivery == "exactly_once" else True

    def is_published(self, run_id: str) -> bool:
        return _kafka_writer.is_published(self.target, run_id) if self.delivery == "exactly_once" else True

    def discard(self, run_id: str) -> None:
        if self.delivery == "exactly_once":
            with contextlib.suppress(Exception):
                _kafka_writer.discard(self.target, run_id)


def _troubles_of_patterns(topics: Iterable[str]) -> Iterator[Problem]:
    for topic in topics:
        try:
            re.compile(topic if topic.startswith("^") else "")
        except re.error as e:
            yield Problem(f"{topic!r} is no pattern: {e}", "topics", "a regular expression behind the ^")
        if not topic.startswith("^") and not re.fullmatch(r"[\w.-]{1,249}", topic):
            yield Problem(f"{topic!r} is no name of a topic", "topics", "letters, digits, ., _ and -; a pattern begins with ^")


def _moment(text: str) -> int | None:
    """A time in milliseconds since 1970; None when the text is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _committed(cluster: Cluster, group: str, names: Sequence[str]) -> dict[str, int]:
    from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition

    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(*parted(name)) for name in names])
    try:
        found = cluster.admin.list_consumer_group_offsets([asked], request_timeout=ANSWER_SECS)[group].result(ANSWER_SECS + 5)
    except KafkaException as e:
        if e.args[0].code() in DENIED:
            raise ConfigError(denied(f"to see the offsets of the group {group}", "group", ["READ"])) from None
        raise ConfigError(Problem(f"the offsets of group {group} cannot be had: {e.args[0].str()}", "group")) from None
    return {f"{place.topic}/{place.partition}": place.offset for place in found.topic_partitions if place.offset >= 0}


def _connection(of: Any) -> Connection:
    return Connection(
        servers=of.servers,
        security=of.security,
        sasl=of.sasl,
        username=of.username,
        password=of.password,
        ca_file=of.ca_file,
        certificate_file=of.certificate_file,
        key_file=of.key_file,
        key_password=of.key_password,
        oauth_url=of.oauth_url,
        more=of.client_config,
    )
