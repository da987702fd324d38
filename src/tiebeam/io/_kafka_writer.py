"""Writes messages to Kafka: at once, by an idempotent producer, or staged in files and then sent in one transaction per commit.

The transaction also writes the commit's name to a ledger topic. Who publishes a commit again fences the one before by the transactional
id, which is that of the writer, reads the ledger to its end, finds the name and does nothing. Writers have partitions of the ledger of
their own, as far as there are enough: so none waits for the transaction of another that was killed.
https://kafka.apache.org/documentation/#semantics
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.commits import writer_of
from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.io._as_text import finite_pieces, json_lines
from tiebeam.io._avro_datum import DatumEncoder
from tiebeam.io._folder import folder_at
from tiebeam.io._kafka_client import DENIED, PING_SECS, Cluster, Connection, denied
from tiebeam.io._kafka_messages import MessageRows
from tiebeam.io._kafka_reader import Topics, parted
from tiebeam.io._publication import LostPiecesError, safe
from tiebeam.io._schema_registry import SchemaRegistry, framed
from tiebeam.options import Secret
from tiebeam.rows import RESERVED, ROW_CHANGE, ROW_TIME, RowBatch
from tiebeam.staging import Staged

SEND_SECS = 60
CLAIM_SECS = 20
COMMIT_SECS, RUN_SECS = 60, 900
"""How long a transaction may be open: that of a commit, and that of a whole run, for which brokers allow no more."""
VISIBLE_SECS = 2.0
LEDGER_PARTITIONS = 16

TRANSACTIONS = "tiebeam-"
"""How transactional ids begin; the topic follows."""

MESSAGES = pa.schema([("key", pa.binary()), ("value", pa.binary()), ("headers", pa.string()), ("timestamp", pa.int64())])

_lock = threading.Lock()
_ready: set[tuple[Connection, str]] = set()
_ledgers: dict[tuple[Connection, str, int], _Ledger] = {}


@dataclass(frozen=True)
class _Need:
    """A topic that is written, and made when it is missing: the option that names it, and the rights that it takes."""

    option: str
    topic: str
    partitions: int
    settings: dict[str, str]
    rights: tuple[str, ...]

    def creation(self, replication: int) -> tuple[str, int, int, dict[str, str], str]:
        return self.topic, self.partitions, replication, self.settings, self.option


@dataclass(frozen=True)
class Target:
    """Where messages go, and how rows become messages."""

    connection: Connection
    topic: str
    step: str
    format: str = "json"
    registry: str | None = None
    registry_user: str | None = None
    registry_password: Secret | None = None
    key: str | None = None
    headers: tuple[str, ...] = ()
    max_message_bytes: int = 1_000_000
    staging: str | None = None
    ledger: str = "tiebeam-ledger"
    partitions: int = 1
    replication: int = -1
    topic_config: tuple[str, ...] = ()
    compression: str = "lz4"

    @property
    def location(self) -> str:
        return f"kafka://{self.connection.servers}/{self.topic}"

    def prepared(self) -> Target:
        """Itself, once its topics are there."""
        with _lock:
            if (self.connection, self.topic) not in _ready:
                cluster = Cluster(self.connection)
                found = cluster.topics()
                for need in self._needs():
                    if need.topic not in found:
                        cluster.create(*need.creation(self.replication))
                _ready.add((self.connection, self.topic))
        return self

    def _needs(self) -> Iterator[_Need]:
        settings = dict(setting.split("=", 1) for setting in self.topic_config)
        yield _Need("topic", self.topic, self.partitions, settings, ("WRITE",))
        if self.staging is not None:
            yield _Need("ledger", self.ledger, LEDGER_PARTITIONS, {"cleanup.policy": "compact"}, ("READ", "WRITE"))

    def ping(self) -> None:
        """Asks for every right that writing takes; raises ConfigError. No message is sent, but a transactional id is claimed."""
        if self.registry is not None:
            SchemaRegistry.at(self.registry, self.registry_user, self.registry_password).ping()
        cluster = Cluster(self.connection)
        found = cluster.topics(PING_SECS)
        problems = []
        for need in self._needs():
            if need.topic not in found and cluster.create(*need.creation(self.replication), only_try=True):
                continue
            if lacking := cluster.lacking(need.topic, need.rights):
                problems.append(denied(f"to {' and '.join(lacking).lower()} {need.topic}", need.option, lacking))
        if problems:
            raise ConfigError(*problems)
        if self.staging is not None:
            self._ping_transactions()

    def _ping_transactions(self) -> None:
        import confluent_kafka

        quiet = logging.Logger("quiet", logging.CRITICAL + 1)
        try:
            self.claim(self.producer(**{"transactional.id": f"{TRANSACTIONS}{self.topic}-ping", "logger": quiet}), CLAIM_SECS)
        except confluent_kafka.KafkaException as e:
            what = f"the brokers begin no transaction within {CLAIM_SECS} s: {e.args[0].str()}"
            fix = "enough of them must run for transaction.state.log.replication.factor; or use delivery=at_least_once"
            raise ConfigError(Problem(what, "delivery", fix)) from None

    def claim(self, producer: Any, secs: float) -> None:
        """Fences whoever else has a producer of this transactional id."""
        import confluent_kafka

        try:
            producer.init_transactions(secs)
        except confluent_kafka.KafkaException as e:
            if e.args[0].code() in DENIED:
                what = f"to use transactional ids that begin with {TRANSACTIONS}{self.topic}-"
                raise ConfigError(denied(what, "delivery", ["Write on these", "or use delivery=at_least_once"])) from None
            raise

    def producer(self, **own: Any) -> Any:
        """A producer with the settings of this target."""
        import confluent_kafka

        defaults = {
            "partitioner": "murmur2_random",  # as Java's clients do it, so that keys meet
            "linger.ms": 20,
            "message.timeout.ms": SEND_SECS * 1000,
        }
        fixed = {"enable.idempotence": True, "compression.type": self.compression, "message.max.bytes": self.max_message_bytes}
        return self.connection.client(confluent_kafka.Producer, fixed | own, defaults)

    def messages(self, rows: RowBatch) -> Iterator[RowBatch | Letters]:
        """Rows as messages (`MESSAGES`), and those that are too large for one."""
        for piece in finite_pieces(rows) if self.format == "json" else [rows]:
            messages = self._encoded(piece)
            sizes = pc.add(_sizes(messages.column("value")), _sizes(messages.column("key")))
            large = pc.greater(sizes, self.max_message_bytes - 512)  # room for what Kafka puts around it
            if pc.any(large).as_py():
                bad = piece.filter(large)
                told = [f"{n:,} bytes, more than max_message_bytes ({self.max_message_bytes:,})" for n in sizes.filter(large).to_pylist()]
                yield letters_of_rows(self.step, bad, "too_large", told)
                messages = messages.filter(pc.invert(large))
            if messages.num_rows:
                yield messages

    def _encoded(self, rows: RowBatch) -> RowBatch:
        names = rows.schema.names
        beside = {*self.headers, ROW_CHANGE}
        body = rows.select([name for name in names if name not in beside])
        values = self._values(body)
        if ROW_CHANGE in names:
            gone = pc.fill_null(pc.equal(rows.column(ROW_CHANGE), "delete"), False)
            values = pc.if_else(gone, pa.scalar(None, pa.binary()), values)
        keys = pa.nulls(rows.num_rows, pa.binary())
        if self.key is not None:
            column = rows.column(self.key)
            keys = column if pa.types.is_binary(column.type) else column.cast(pa.string()).cast(pa.binary())
        heads = pa.nulls(rows.num_rows, pa.string())
        if self.headers:
            columns = [rows.column(name).cast(pa.string()).to_pylist() for name in self.headers]
            told = [dict(zip(self.headers, row, strict=True)) for row in zip(*columns, strict=True)]
            heads = pa.array([json.dumps({name: value for name, value in row.items() if value is not None}) for row in told])
        times = pa.nulls(rows.num_rows, pa.int64())
        if ROW_TIME in names:
            times = pc.divide(rows.column(ROW_TIME).cast(RESERVED[ROW_TIME]).cast(pa.int64()), 1_000)
            times = pc.if_else(pc.greater_equal(times, 0), times, pa.scalar(None, pa.int64()))
        return RowBatch.from_arrays([keys, values, heads, times], schema=MESSAGES)

    def _values(self, rows: RowBatch) -> pa.Array:
        if self.format == "json":
            return json_lines(rows)
        if self.format == "raw":
            return rows.column("value").cast(pa.binary())
        number, encoder = _registered(self, rows.schema)
        return pa.array([framed(number, datum) for datum in encoder.encode(rows)], pa.binary())

    def trouble(self, schema: pa.Schema) -> Problem | None:
        """Why rows of a schema cannot become messages."""
        if self.format == "raw" and "value" not in schema.names:
            return Problem("there is no column 'value', which raw messages hold", "format", f"the rows have: {', '.join(schema.names)}")
        if lacking := [name for name in (*self.headers, *([self.key] if self.key else [])) if name not in schema.names]:
            return Problem(f"there is no column {lacking[0]!r}", "key", f"the rows have: {', '.join(schema.names)}")
        return None


@functools.lru_cache(64)
def _registered(target: Target, schema: pa.Schema) -> tuple[int, DatumEncoder]:
    """The encoder of a schema, and the number that the registry has for it; a schema that is new while writing gets a new one."""
    encoder = DatumEncoder(schema)
    registry = SchemaRegistry.at(target.registry or "", target.registry_user, target.registry_password)
    return registry.register(f"{target.topic}-value", encoder.schema), encoder


def _sizes(column: pa.Array) -> pa.Array:
    return pc.fill_null(pc.binary_length(column), 0)


class Sending:
    """A producer, and the first error that one of its messages met."""

    def __init__(self, target: Target, **own: Any):
        self.target = target
        self.error: Any = None
        self.reached: dict[tuple[str, int], int] = {}
        """The last offset of each partition."""
        self.producer = target.producer(**own)

    def send(self, messages: RowBatch) -> None:
        columns = [messages.column(name).to_pylist() for name in MESSAGES.names]
        for key, value, headers, timestamp in zip(*columns, strict=True):
            told = {"timestamp": timestamp} if timestamp is not None else {}
            heads = list(json.loads(headers).items()) if headers is not None else None
            while True:
                try:
                    self.producer.produce(self.target.topic, value, key, headers=heads, on_delivery=self._delivered, **told)
                    break
                except BufferError:
                    self.producer.poll(0.1)
                    self.check()
        self.producer.poll(0)
        self.check()

    def _delivered(self, error: Any, message: Any) -> None:
        if error is None:
            self.reached[message.topic(), message.partition()] = message.offset()
        elif self.error is None:
            self.error = error

    def flush(self) -> None:
        """Waits until every message has arrived."""
        left = self.producer.flush(SEND_SECS)
        self.check()
        if left:
            raise TransientError(f"{left} messages to {self.target.topic} did not arrive within {SEND_SECS} s")

    def check(self) -> None:
        if self.error is not None and self.error.code() in DENIED:
            raise ConfigError(denied(f"to write {self.target.topic}", "topic", ["WRITE"]))
        if self.error is not None:
            raise TransientError(f"messages to {self.target.topic} were not taken: {self.error.str()}")


class DirectWriter:
    """Sends at once; what was sent of a bundle that fails is sent again."""

    def __init__(self, target: Target):
        self.target = target.prepared()
        self.sending = Sending(target)
        self.rows = 0

    def write(self, batch: RowBatch) -> Iterator[Letters]:
        if problem := self.target.trouble(batch.schema):
            raise ConfigError(problem)
        for item in self.target.messages(batch):
            if isinstance(item, Letters):
                yield item
            else:
                self.sending.send(item)
                self.rows += item.num_rows

    def close(self) -> list[Staged]:
        self.sending.flush()
        return [Staged(uuid.uuid4().hex, self.rows)] if self.rows else []

    def abort(self) -> None:
        with contextlib.suppress(Exception):
            self.sending.producer.purge()


class StagingWriter:
    """Writes messages to a file, one per bundle."""

    def __init__(self, target: Target, run_id: str):
        self.target = target.prepared()
        self.folder = folder_at(target.staging or "")
        self.name = f"{_folder_of(target, run_id)}/{uuid.uuid4().hex}.arrow"
        self.parts: list[RowBatch] = []

    def write(self, batch: RowBatch) -> Iterator[Letters]:
        if problem := self.target.trouble(batch.schema):
            raise ConfigError(problem)
        for item in self.target.messages(batch):
            if isinstance(item, Letters):
                yield item
            else:
                self.parts.append(item)

    def close(self) -> list[Staged]:
        if not self.parts:
            return []
        stream = self.folder.open(self.name)
        with pa.ipc.new_stream(stream, MESSAGES, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
            for part in self.parts:
                file.write_batch(part)
        self.folder.seal(stream)
        self.folder.sync([self.name])
        return [Staged(self.name, sum(part.num_rows for part in self.parts), sum(part.nbytes for part in self.parts))]

    def abort(self) -> None:
        with contextlib.suppress(Exception):
            self.folder.remove([self.name])


def publish(target: Target, run_id: str, staged: list[Staged]) -> bool:
    """Sends a commit in one transaction; False when the ledger has it already."""
    import confluent_kafka

    target.prepared()
    sending = Sending(target, **_transaction(target, run_id))
    try:
        target.claim(sending.producer, SEND_SECS)
        if is_published(target, run_id):
            discard(target, run_id)
            return False
        sending.producer.begin_transaction()
        try:
            for piece in staged:
                for messages in _read(target, run_id, piece):
                    sending.send(messages)
            note = json.dumps({"topic": target.topic, "rows": sum(piece.rows for piece in staged)}).encode()
            sending.producer.produce(target.ledger, note, _key(target, run_id), partition=_partition(target, run_id))
            _insist(lambda: sending.producer.commit_transaction(SEND_SECS))
        except BaseException:
            with contextlib.suppress(confluent_kafka.KafkaException):
                sending.producer.abort_transaction(SEND_SECS)
            raise
    except confluent_kafka.KafkaException as e:
        raise TransientError(f"the transaction of {run_id} to {target.topic} did not end: {e.args[0].str()}") from None
    _await_visible(target, sending.reached)
    discard(target, run_id)
    return True


def _transaction(target: Target, run_id: str) -> dict[str, Any]:
    secs = RUN_SECS if writer_of(run_id) is None else COMMIT_SECS
    return {
        "transactional.id": f"{TRANSACTIONS}{target.topic}-{writer_of(run_id) or run_id}",
        "transaction.timeout.ms": secs * 1000,
        "message.timeout.ms": min(secs, SEND_SECS) * 1000,
    }


def _insist(commit: Any) -> None:
    """Commits; again where only the answer was lost."""
    import confluent_kafka

    for attempt in range(5):
        try:
            commit()
            return
        except confluent_kafka.KafkaException as e:
            if not e.args[0].retriable() or attempt == 4:
                raise


def _await_visible(target: Target, reached: dict[tuple[str, int], int]) -> None:
    """Waits until readers of committed messages see a commit: brokers mark its partitions one after another.

    Not for long: transactions of others that are still open hold up these readers too.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import OffsetSpec

    cluster, until = Cluster(target.connection), time.monotonic() + VISIBLE_SECS
    while time.monotonic() < until:
        with contextlib.suppress(KafkaException):
            seen = cluster.offsets(reached, OffsetSpec.latest(), True, VISIBLE_SECS)
            if all(seen[place] > last for place, last in reached.items()):
                return
        time.sleep(0.02)


