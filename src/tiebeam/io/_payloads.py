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


class AvroPayloads(Payloads):
    """One Avro datum each, of one schema, or each in the frame of a schema registry that says of which.

    With a registry every schema met while running is fetched once, and its rows come in batches of their own.
    """

    original_format = "avro"

    def __init__(self, schema: Any = None, registry: SchemaRegistry | None = None):
        self.registry = registry
        self.decoders: dict[int, DatumDecoder] = {} if schema is None else {-1: DatumDecoder(schema)}

    def parse(self, payloads: list[bytes], names: pa.Array, source: str) -> Iterator[Parsed | Refused]:
        groups: dict[int, list[int]] = {}
        data = payloads
        if self.registry is not None:
            frames = [unframed(payload) for payload in payloads]
            data = [frame[1] for frame in frames]
            for line, (number, _) in enumerate(frames):
                groups.setdefault(number, []).append(line)
        else:
            groups[-1] = list(range(len(payloads)))
        for number, lines in groups.items():
            try:
                decoder = self._decoder(number)
            except (UnknownSchemaError, ValueError) as e:
                reason = "no_schema_id" if number < 0 else "unknown_schema"
                yield Refused(lines, [reason] * len(lines), [str(e)] * len(lines))
                continue
            yield from decoder.decode([data[i] for i in lines], lines)

    def _decoder(self, number: int) -> DatumDecoder:
        if number not in self.decoders:
            if self.registry is None or number < 0:
                raise UnknownSchemaError("the payload does not begin with the frame of a schema registry (a zero and four bytes)")
            kind, schema = self.registry.schema(number)
            if kind != "AVRO":
                raise UnknownSchemaError(f"schema {number} is {kind}, not AVRO")
            self.decoders[number] = DatumDecoder(schema)
        return self.decoders[number]


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
