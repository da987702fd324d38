"""Protobuf messages, and their schemas: sources of a registry compiled by protoc, or a compiled descriptor set; rows by columns.

Every message is parsed alone by the protobuf library, so that a broken one harms no other; columns are then built field by field. A field
without presence has its default, one with presence is null when it is absent. Enums are their names, timestamps and durations exact (ns),
wrappers nullable values, `Struct` and messages that contain themselves JSON text, a message without fields `true`.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.io._lines import Parsed, Refused
from tiebeam.rows import RowBatch

COMPILE_SECS = 60
MAIN = "tiebeam_main.proto"

_NUMBERS = {1: pa.int32(), 2: pa.int64(), 3: pa.uint32(), 4: pa.uint64(), 5: pa.float64(), 6: pa.float32(), 7: pa.bool_()}
_JSON = ("google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue")
_WRAPPERS = {
    f"google.protobuf.{name}Value" for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}


def compiled(source: str, imports: Mapping[str, str]) -> bytes:
    """The descriptor set of a schema and of all that it imports; raises ValueError with what the compiler says.

    The compiler runs as a program of its own: it reads what others wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**imports, MAIN: source}.items():
            file = (Path(folder) / name).resolve()
            if not file.is_relative_to(Path(folder).resolve()):
                raise ValueError(f"an import is called {name!r}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{folder}",
            "--include_imports",
            f"--descriptor_set_out={folder}/set",
            MAIN,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECS, check=False)
        if "No module named" in done.stderr:
            raise ConfigError(Problem("schemas of protobuf are compiled by grpcio-tools", "format", "pip install 'tiebeam[protobuf]'"))
        if done.returncode:
            raise ValueError(f"no schema of protobuf: {done.stderr.strip().replace(MAIN, 'schema')}")
        return (Path(folder) / "set").read_bytes()


class DescriptorSet:
    """Messages of a descriptor set; the file of a schema itself is the last one."""

    def __init__(self, data: bytes):
        from google.protobuf import descriptor_pb2, descriptor_pool, message

        try:
            files = descriptor_pb2.FileDescriptorSet.FromString(data).file
        except message.DecodeError as e:
            raise ValueError(f"it is no descriptor set: {e}") from None
        if not files:
            raise ValueError("it is no descriptor set: there is no file in it")
        self.pool = descriptor_pool.DescriptorPool()
        for file in files:
            try:
                self.pool.Add(file)
                self.main = self.pool.FindFileByName(file.name)
            except (TypeError, KeyError) as e:
                raise ValueError(f"{file.name}: {e}; make it with protoc --include_imports") from None

    def at(self, path: Sequence[int]) -> Any:
        """The message to which the indexes of a frame lead."""
        found = None
        for index in path:
            messages = list(self.main.message_types_by_name.values()) if found is None else found.nested_types
            if not 0 <= index < len(messages):
                raise ValueError(f"the schema has no message {'/'.join(map(str, path))}")
            found = messages[index]
        return found

    def named(self, name: str) -> Any:
        try:
            return self.pool.FindMessageTypeByName(name)
        except KeyError:
            raise ValueError(f"there is no message {name!r} in it") from None