def _read(target: Target, run_id: str, piece: Staged) -> Iterator[RowBatch]:
    folder = folder_at(target.staging or "")
    try:
        data = folder.read(piece.handle)
    except (FileNotFoundError, OSError) as e:
        raise LostPiecesError(f"run {run_id!r}: {folder.path(piece.handle)} with {piece.rows} rows is neither staged nor sent") from e
    yield from pa.ipc.open_stream(pa.py_buffer(data))


def discard(target: Target, run_id: str) -> None:
    """Removes what a run has staged."""
    folder = folder_at(target.staging or "")
    where = _folder_of(target, run_id)
    folder.remove(folder.names(where))
    folder.prune(where)


def _folder_of(target: Target, run_id: str) -> str:
    return f"{safe(target.topic)}/{safe(run_id)}"


def _key(target: Target, run_id: str) -> bytes:
    return f"{target.topic}/{run_id}".encode()


def _partition(target: Target, run_id: str) -> int:
    """The partition of the ledger that has a run."""
    return zlib.crc32(f"{target.topic}/{writer_of(run_id) or run_id}".encode()) % LEDGER_PARTITIONS


def is_published(target: Target, run_id: str) -> bool:
    """Whether the ledger has a run."""
    target.prepared()
    with _lock:
        partition = _partition(target, run_id)
        ledger = _ledgers.setdefault((target.connection, target.ledger, partition), _Ledger(target, partition))
    return ledger.has(_key(target, run_id))


