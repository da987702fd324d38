"""Messages of Kafka to rows: the parsed value, and beside it what else a message says."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.dead_letters import Letters
from tiebeam.io._lines import Refused
from tiebeam.io._payloads import (
    AvroPayloads,
    CsvPayloads,
    EventTime,
    JsonPayloads,
    Payloads,
    ProtobufPayloads,
    RawPayloads,
    refused,
    rows_of,
)
from tiebeam.io._protobuf import decoder_of
from tiebeam.io._schema_registry import SchemaRegistry
from tiebeam.options import Secret
from tiebeam.rows import RESERVED, ROW_CHANGE, ROW_POSITION, ROW_TIME, RowBatch, with_column

METADATA = ("key", "headers", "timestamp", "topic", "partition", "offset")
HEADERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))

_local = threading.local()


@dataclass
class Messages:
    """Messages of one partition, by columns. The library's own objects are let go: thousands of them keep the garbage collector busy."""

    values: list[bytes | None]
    offsets: np.ndarray
    times: np.ndarray
    """When the messages were made, in milliseconds since 1970; negative where one does not say."""
    bytes: int
    keys: list[Any] | None = None
    headers: list[Any] | None = None

    @staticmethod
    def of(messages: list[Any], metadata: Sequence[str] = ()) -> Messages:
        """Of confluent_kafka's messages, with keys and headers where `metadata` asks for them."""
        from confluent_kafka import Message

        values = list(map(Message.value, messages))
        try:
            size = sum(map(len, cast("list[bytes]", values)))
        except TypeError:  # a message without value
            size = sum(len(value or b"") for value in values)
        return Messages(
            values,
            np.array(list(map(Message.offset, messages)), np.int64),
            np.array([time for _, time in map(Message.timestamp, messages)], np.int64),
            size,
            list(map(Message.key, messages)) if "key" in metadata else None,
            list(map(Message.headers, messages)) if "headers" in metadata else None,
        )

    @staticmethod
    def joined(parts: Sequence[Messages]) -> Messages:
        if len(parts) == 1:
            return parts[0]
        whole = Messages(
            list(chain.from_iterable(part.values for part in parts)),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.times for part in parts]),
            sum(part.bytes for part in parts),
        )
        if parts[0].keys is not None:
            whole.keys = [key for part in parts for key in part.keys or ()]
        if parts[0].headers is not None:
            whole.headers = [headers for part in parts for headers in part.headers or ()]
        return whole

    def only(self, chosen: np.ndarray) -> Messages:
        rows = np.flatnonzero(chosen).tolist()
        values = [self.values[i] for i in rows]
        keys, headers = (None if told is None else [told[i] for i in rows] for told in (self.keys, self.headers))
        return Messages(values, self.offsets[rows], self.times[rows], sum(len(value or b"") for value in values), keys, headers)

    def times_in_arrow(self) -> pa.Array:
        """When the messages were made; null where one does not say."""
        return pa.array(self.times * 1_000, pa.int64(), mask=self.times < 0).cast(RESERVED[ROW_TIME])

    def names(self, partition: str) -> pa.Array:
        return pc.binary_join_element_wise(f"{partition}/", pa.array(self.offsets).cast(pa.string()), "")


