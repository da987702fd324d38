"""Pub/Sub: subscriptions as streams, or until they are empty as bounded inputs; topics as sinks.

Native, on google-cloud-pubsub: install `tiebeam[gcp]`. https://cloud.google.com/pubsub/docs/overview
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import time
import zoneinfo
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

import apache_beam as beam
import pyarrow as pa

from tiebeam.connectors import Sink, Source
from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.io import _pubsub_writer
from tiebeam.io._avro_schema import arrow_schema
from tiebeam.io._endless import ReadEndless
from tiebeam.io._event_time import UNIX
from tiebeam.io._json_shown import shown_schema
from tiebeam.io._payloads import EventTime
from tiebeam.io._pubsub_client import EMULATOR, SUBSCRIPTION, TOPIC, Connection, ask, needed, schema_of
from tiebeam.io._pubsub_messages import METADATA, DealFn, MessageRows, OnceFn, ParseFn, batch_of, first_ones
from tiebeam.io._pubsub_reader import Leases, Subscription, leases_of
from tiebeam.io._pubsub_writer import StagingWriter, Target
from tiebeam.io._text_types import declared_schema, refuse_unsupported
from tiebeam.io._typed_files import plain
from tiebeam.options import Secret, option, standard
from tiebeam.rows import RowBatch, concat
from tiebeam.staging import Staged, Writer
from tiebeam.steps import apply_batches

SAMPLED_MESSAGES = 1000
SAMPLE_SECS = 10.0
SETTLE_SECS = 60.0
HERE = ("PrismRunner", "FnApiRunner", "BundleBasedDirectRunner", "DirectRunner", "SwitchingDirectRunner")
"""Runners that keep nothing beyond their process, which is this one."""


class ReadFromPubSub(Source):
    """Reads a subscription: for ever, or until it is empty as a bounded input.

    Out: the columns of `schema`, or of the Avro schema of the topic, or (JSON) those that some messages show; `attributes` become text
        columns, `metadata` adds `pubsub_message_id` and so on. `row_position` is `projects/…/subscriptions/…/message id`.
    Errors: messages that cannot be parsed are dead letters with their bytes: `malformed`, `no_value`, `bad_event_time` and those of the
        format. A subscription that is gone, or a right that is, stops the job.
    Delivery: a message is acknowledged when the runner has made it durable (Flink, Dataflow), else when the job has published. One that is
        delivered again within `horizon_secs` of the job's own time is dropped, by its id or by `id_attribute`. docs/pubsub.md.
    State: the ids of `horizon_secs`, on 16 keys.
    Time: `row_time` is that of the publication, of `event_time_attribute`, or of the column `event_time`. The watermark is the latest
        publication (or attribute) less `disorder_secs`; with nothing to read, now less `lag_secs`.

    Example:
        >>> ReadFromPubSub("projects/shop/subscriptions/orders", event_time="at")
        ReadFromPubSub(subscription='projects/shop/subscriptions/orders', event_time='at')
    """

    bounded = False
    formats = ("json", "csv", "avro", "raw")

    subscription: str = option(
        help="The subscription, a pull subscription", example="projects/shop/subscriptions/orders", place="pubsub_subscription"
    )
    format: str = option("json", help="What messages hold", choices=formats)
    schema: str | None = option(None, help="Names and types of the columns (json, csv)", example="id bigint, at timestamptz")
    delimiter: str = option(",", help="The character between fields (csv)")
    avro_schema: str | None = option(None, help="The Avro schema of the messages, as JSON; default: that of the topic")
    until: str | None = option(
        None, help="Where to end: empty, or a time, which what is read was published before; the input is bounded then", example="empty"
    )
    quiet_secs: float = option(10.0, help="With until: the end is reached when nothing has come for so long", unit="seconds", low=1)
    id_attribute: str | None = option(None, help="The attribute that tells messages from one another; default: their id", example="row_id")
    horizon_secs: int = option(
        600, help="How long a message is known when it is delivered again; 0: not at all", unit="seconds", low=0, high=86_400
    )
    acknowledge: str = option(
        "safe",
        help="When messages are acknowledged: safe, when a checkpoint or a publication has them; bundle, with each bundle on any runner",
        choices=("safe", "bundle"),
    )
    attributes: tuple[str, ...] = option((), help="Attributes that become text columns of their name", example="country,trace")
    metadata: tuple[str, ...] = option(
        (), help="What else of a message becomes a column pubsub_…", choices=METADATA, example="message_id,attributes"
    )
    event_time: str | None = option(None, help="The column that holds when each row happened; default: when it was published", example="at")
    event_time_attribute: str | None = option(None, help="The attribute that holds when each row happened", example="at")
    event_time_format: str = option("iso", help="How event times are written: iso, unix_secs, unix_millis, unix_micros or strptime's")
    event_time_zone: str = option("UTC", help="The zone of event times that name none", example="Europe/Paris")
    disorder_secs: float = option(10.0, help="How much earlier than the latest row so far one may be", unit="seconds", low=0)
    lag_secs: float = option(5.0, help="How much earlier than now a row may be when it comes after a silence", unit="seconds", low=0)
    readers: int = option(2, help="How many workers pull side by side, where the runner has several", low=1, high=100)
    deadline_secs: int = option(
        60,
        help="After so long the messages of a dead worker are delivered again",
        unit="seconds",
        low=10,
        high=600,
    )
    poll_secs: float = option(1.0, help="How long an idle reader waits until it looks again; whole seconds on Flink", unit="seconds", low=0)
    pubsub_endpoint: str | None = option(
        None,
        help="HOST:PORT of an emulator or a region; default: PUBSUB_EMULATOR_HOST, else Google's",
        example="localhost:8085",
    )
    credentials: Secret | None = option(
        None, help="Key of a service account; default: Google's default credentials", example="file:/etc/keys/reader.json"
    )

    def __post_init__(self):
        super().__post_init__()
        self.bounded = self.until is not None
        self.connection = Connection(self.pubsub_endpoint or standard(EMULATOR), self.credentials)
        self._named = pa.schema([])
        self._columns: pa.Schema | None = None
        self._avro: str | None = None

    def check(self) -> Iterable[Problem]:
        yield from Connection(self.pubsub_endpoint).problems()
        if not SUBSCRIPTION.fullmatch(self.subscription):
            yield Problem(f"{self.subscription!r} is no subscription", "subscription", "projects/PROJECT/subscriptions/NAME")
        if self.until not in (None, "empty") and _moment(self.until) is None:
            yield Problem(f"{self.until!r} is no end", "until", "empty, or a time such as 2026-11-01T00:00:00Z")
        if self.event_time is not None and self.event_time_attribute is not None:
            yield Problem("event_time and event_time_attribute are both given", "event_time", "give one of them")
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
        if self.avro_schema is not None:
            try:
                arrow_schema(json.loads(self.avro_schema))
            except ValueError as e:
                yield Problem(f"is no Avro schema of a record: {e}", "avro_schema", "the schema as JSON")
        if len(self.delimiter) != 1 or not self.delimiter.isascii():
            yield Problem(f"{self.delimiter!r} is not one character", "delimiter")
        if self.event_time_format not in ("iso", *UNIX) and "%" not in self.event_time_format:
            yield Problem("is no format of a time", "event_time_format", f"iso, {', '.join(UNIX)}, or a strptime format such as %d/%m/%Y")
        try:
            zoneinfo.ZoneInfo(self.event_time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            yield Problem(f"there is no time zone {self.event_time_zone!r}", "event_time_zone", "a name of the IANA database")

    # ---- what a Source does

    def ping(self) -> None:
        """Also tries the right to read: the deadline of a message that is none is extended, which changes nothing."""
        needed()
        what = f"the subscription {self.subscription}"
        tried = functools.partial(self.connection.subscriber().modify_ack_deadline, ack_ids=["none"], ack_deadline_seconds=10)
        ask(what, "subscription", tried, unless="InvalidArgument", subscription=self.subscription)
        found = self._about()
        if found is not None and (found.push_config.push_endpoint or found.bigquery_config.table or found.cloud_storage_config.bucket):
            raise ConfigError(Problem(f"{what} delivers by itself", "subscription", "make a pull subscription to the same topic"))
        if found is not None and (found.detached or found.topic == "_deleted-topic_"):
            raise ConfigError(Problem(f"{what} has no topic any more", "subscription", "make a subscription to a topic that is there"))
        if self.format == "avro" and self.avro_schema is None:
            self._avro_text()

    def _about(self) -> Any:
        """What the service says of the subscription; None where it says nothing to a mere subscriber."""
        call = self.connection.subscriber().get_subscription
        return ask(f"the subscription {self.subscription}", "subscription", call, unless="PermissionDenied", subscription=self.subscription)

    def with_types(self, schema: pa.Schema) -> ReadFromPubSub:
        """A copy that reads the columns named in a schema as the types given there; types of others are found out as before."""
        own = {*self.attributes, *(f"pubsub_{name}" for name in self.metadata)}
        types = pa.schema([field for field in plain(schema) if field.name not in own])
        refuse_unsupported(types)
        typed = copy.copy(self)
        typed._named, typed._columns = types, None
        return typed

    def sample(self, rows: int) -> RowBatch | None:
        parts = self._peeked(min(rows, SAMPLED_MESSAGES))
        found = [r for messages in parts for r in self._rows().parse(messages) if isinstance(r, RowBatch)]
        return concat(found).slice(0, rows) if found else None

    def read(self, begin: Any) -> beam.PCollection:
        runner = type(begin.pipeline.runner).__name__
        options = begin.pipeline.options.get_all_options(retain_unknown_options=True)
        if problem := self._unsafe(runner, options):
            raise ConfigError(problem)
        source = self.source(at_end=self.acknowledge == "safe" and runner in HERE)
        messages = begin | "Stream" >> ReadEndless(source, poll_secs=self.poll_secs, step=self.label, counted=False)
        if self.horizon_secs:
            dealt = messages | "Deal" >> beam.ParDo(DealFn()).with_output_types(tuple[int, RowBatch])
            messages = dealt | "Once" >> beam.ParDo(OnceFn(self.horizon_secs)).with_output_types(RowBatch)
        return apply_batches(messages, "Parse", ParseFn(self.label, self._rows()))

    def settle(self) -> None:
        source = self.source()
        if left := leases_of(source).settle(SETTLE_SECS):
            what = f"all is published, but {left} messages of {self.subscription} could not be acknowledged, and will be delivered again"
            raise TransientError(what)

    def decode(self, originals: list[bytes], positions: list[str | None], step: str) -> Iterable[RowBatch | Letters]:
        return self._rows().decode(originals, positions, step)

    # ---- what is read

    def source(self, *, at_end: bool = True) -> Subscription:
        """What is pulled, and how."""
        attribute = self._time(self.event_time_attribute)
        return Subscription(
            connection=self.connection,
            name=self.subscription,
            lanes=1 if self.bounded else self.readers,
            deadline_secs=self.deadline_secs,
            id_attribute=self.id_attribute,
            event_time=attribute,
            at_end=at_end,
            quiet_secs=self.quiet_secs if self.bounded else None,
            before=_moment(self.until) if self.until not in (None, "empty") else None,
            disorder=int(self.disorder_secs * 1_000_000),
            lag=int(self.lag_secs * 1_000_000),
            bounded=self.bounded,
        )

    def _unsafe(self, runner: str, options: dict[str, Any]) -> Problem | None:
        if self.bounded and runner not in HERE:
            what = f"with `until`, messages are acknowledged by the process that has published, and on {runner} others have read them"
            return Problem(what, "until", "read without end there, or run this job with --runner=FnApiRunner or Prism")
        if options.get("direct_running_mode") not in (None, "in_memory") or options.get("direct_runner_bundle_repeat"):
            return Problem("bundles run elsewhere, or again, and messages are there once", "--direct_running_mode", "use in_memory")
        return None

    def _time(self, column: str | None) -> EventTime | None:
        return EventTime(column, self.event_time_format, self.event_time_zone) if column is not None else None

    def _rows(self) -> MessageRows:
        columns = self._shown() if self.format in ("json", "csv") else pa.schema([])
        return MessageRows(
            step=self.label,
            format=self.format,
            columns=tuple((field.name, field.type) for field in columns),
            delimiter=self.delimiter,
            avro_schema=self._avro_text() if self.format == "avro" else None,
            event_time=self._time(self.event_time),
            time_attribute=self._time(self.event_time_attribute),
            attributes=self.attributes,
            metadata=self.metadata,
        )

    def _avro_text(self) -> str:
        """The Avro schema given, or that of the topic."""
        if self._avro is None:
            self._avro = self.avro_schema or self._topics_avro(binary=True)
        if self._avro is None:
            what = f"the topic of {self.subscription} has no Avro schema for binary messages"
            raise ConfigError(Problem(what, "avro_schema", "give the schema of the messages as JSON"))
        return self._avro

    def _topics_avro(self, *, binary: bool) -> str | None:
        found = self._about()
        schema = schema_of(self.connection, found.topic) if found is not None else None
        return schema.definition if schema and schema.kind == "AVRO" and schema.binary is binary else None

    def _shown(self) -> pa.Schema:
        """The columns: those declared, else those of the topic's schema, else those that some messages show."""
        if self._columns is None:
            given = declared_schema(self.schema) if self.schema is not None else self._found()
            known = {field.name: field.type for field in given} | {field.name: field.type for field in self._named}
            self._columns = pa.schema([*known.items()])
        return self._columns

    def _found(self) -> pa.Schema:
        if text := self._topics_avro(binary=False):
            with contextlib.suppress(ValueError, ConfigError):  # a union in JSON is an object of its own, which no column holds
                told = arrow_schema(json.loads(text))
                if not any(isinstance(field["type"], list) for field in json.loads(text)["fields"]):
                    refuse_unsupported(told)
                    return told
        values = [v for messages in self._peeked(SAMPLED_MESSAGES) for v in messages.column("data").to_pylist()]
        shown = shown_schema(values)
        if not shown.names and not self._named.names:
            what = f"no message of {self.subscription} shows what columns there are"
            raise ConfigError(Problem(what, "schema", "name them: id bigint, at timestamptz"))
        return shown

    @functools.cached_property
    def _peek(self) -> list[RowBatch]:
        return []

    def _peeked(self, count: int) -> list[RowBatch]:
        """Some messages, which are given back at once: whoever reads them next gets them."""
        if not self._peek:
            client, leases = self.connection.subscriber(), Leases(self.connection, self.subscription, 60)
            asked = {"subscription": self.subscription, "max_messages": count}
            from google.pubsub_v1.types import PullResponse

            taken: list[Any] = []
            until = time.monotonic() + SAMPLE_SECS
            while len(taken) < count and time.monotonic() < until:
                pulling = functools.partial(client.pull, request={**asked, "return_immediately": True})
                answer = PullResponse.pb(ask(f"the subscription {self.subscription}", "subscription", pulling))
                if taken and not answer.received_messages:
                    break
                taken += answer.received_messages
                if not answer.received_messages:
                    time.sleep(0.2)
            leases.give_back([received.ack_id for received in taken])
            if taken:
                batch = batch_of(taken, self.subscription, None, self._time(self.event_time_attribute))
                self._peek.append(first_ones(batch, []))
        return self._peek