def indexes(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """The indexes in front of a framed message, and the message; ValueError where there are none."""
    count, at = _varint(data, 0)
    if count == 0:
        return (0,), data[at:]
    if not 0 < count <= 64:
        raise ValueError("the message does not begin with the indexes of its type")
    path = []
    for _ in range(count):
        index, at = _varint(data, at)
        path.append(index)
    return tuple(path), data[at:]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag number, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
    raise ValueError("the message does not begin with the indexes of its type")


@dataclass(frozen=True)
class _Column:
    """How values of one kind become a column; `build` takes the values, None where there is none."""

    kind: pa.DataType
    build: Callable[[list[Any]], pa.Array]


class MessageDecoder:
    """Decodes messages of one type."""

    def __init__(self, descriptor: Any):
        from google.protobuf import message_factory

        self.parse = message_factory.GetMessageClass(descriptor).FromString
        self.fields = [(field.name, _getter(field), _of(field, (descriptor.full_name,))) for field in descriptor.fields]
        if not self.fields:
            raise ValueError(f"{descriptor.full_name} has no fields")
        self.schema = pa.schema([(name, column.kind) for name, _, column in self.fields])

    def decode(self, data: Sequence[bytes], lines: Sequence[int]) -> Iterator[Parsed | Refused]:
        messages, good, refused = [], [], Refused([], [], [])
        for line, payload in zip(lines, data, strict=True):
            try:
                messages.append(self.parse(payload))
                good.append(line)
            except Exception as e:  # a DecodeError, whose class is imported late
                _refuse(refused, line, "malformed", f"no message of the type: {e}")
        yield from self._rows(messages, good, refused)
        if refused.lines:
            yield refused

    def _rows(self, messages: list[Any], lines: list[int], refused: Refused) -> Iterator[Parsed]:
        """Rows, without those messages that hold what no column can: they are found by halves."""
        if not messages:
            return
        try:
            columns = [column.build(get(messages)) for _, get, column in self.fields]
        except Exception as e:  # text that is no UTF-8, times out of range, what JSON cannot say
            if len(messages) == 1:
                outside = isinstance(e, OverflowError | pa.ArrowInvalid)
                _refuse(refused, lines[0], "out_of_range" if outside else "malformed", f"{type(e).__name__}: {e}")
                return
            half = len(messages) // 2
            yield from self._rows(messages[:half], lines[:half], refused)
            yield from self._rows(messages[half:], lines[half:], refused)
            return
        yield Parsed(RowBatch.from_arrays(columns, schema=self.schema), np.array(lines))


def decoder_of(descriptor_file: str, message: str) -> MessageDecoder:
    """The decoder of a message of a descriptor set in a file; raises ConfigError."""
    try:
        return MessageDecoder(DescriptorSet(Path(descriptor_file).read_bytes()).named(message))
    except (OSError, ValueError) as e:
        fix = "make it with protoc --include_imports --descriptor_set_out=FILE; every worker must have it; and check message"
        raise ConfigError(Problem(f"{descriptor_file}: {e}", "descriptor_file", fix)) from None


def _refuse(refused: Refused, line: int, reason: str, detail: str) -> None:
    refused.lines.append(line)
    refused.reasons.append(reason)
    refused.details.append(detail)


def _getter(field: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """Takes the values of a field out of messages; None where it is absent, or the message itself is."""
    name = field.name
    if field.has_presence and not (field.has_default_value and field.message_type is None):
        return lambda messages: [getattr(m, name) if m is not None and m.HasField(name) else None for m in messages]
    return lambda messages: [getattr(m, name) if m is not None else None for m in messages]


def _of(field: Any, within: tuple[str, ...]) -> _Column:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(field.message_type, within)
    one = _single(field, within)
    return _list(one) if field.is_repeated else one


def _single(field: Any, within: tuple[str, ...]) -> _Column:
    if field.message_type is not None:
        return _message(field.message_type, within)
    if field.enum_type is not None:
        names = {value.number: value.name for value in reversed(field.enum_type.values)}
        return _Column(pa.string(), lambda values: pa.array([None if v is None else names.get(v) or str(v) for v in values], pa.string()))
    kind = _NUMBERS.get(field.cpp_type) or (pa.binary() if field.type == field.TYPE_BYTES else pa.string())
    return _Column(kind, lambda values: pa.array(values, kind))


def _list(one: _Column) -> _Column:
    def build(lists: list[Any]) -> pa.Array:
        ends = np.cumsum([0, *(len(items) if items is not None else 0 for items in lists)], dtype=np.int32)
        values = one.build(list(itertools.chain.from_iterable(items for items in lists if items is not None)))
        return pa.ListArray.from_arrays(pa.array(ends), values, mask=_absent(lists))

    return _Column(pa.list_(one.kind), build)


def _map(entry: Any, within: tuple[str, ...]) -> _Column:
    key, value = _single(entry.fields_by_name["key"], within), _single(entry.fields_by_name["value"], within)
    kind = pa.map_(key.kind, value.kind)

    def build(maps: list[Any]) -> pa.Array:
        ends = np.cumsum([0, *(len(items) if items is not None else 0 for items in maps)], dtype=np.int32)
        pairs = [pair for items in maps if items is not None for pair in sorted(items.items())]
        keys, values = key.build([k for k, _ in pairs]), value.build([v for _, v in pairs])
        absent = _absent(maps)
        offsets = pa.array(ends) if absent is None else pa.array(ends, mask=np.append(absent.to_numpy(zero_copy_only=False), False))
        return pa.MapArray.from_arrays(offsets, keys, values)

    return _Column(kind, build)


def _message(descriptor: Any, within: tuple[str, ...]) -> _Column:
    name = descriptor.full_name
    if name == "google.protobuf.Timestamp":
        return _moments(pa.timestamp("ns", "UTC"))
    if name == "google.protobuf.Duration":
        return _moments(pa.duration("ns"))
    if name in _JSON or name in within:
        return _Column(pa.string(), lambda values: pa.array([None if v is None else _json(v) for v in values], pa.string()))
    if name in _WRAPPERS:
        inner = _single(descriptor.fields_by_name["value"], within)
        return _Column(inner.kind, lambda values: inner.build([None if v is None else v.value for v in values]))
    fields = [(field.name, _getter(field), _of(field, (*within, name))) for field in descriptor.fields]
    if not fields:
        return _Column(pa.bool_(), lambda values: pa.array([None if v is None else True for v in values], pa.bool_()))
    kind = pa.struct([(field, column.kind) for field, _, column in fields])

    def build(values: list[Any]) -> pa.Array:
        columns = [column.build(get(values)) for _, get, column in fields]
        return pa.StructArray.from_arrays(columns, fields=list(kind), mask=_absent(values))

    return _Column(kind, build)


def _moments(kind: pa.DataType) -> _Column:
    def build(values: list[Any]) -> pa.Array:
        return pa.array([None if v is None else v.seconds * 1_000_000_000 + v.nanos for v in values], pa.int64()).cast(kind)

    return _Column(kind, build)


def _json(value: Any) -> str:
    from google.protobuf import json_format

    return json_format.MessageToJson(value, preserving_proto_field_name=True, indent=None)


def _absent(values: Sequence[Any]) -> pa.Array | None:
    mask = [value is None for value in values]
    return pa.array(mask, pa.bool_()) if any(mask) else None