@dataclass(frozen=True)
class MessageRows:
    """How messages become rows."""

    step: str
    format: str = "json"
    columns: tuple[tuple[str, pa.DataType], ...] = ()
    delimiter: str = ","
    avro_schema: str | None = None
    descriptor_file: str | None = None
    message: str | None = None
    registry: str | None = None
    registry_user: str | None = None
    registry_password: Secret | None = None
    event_time: EventTime | None = None
    metadata: tuple[str, ...] = ()
    key_format: str = "text"
    null_values: str = "reject"

    def parse(self, messages: Messages, partition: str) -> Iterator[RowBatch | Letters]:
        """Rows of messages of one partition, and dead letters."""
        payloads = self._payloads()
        names, times = messages.names(partition), messages.times_in_arrow()
        topic = partition.rpartition("/")[0]
        absent = [i for i, value in enumerate(messages.values) if value is None] if None in messages.values else []
        if absent:
            yield from self._absent(payloads, messages, absent, names, times, topic)
            kept = np.delete(np.arange(len(messages.values)), absent)
            names, times = names.take(pa.array(kept)), times.take(pa.array(kept))
        else:
            kept = np.arange(len(messages.values))
        values = [value for value in messages.values if value is not None] if absent else cast("list[bytes]", messages.values)
        if not values:
            return
        for item in rows_of(payloads, values, names, times, topic, self.step, self.event_time):
            if isinstance(item, Letters):
                yield item
            else:
                rows, lines = item
                yield self._with_metadata(rows, messages, kept[lines], partition)

    def decode(self, originals: list[bytes], positions: list[str | None], step: str) -> Iterator[RowBatch | Letters]:
        """Parses dead letters again; their times and keys are not at hand."""
        names = pa.array(positions, pa.string())
        times = pa.nulls(len(originals), RESERVED[ROW_TIME])
        for item in rows_of(self._payloads(), originals, names, times, "", step, self.event_time):
            yield item if isinstance(item, Letters) else item[0]

    def _payloads(self) -> Payloads:
        """The parser of this thread: what one thread learns is not for another in the middle of a block."""
        known = vars(_local).setdefault("parsers", {})
        if self not in known:
            known[self] = self._new()
        return known[self]

    def _new(self) -> Payloads:
        registry = SchemaRegistry.at(self.registry, self.registry_user, self.registry_password) if self.registry is not None else None
        match self.format:
            case "json":
                return JsonPayloads(pa.schema(list(self.columns)), framed=self.registry is not None)
            case "csv":
                return CsvPayloads(pa.schema(list(self.columns)), self.delimiter)
            case "avro":
                import json

                return AvroPayloads(json.loads(self.avro_schema) if self.avro_schema else None, registry)
            case "protobuf":
                decoder = decoder_of(self.descriptor_file, self.message) if self.descriptor_file and self.message else None
                return ProtobufPayloads(decoder, registry)
            case _:
                return RawPayloads()

    def _absent(
        self, payloads: Payloads, messages: Messages, absent: list[int], names: pa.Array, times: pa.Array, topic: str
    ) -> Iterator[RowBatch | Letters]:
        """What messages without a value are: nothing, dead letters, or deletions of what their key names."""
        if self.null_values == "skip":
            return
        if self.null_values == "reject":
            values = [value or b"" for value in messages.values]
            told = Refused(absent, ["no_value"] * len(absent), ["the message has no value (a tombstone)"] * len(absent))
            yield refused(payloads, values, names, times, topic, self.step, told)
            return
        chosen = pa.array(absent)
        columns = {name: pa.nulls(len(absent), kind) for name, kind in self.columns}
        columns |= {ROW_CHANGE: pa.array(["delete"] * len(absent)), ROW_TIME: times.take(chosen), ROW_POSITION: names.take(chosen)}
        partition = names[absent[0]].as_py().rpartition("/")[0]
        yield self._with_metadata(RowBatch.from_pydict(columns), messages, np.array(absent), partition)

    def _with_metadata(self, rows: RowBatch, messages: Messages, lines: np.ndarray, partition: str) -> RowBatch:
        for name in self.metadata:
            match name:
                case "key":
                    column = pa.array(messages.keys, pa.binary()).take(pa.array(lines))
                    if self.key_format == "text":
                        column = _text(column)
                case "headers":
                    column = pa.array(map(_headers, messages.headers or ()), HEADERS).take(pa.array(lines))
                case "timestamp":
                    column = messages.times_in_arrow().take(pa.array(lines))
                case "topic":
                    column = pa.array([partition.rpartition("/")[0]] * len(lines))
                case "partition":
                    column = pa.array(np.full(len(lines), int(partition.rpartition("/")[2])), pa.int32())
                case _:
                    column = pa.array(messages.offsets[lines])
            rows = with_column(rows, f"kafka_{name}", column)
        return rows


def _text(keys: pa.Array) -> pa.Array:
    """Keys as text; bytes that are no UTF-8 as �."""
    try:
        text = keys.cast(pa.string())
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        return pa.array([None if key is None else key.decode(errors="replace") for key in keys.to_pylist()], pa.string())


def _headers(headers: list[tuple[str, bytes]] | None) -> list[dict[str, Any]] | None:
    return None if headers is None else [{"name": name, "value": value} for name, value in headers]
