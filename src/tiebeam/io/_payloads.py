"""Payloads: what the messages of a stream hold, parsed in blocks. What Kafka, Pub/Sub and MQTT share.

A format gives rows with the messages they came from, and refuses single messages; event times, positions and dead letters with the
original bytes are made here, once for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tiebeam.dead_letters import Letters, letters
from tiebeam.io._avro_datum import DatumDecoder
from tiebeam.io._csv_rows import CsvRows, Dialect
from tiebeam.io._event_time import event_times
from tiebeam.io._json_rows import JsonRows
from tiebeam.io._lines import Block, Parsed, Refused
from tiebeam.io._protobuf import DescriptorSet, MessageDecoder, compiled, indexes
from tiebeam.io._schema_registry import SchemaRegistry, UnknownSchemaError, unframed
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, with_column


@dataclass(frozen=True)
class EventTime:
    """The column that holds when each row happened, how it is written, and the zone of times that name none."""

    column: str
    form: str = "iso"
    zone: str = "UTC"

    def trouble(self, value: Any) -> str:
        return (
            f"{self.column} is absent" if value is None else f"{self.column} is {str(value)[:100]!r}, which cannot be read as {self.form}"
        )


class Payloads(ABC):
    """Parses payloads of one format."""

    original_format: str

    @abstractmethod
    def parse(self, payloads: list[bytes], names: pa.Array, source: str) -> Iterator[Parsed | Refused]:
        """Parses payloads, which have names (positions); a payload that is in neither output held no row."""


class JsonPayloads(Payloads):
    """One JSON object each, with or without the frame of a schema registry."""

    original_format = "json"

    def __init__(self, schema: pa.Schema, framed: bool = False):
        self.rows = JsonRows(schema, None)
        self.framed = framed

    def parse(self, payloads: list[bytes], names: pa.Array, source: str) -> Iterator[Parsed | Refused]:
        if self.framed:
            payloads = [unframed(payload)[1] for payload in payloads]
        block = Block.of_originals(payloads, [], source)
        block.names = names
        return self.rows.parse(block)


class CsvPayloads(Payloads):
    """One line of comma-separated values each, without a header."""

    original_format = "csv"

    def __init__(self, schema: pa.Schema, delimiter: str):
        dialect = Dialect(ord(delimiter), ord('"'))
        self.rows = CsvRows(schema.names, {field.name: field.type for field in schema}, dialect, None)

    def parse(self, payloads: list[bytes], names: pa.Array, source: str) -> Iterator[Parsed | Refused]:
        broken = [i for i, payload in enumerate(payloads) if b"\n" in payload]
        if broken:
            yield Refused(broken, ["newline"] * len(broken), ["more than one line"] * len(broken))
        sound = np.delete(np.arange(len(payloads)), broken)
        if len(sound):
            block = Block.of_originals([payloads[i] for i in sound], [], source)
            block.names = names.take(pa.array(sound))
            for item in self.rows.parse(block):
                if isinstance(item, Refused):
                    yield Refused(sound[item.lines].tolist(), item.reasons, item.details)
                else:
                    yield Parsed(item.rows, sound if item.lines is None else sound[item.lines])


class RawPayloads(Payloads):
    """Bytes, as they are, in a column `value`."""

    original_format = "raw"

    def parse(self, payloads: list[bytes], names: pa.Array, source: str) -> Iterator[Parsed | Refused]:
        yield Parsed(RowBatch.from_arrays([pa.array(payloads, pa.binary())], names=["value"]))


class TypedPayloads(Payloads):
    """One message each of a declared schema, or each in the frame of a schema registry that says of which.

    With a registry every schema met while running is fetched once, and its rows come in batches of their own.
    """

    kind: str

    def __init__(self, registry: SchemaRegistry | None):
        self.registry = registry
        self.decoders: dict[Any, DatumDecoder | MessageDecoder] = {}

    def parse(self, payloads: list[bytes], names: pa.Array, source: str) -> Iterator[Parsed | Refused]:
        groups: dict[Any, list[int]] = {}
        data, broken = payloads, Refused([], [], [])
        if self.registry is not None:
            data = []
            for line, payload in enumerate(payloads):
                try:
                    name, datum = self.named(*unframed(payload))
                    groups.setdefault(name, []).append(line)
                except ValueError as e:
                    datum = payload
                    broken.lines.append(line)
                    broken.reasons.append("malformed")
                    broken.details.append(str(e))
                data.append(datum)
        else:
            groups[None] = list(range(len(payloads)))
        for name, lines in groups.items():
            try:
                decoder = self._decoder(name)
            except (UnknownSchemaError, ValueError) as e:
                reason = "no_schema_id" if self._number(name) < 0 else "unknown_schema"
                yield Refused(lines, [reason] * len(lines), [str(e)] * len(lines))
                continue
            yield from decoder.decode([data[i] for i in lines], lines)
        if broken.lines:
            yield broken

    def named(self, number: int, datum: bytes) -> tuple[Any, bytes]:
        """What names the type of a datum, and the datum itself."""
        return number, datum

    def _number(self, name: Any) -> int:
        return name[0] if isinstance(name, tuple) else name

    def _decoder(self, name: Any) -> DatumDecoder | MessageDecoder:
        if name not in self.decoders:
            number = self._number(name)
            if self.registry is None or number < 0:
                raise UnknownSchemaError("the payload does not begin with the frame of a schema registry (a zero and four bytes)")
            kind, schema = self.registry.schema(number)
            if kind != self.kind:
                raise UnknownSchemaError(f"schema {number} is {kind}, not {self.kind}")
            self.decoders[name] = self.made(self.registry, name, schema)
        return self.decoders[name]

    def made(self, registry: SchemaRegistry, name: Any, schema: Any) -> DatumDecoder | MessageDecoder:
        """A decoder for a schema of the registry; raises ValueError."""
        raise NotImplementedError


class AvroPayloads(TypedPayloads):
    """Avro data."""

    original_format, kind = "avro", "AVRO"

    def __init__(self, schema: Any = None, registry: SchemaRegistry | None = None):
        super().__init__(registry)
        if schema is not None:
            self.decoders[None] = DatumDecoder(schema)

    def made(self, registry: SchemaRegistry, name: Any, schema: Any) -> DatumDecoder | MessageDecoder:
        return DatumDecoder(schema)


class ProtobufPayloads(TypedPayloads):
    """Messages of protobuf; the frame says which message of the schema it is, too."""

    original_format, kind = "protobuf", "PROTOBUF"

    def __init__(self, decoder: MessageDecoder | None = None, registry: SchemaRegistry | None = None):
        super().__init__(registry)
        self.sets: dict[int, DescriptorSet] = {}
        if decoder is not None:
            self.decoders[None] = decoder

    def named(self, number: int, datum: bytes) -> tuple[Any, bytes]:
        if number < 0:
            return (-1,), datum
        path, message = indexes(datum)
        return (number, *path), message

    def made(self, registry: SchemaRegistry, name: Any, schema: Any) -> DatumDecoder | MessageDecoder:
        number, *path = name
        if number not in self.sets:
            self.sets[number] = DescriptorSet(compiled(schema, registry.imports(number)))
        return MessageDecoder(self.sets[number].at(path))


def rows_of(
    payloads: Payloads, values: list[bytes], names: pa.Array, times: pa.Array, source: str, step: str, event_time: EventTime | None
) -> Iterator[tuple[RowBatch, np.ndarray] | Letters]:
    """Rows with `row_time` and `row_position`, each batch with the numbers of its payloads; and dead letters.

    `times` are those of the messages: they are the event times where no column is.
    """
    for item in payloads.parse(values, names, source):
        if isinstance(item, Refused):
            yield refused(payloads, values, names, times, source, step, item)
            continue
        rows = item.rows
        lines = np.arange(rows.num_rows) if item.lines is None else np.asarray(item.lines)
        own = times.take(pa.array(lines))
        if event_time is not None:
            present = event_time.column in rows.schema.names
            column = rows.column(event_time.column) if present else pa.nulls(rows.num_rows, pa.string())
            own = event_times(column, event_time.form, event_time.zone)
            if own.null_count:
                bad = np.flatnonzero(own.is_null().to_numpy(zero_copy_only=False))
                told = [event_time.trouble(value) for value in column.take(pa.array(bad)).to_pylist()]
                late = Refused(lines[bad].tolist(), ["bad_event_time"] * len(bad), told)
                yield refused(payloads, values, names, times, source, step, late)
                good = own.is_valid()
                rows, lines, own = rows.filter(good), lines[good.to_numpy(zero_copy_only=False)], own.filter(good)
        if rows.num_rows:
            rows = with_column(rows, ROW_TIME, own)
            yield with_column(rows, ROW_POSITION, names.take(pa.array(lines))), lines


def refused(
    payloads: Payloads, values: Sequence[bytes], names: pa.Array, times: pa.Array, source: str, step: str, item: Refused
) -> Letters:
    """Dead letters of payloads, whole."""
    chosen = pa.array(item.lines, pa.int64())
    return letters(
        step,
        item.reasons,
        item.details,
        [values[i] for i in item.lines],
        payloads.original_format,
        source=source,
        positions=names.take(chosen),
        times=times.take(chosen),
    )