class WriteToPubSub(Sink):
    """Writes rows as messages.

    In: any schema (json), or a column `data` (raw). `attributes` are columns that become attributes, as text, and are left out of the data.
    Errors: rows that the service would not take are refused: `too_large`, `bad_attribute`, `bad_key`.
    Delivery: at least once: rows are staged in files, then published. A message has an attribute `row_id`, which is the same when it is
        published again after a crash; ReadFromPubSub with id_attribute=row_id drops the double. Exactly once is not to be had: the service
        has no transactions.
    Time: messages of one `ordering_key` keep the order of the rows of a bundle; such rows have one writer.

    Example:
        >>> WriteToPubSub("projects/shop/topics/totals", staging="gs://bucket/staging", ordering_key="shop")
        WriteToPubSub(topic='projects/shop/topics/totals', staging='gs://bucket/staging', ordering_key='shop')
    """

    modes: ClassVar[tuple[str, ...]] = ("append",)
    takes_unbounded: ClassVar[bool] = True
    delivery = "at_least_once"

    topic: str = option(help="The topic; it must be there", example="projects/shop/topics/totals", place="pubsub_topic")
    staging: str = option(help="Folder where rows wait until they are published, which every worker sees", example="gs://bucket/staging")
    mode: str = option("append", help="Messages are added to the topic", choices=modes)
    format: str = option("json", help="What messages hold", choices=("json", "raw"))
    attributes: tuple[str, ...] = option((), help="Columns that become attributes", example="country,trace")
    ordering_key: str | None = option(None, help="Column whose text is the ordering key", example="shop")
    id_column: str | None = option(None, help="Column whose text is the row_id; default: one is made for each row", example="order_id")
    pubsub_endpoint: str | None = option(
        None,
        help="HOST:PORT of an emulator or a region; default: PUBSUB_EMULATOR_HOST, else Google's",
        example="localhost:8085",
    )
    credentials: Secret | None = option(
        None, help="Key of a service account; default: Google's default credentials", example="file:/etc/keys/writer.json"
    )

    def __post_init__(self):
        super().__post_init__()
        self.connection = Connection(self.pubsub_endpoint or standard(EMULATOR), self.credentials)

    def check(self) -> Iterable[Problem]:
        yield from Connection(self.pubsub_endpoint).problems()
        if not TOPIC.fullmatch(self.topic):
            yield Problem(f"{self.topic!r} is no topic", "topic", "projects/PROJECT/topics/NAME")
        if not self.staging.strip():
            yield Problem("no folder given", "staging", "a folder that every worker sees")
        for name in self.attributes:
            if name.startswith("goog") or name == _pubsub_writer.ROW_ID or len(name.encode()) > 256:
                yield Problem(f"{name!r} cannot be the name of an attribute", "attributes", "not row_id or goog…, at most 256 bytes")

    @property
    def key(self) -> tuple[str, ...]:
        """What says that rows keep their order, and so have one writer on an input without end."""
        return (self.ordering_key,) if self.ordering_key is not None else ()

    @property
    def target(self) -> Target:
        return Target(
            connection=self.connection,
            topic=self.topic,
            step=self.label,
            staging=self.staging,
            format=self.format,
            attributes=self.attributes,
            ordering_key=self.ordering_key,
            id_column=self.id_column,
        )

    def location(self) -> str:
        return f"pubsub://{self.topic}"

    def ping(self) -> None:
        needed()
        tried = functools.partial(self.connection.publisher().publish, messages=[])
        ask(f"the topic {self.topic}", "topic", tried, unless="InvalidArgument", topic=self.topic)
        if trouble := _pubsub_writer.trouble(self.target):
            raise ConfigError(Problem(trouble, self.staging, "choose a folder that this user can write to"))

    def writer(self, run_id: str) -> Writer:
        return StagingWriter(self.target, run_id)

    def publish(self, run_id: str, staged: list[Staged]) -> bool:
        return _pubsub_writer.publish(self.target, run_id, staged)

    def is_published(self, run_id: str) -> bool:
        return _pubsub_writer.is_published(self.target, run_id)

    def discard(self, run_id: str) -> None:
        with contextlib.suppress(Exception):
            _pubsub_writer.discard(self.target, run_id)


def _moment(text: str | None) -> int | None:
    """A time in microseconds since 1970; None when the text is none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000)