@dataclass
class _Ledger:
    """The names of published runs, read as far as this process has read them."""

    target: Target
    partition: int
    at: int = 0
    names: set[bytes] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def has(self, name: bytes) -> bool:
        """Reads on to the present end first: all transactions that were open now are over then."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import OffsetSpec

        with self.lock:
            if name in self.names:
                return True
            whole = f"{self.target.ledger}/{self.partition}"
            cluster = Cluster(self.target.connection)
            try:
                end = cluster.offsets([parted(whole)], OffsetSpec.latest(), committed=False)[parted(whole)]
            except KafkaException as e:
                if lacking := cluster.lacking(self.target.ledger, ("READ", "WRITE")):
                    raise ConfigError(denied(f"to read and write {self.target.ledger}", "ledger", lacking)) from None
                raise TransientError(f"the ledger {self.target.ledger} does not answer: {e.args[0].str()}") from None
            rows = MessageRows(self.target.step, format="raw", metadata=("key",), key_format="bytes")
            source = Topics(
                connection=self.target.connection, topics=(self.target.ledger,), rows=rows, group="tiebeam-ledger",
                begin=((whole, self.at),), end=((whole, end),), out_of_range="earliest", bounded=True,
            )  # fmt: skip
            for part in source.read_all(secs=2 * COMMIT_SECS):  # longer than any transaction of a writer may be open
                if isinstance(part, RowBatch):
                    self.names.update(part.column("kafka_key").to_pylist())
            self.at = end
            return name in self.names
