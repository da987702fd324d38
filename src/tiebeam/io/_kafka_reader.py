"""Reads partitions of Kafka topics, for ever or to declared ends: fetches ahead into a bounded buffer, and hands out parsed blocks.

A partition is `topic/number`, its position the offset of the next message. What is committed to the group is advice for those who
look at lags; where reading goes on is what the checkpoint says.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiebeam.errors import BadFileError, ConfigError, Problem, TransientError
from tiebeam.io._endless import EndlessSource, PartitionReader, Piece, Progress
from tiebeam.io._kafka_client import ANSWER_SECS, Cluster, Connection, denied
from tiebeam.io._kafka_messages import MessageRows, Messages
from tiebeam.rows import MAX_BATCH_ROWS

BLOCK_BYTES = 8 << 20
CALL_MESSAGES = 1000
BUFFERED_MESSAGES = 2 * MAX_BATCH_ROWS
BUFFERED_BYTES = 32 << 20
FETCH_SECS = 0.1
LOOK_SECS = 0.25
NEW_SECS = 10.0

# One fetch queue of 8 MB that is asked again at once: at the defaults it is either large, or slow (benchmarks/kafka.py).
_FETCHING: dict[str, Any] = {
    "queued.max.messages.kbytes": 8192,
    "queued.min.messages": 30_000,
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 100,
    "check.crcs": True,  # else a flipped bit is a row
}


@dataclass(frozen=True)
class Topics(EndlessSource):
    """Partitions to read: where each begins and ends, and how messages become rows."""

    connection: Connection
    topics: tuple[str, ...]
    rows: MessageRows
    group: str
    begin: tuple[tuple[str, int], ...] = ()
    """Offsets by partition; partitions that are not named begin with their first message."""
    end: tuple[tuple[str, int], ...] | None = None
    """The offset behind the last message to read, by partition; None: there is no end."""
    only: tuple[str, ...] = ()
    """Partitions to read, instead of all."""
    committed: bool = True
    out_of_range: str = "error"
    commit_offsets: bool = True
    disorder: int = 0
    lag: int = 0
    bounded: bool = False

    def partitions(self) -> Sequence[str]:
        if self.end is not None:
            return [name for name, _ in self.end]
        return self.only or partitions_of(Cluster(self.connection).topics(), self.topics)

    def number(self, partition: str) -> int:
        topic, number = parted(partition)
        return super().number(topic) + number

    def reader(self, partitions: Sequence[str]) -> TopicReader:
        return TopicReader(self)


def partitions_of(found: dict[str, int], topics: Sequence[str]) -> list[str]:
    """The partitions of topics; a topic that begins with ^ is a pattern."""
    chosen = [
        topic
        for topic in sorted(found)
        if any(re.search(t, topic) if t.startswith("^") else t == topic for t in topics) and not topic.startswith("__")
    ]
    return [f"{topic}/{number}" for topic in chosen for number in range(found[topic])]


def parted(partition: str) -> tuple[str, int]:
    topic, _, number = partition.rpartition("/")
    return topic, int(number)


@dataclass
class _Part:
    """A partition while it is read."""

    at: int
    """The offset of the next message to hand out."""
    reached: int
    """All below this offset was fetched, or is no message."""
    end: int | None
    waiting: deque[Messages] = field(default_factory=deque)
    rows: int = 0
    bytes: int = 0
    paused: bool = False
    ends_at: int | None = None
    """The end of the partition when the brokers were last asked."""
    nothing_at: int = -1
    """When it was last known, in microseconds since 1970, that the broker had no message beyond `reached`."""

    @property
    def finished(self) -> bool:
        return self.end is not None and not self.waiting and self.reached >= self.end


class TopicReader(PartitionReader):
    """Reads partitions with a consumer of its own, outside of any group."""

    def __init__(self, source: Topics):
        import confluent_kafka

        self.source = source
        self.cluster = Cluster(source.connection)
        self.trouble: list[Any] = []
        settings: dict[str, Any] = {
            "error_cb": self.trouble.append,
            "group.id": source.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed" if source.committed else "read_uncommitted",
            "auto.offset.reset": source.out_of_range,
        }
        self.consumer = source.connection.client(confluent_kafka.Consumer, settings, _FETCHING)
        self.parts: dict[str, _Part] = {}
        self.told: dict[str, int] = {}
        self.several = True
        self.looked_at = 0.0
        self.now_known = 0
        self.asked_for_new = time.monotonic()

    # ---- positions

    def seek(self, positions: dict[str, Any]) -> None:
        from confluent_kafka import TopicPartition

        begin, ends = dict(self.source.begin), dict(self.source.end or ())
        starts = {name: begin.get(name) if position is None else position for name, position in positions.items()}
        lowest = self._lowest([name for name, start in starts.items()])
        self.parts = {}
        for name, start in starts.items():
            at = lowest[name] if start is None else start
            if at < lowest[name]:
                at = self._out_of_range(name, at, lowest[name])
            self.parts[name] = _Part(at, at, ends.get(name))
        self.consumer.assign([TopicPartition(*parted(name), part.at) for name, part in self.parts.items() if not part.finished])
        self.several = len({parted(name)[0] for name in self.parts}) > 1
        self.looked_at = 0.0

    def _lowest(self, names: list[str]) -> dict[str, int]:
        """The first offset that each partition still has."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import OffsetSpec

        try:
            found = self.cluster.offsets(map(parted, names), OffsetSpec.earliest(), False, 4 * ANSWER_SECS)
        except KafkaException as e:
            raise TransientError(
                f"Kafka at {self.source.connection.servers} does not say where its partitions begin: {e.args[0].str()}"
            ) from None
        return {name: found[parted(name)] for name in names}

    def _out_of_range(self, name: str, at: int, lowest: int) -> int:
        what = f"{name} begins at offset {lowest} now, and reading was to go on at {at}: {lowest - at} messages have expired"
        if self.source.out_of_range == "error":
            fix = "on_offset_out_of_range=earliest goes on with what is left, latest with what comes"
            raise ConfigError(Problem(what, "on_offset_out_of_range", fix))
        return lowest

    # ---- reading

    def poll(self, order: Sequence[str]) -> Piece | None:
        self._fetch(0)
        if not any(part.waiting for part in self.parts.values()) and any(map(self._has_more, order)):
            self._fetch(FETCH_SECS)
        for name in order:
            if (part := self.parts[name]).waiting:
                return self._piece(name, part)
        return None

    def _has_more(self, name: str) -> bool:
        """Whether there is more than what was fetched, as the brokers said when they were last asked: then it is on its way."""
        part = self.parts[name]
        return part.ends_at is not None and part.reached < min(part.ends_at, part.end if part.end is not None else part.ends_at)

    def _fetch(self, secs: float) -> None:
        """Takes what has been fetched, up to a block; waits so long at most for the first of it."""
        from confluent_kafka import Message

        taken = size = 0
        while taken < MAX_BATCH_ROWS and size < BLOCK_BYTES:
            messages = self.consumer.consume(CALL_MESSAGES, 0 if taken else secs)
            if not messages:
                break
            told: list[Any] = []
            if any(map(Message.error, messages)):
                told = [message for message in messages if message.error()]
                messages = [message for message in messages if message.error() is None]
            for name, chunk in self._by_partition(messages):
                size += self._take(name, chunk)
            for message in told:  # behind the messages: the end of a partition is behind its last one
                self._told(message)
            taken += len(messages)
        if taken:
            self._balance()

    def _by_partition(self, messages: list[Any]) -> Iterator[tuple[str, list[Any]]]:
        from confluent_kafka import Message

        numbers: list[Any] = list(map(Message.partition, messages))
        topics: list[Any] = list(map(Message.topic, messages)) if self.several else [messages[0].topic()] if messages else []
        if len(set(numbers)) == 1 and len(set(topics)) == 1:
            yield f"{topics[0]}/{numbers[0]}", messages
            return
        topics = topics if self.several else topics * len(numbers)
        chunks: dict[tuple[str, int], list[Any]] = {}
        for message, topic, number in zip(messages, topics, numbers, strict=True):
            chunks.setdefault((topic, number), []).append(message)
        for (topic, number), chunk in chunks.items():
            yield f"{topic}/{number}", chunk

    def _take(self, name: str, chunk: list[Any]) -> int:
        """Keeps messages of one partition; returns their size."""
        part = self.parts.get(name)
        if part is None:
            return 0  # fetched before the last seek
        messages = Messages.of(chunk, self.source.rows.metadata)
        fresh = messages.offsets >= part.reached
        if part.end is not None:
            fresh &= messages.offsets < part.end
        part.reached = max(part.reached, int(messages.offsets[-1]) + 1)
        part.nothing_at = -1
        if not fresh.all():
            messages = messages.only(fresh)
        if len(messages.values):
            part.waiting.append(messages)
            part.rows += len(messages.values)
            part.bytes += messages.bytes
        return messages.bytes

    def _told(self, message: Any) -> None:
        """Hears what the library says in place of a message."""
        from confluent_kafka import KafkaError

        error = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            if (part := self.parts.get(f"{message.topic()}/{message.partition()}")) is not None:
                part.reached = max(part.reached, message.offset())
            return
        where = f"{message.topic()}/{message.partition()}"
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            fix = "on_offset_out_of_range=earliest or latest goes on with another offset"
            raise ConfigError(Problem(f"{where} has no offset {self.parts[where].reached}: {error.str()}", "on_offset_out_of_range", fix))
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
            raise ConfigError(Problem(f"{where} is not there any more: {error.str()}", "topics", "was the topic deleted?"))
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise ConfigError(denied(f"to read {where}", "topics", ["READ"]))
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return  # what the group is told is advice
        if error.code() in (KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG):
            what = f"{where}: a batch of messages at or behind offset {self.parts[where].reached} is damaged: {error.str()}"
            raise BadFileError(f"{what}; start={where}:OFFSET reads on behind it")
        if error.fatal() or not error.retriable():
            raise TransientError(f"{where}: {error.str()}")

    def _balance(self) -> None:
        """Stops fetching partitions of which enough waits, and goes on with those that were used up."""
        from confluent_kafka import TopicPartition

        for name, part in self.parts.items():
            full = part.rows > BUFFERED_MESSAGES or part.bytes > BUFFERED_BYTES
            if full != part.paused and (full or part.rows < MAX_BATCH_ROWS // 2):
                (self.consumer.pause if full else self.consumer.resume)([TopicPartition(*parted(name))])
                part.paused = full

    def _piece(self, name: str, part: _Part) -> Piece:
        taken: list[Messages] = []
        rows = size = 0
        while part.waiting and (not taken or (rows + len(part.waiting[0].values) <= MAX_BATCH_ROWS and size < BLOCK_BYTES)):
            taken.append(part.waiting.popleft())
            rows += len(taken[-1].values)
            size += taken[-1].bytes
        part.rows -= rows
        part.bytes -= size
        part.at = int(taken[-1].offsets[-1]) + 1
        if part.paused:
            self._balance()
        return Piece(name, part.at, tuple(self.source.rows.parse(Messages.joined(taken), name)))

    # ---- how far

    def progress(self, partition: str) -> Progress:
        part = self.parts[partition]
        if part.finished:
            return Progress.FINISHED
        if part.waiting:
            return Progress.BEHIND
        self._look()
        return Progress.CAUGHT_UP if part.nothing_at == self.now_known and self.now_known else Progress.BEHIND

    def _look(self) -> None:
        """Asks the brokers, now and then, whether there is more than what was fetched: silence alone may be a broken connection."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import OffsetSpec

        moment = time.monotonic()
        if moment < self.looked_at + LOOK_SECS:
            return
        asked = {name: part for name, part in self.parts.items() if not part.finished}
        now = time.time_ns() // 1_000
        try:
            ends = self.cluster.offsets(map(parted, asked), OffsetSpec.latest(), self.source.committed, LOOK_SECS * 4)
        except (KafkaException, TimeoutError):
            self.now_known = 0
        else:
            self.now_known = now
            for name, part in asked.items():
                part.ends_at = ends[parted(name)]
                if part.ends_at <= part.reached and not part.waiting:
                    part.nothing_at = now
        self.looked_at = time.monotonic()

    def lag(self, partition: str) -> int | None:
        self._look()
        part = self.parts[partition]
        return None if part.ends_at is None else max(0, part.ends_at - max(part.at, part.reached if not part.waiting else 0))

    def now(self) -> int:
        return self.now_known or time.time_ns() // 1_000

    def appeared(self) -> Sequence[str]:
        if self.source.end is not None or self.source.only or time.monotonic() < self.asked_for_new + NEW_SECS:
            return ()
        self.asked_for_new = time.monotonic()
        try:
            return partitions_of(self.cluster.topics(1.0), self.source.topics)
        except ConfigError:
            return ()

    # ---- the rest

    def commit(self, positions: dict[str, Any]) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        if not self.source.commit_offsets:
            return
        ahead = {name: at for name, at in positions.items() if at is not None and at > self.told.get(name, -1)}  # they come in any order
        self.told |= ahead
        told = [TopicPartition(*parted(name), at) for name, at in ahead.items()]
        try:
            if told:
                self.consumer.commit(offsets=told, asynchronous=True)
        except (KafkaException, RuntimeError):  # advice; and the reader may be closed by now
            pass

    def close(self) -> None:
        self.consumer.close()
