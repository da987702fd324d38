"""Rows that update and delete others by primary key: by change data capture, or merged from a staging table by one statement.

Which of two rows with one key is later is one number for both ways, `sequence`: by `row_time`, then by the digits at the end of
`row_position`, then by a digest of the position, so that it does not depend on how or how often rows arrive.
https://cloud.google.com/bigquery/docs/change-data-capture: the default stream, in protocol buffers, with two columns more.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from tiebeam.io._bigquery_types import Column, kind_of
from tiebeam.rows import ROW_CHANGE, ROW_POSITION, ROW_TIME, RowBatch, with_column

CHANGE_TYPE, CHANGE_NUMBER = "_CHANGE_TYPE", "_CHANGE_SEQUENCE_NUMBER"
ORDER, DELETED = "_tiebeam_order", "_tiebeam_deleted"
ORDER_COLUMNS: list[Column] = [
    {"name": ORDER, "type": "STRING", "mode": "NULLABLE"},
    {"name": DELETED, "type": "BOOLEAN", "mode": "NULLABLE"},
]

_HALF = 1 << 63
_PROTO = {
    "BOOLEAN": 8, "INTEGER": 3, "FLOAT": 1, "BYTES": 12, "DATE": 5, "TIMESTAMP": 3, "RECORD": 11,
}  # fmt: skip
_TEXT = 9


def sequence(rows: RowBatch) -> pa.Array:
    """A text for each row that sorts rows by when they were: three numbers of 16 hexadecimal digits."""
    n, names = rows.num_rows, rows.schema.names
    times = rows.column(ROW_TIME).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist() if ROW_TIME in names else [None] * n
    positions = rows.column(ROW_POSITION).to_pylist() if ROW_POSITION in names else [None] * n
    if None in positions:
        told = rows.to_pylist()
        positions = [repr(row) if position is None else position for position, row in zip(positions, told, strict=True)]
    return pa.array([_number(at, position) for at, position in zip(times, positions, strict=True)], pa.string())


def _number(at: int | None, position: str) -> str:
    digits = position[len(position.rstrip("0123456789")) :][-18:] or "0"
    mark = hashlib.blake2b(position.encode(), digest_size=8).hexdigest().upper()
    return f"{0 if at is None else at + _HALF:016X}/{int(digits):016X}/{mark}"


def _deleted(rows: RowBatch) -> pa.Array:
    if ROW_CHANGE not in rows.schema.names:
        return pa.repeat(False, rows.num_rows)
    return pc.fill_null(pc.equal(rows.column(ROW_CHANGE), "delete"), False)


def marked(stored: RowBatch, rows: RowBatch) -> RowBatch:
    """Rows with the two columns of change data capture."""
    kind = pc.if_else(_deleted(rows), "DELETE", "UPSERT")
    return with_column(with_column(stored, CHANGE_TYPE, kind), CHANGE_NUMBER, sequence(rows))


def ordered(stored: RowBatch, rows: RowBatch) -> RowBatch:
    """Rows with the two columns that a merge goes by."""
    return with_column(with_column(stored, ORDER, sequence(rows)), DELETED, _deleted(rows))


def merge(table: str, key: tuple[str, ...], columns: list[str], union: str) -> str:
    """The statement that brings staged rows into a table: of rows with one key the last counts."""
    kept = [c for c in columns if c not in (ORDER, DELETED)]
    names = ", ".join(f"`{c}`" for c in kept)
    others = ", ".join(f"`{c}` = s.`{c}`" for c in kept if c not in key)
    update = f"WHEN MATCHED THEN UPDATE SET {others} " if others else ""
    return (
        f"MERGE INTO `{table}` t USING (SELECT * FROM ({union}) WHERE TRUE "
        f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {', '.join(f'`{k}`' for k in key)} ORDER BY `{ORDER}` DESC) = 1) s "
        f"ON {' AND '.join(f't.`{k}` = s.`{k}`' for k in key)} WHEN MATCHED AND s.`{DELETED}` THEN DELETE {update}"
        f"WHEN NOT MATCHED AND NOT s.`{DELETED}` THEN INSERT ({names}) VALUES ({', '.join(f's.`{c}`' for c in kept)})"
    )


class Encoder:
    """Encodes rows as protocol buffers, of a message made of the table's columns."""

    def __init__(self, columns: list[Column]):
        self.columns = [*columns, *({"name": name, "type": "STRING", "mode": "NULLABLE"} for name in (CHANGE_TYPE, CHANGE_NUMBER))]
        self._made: dict[tuple[str, ...], tuple[Any, Any]] = {}

    def __call__(self, batch: RowBatch) -> dict[str, Any]:
        names = tuple(batch.schema.names)
        if names not in self._made:
            self._made[names] = _message([c for c in self.columns if c["name"] in names])
        descriptor, message = self._made[names]
        by_name = {c["name"]: c for c in self.columns}
        wire = RowBatch.from_arrays([_wire(batch.column(name), by_name[name]) for name in names], names=list(names))
        rows = [message(**_present(row)).SerializeToString() for row in wire.to_pylist()]
        return {"proto_rows": {"writer_schema": {"proto_descriptor": descriptor}, "rows": {"serialized_rows": rows}}}


def _message(columns: list[Column]) -> tuple[Any, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    descriptor = descriptor_pb2.DescriptorProto(name="Row")
    _describe(descriptor, columns)
    file = descriptor_pb2.FileDescriptorProto(name="row.proto", package="", syntax="proto2")
    file.message_type.append(descriptor)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return descriptor, message_factory.GetMessageClass(pool.FindMessageTypeByName("Row"))


def _describe(descriptor: Any, columns: list[Column]) -> None:
    for i, column in enumerate(columns):
        told = descriptor.field.add(name=column["name"], number=i + 1, type=_PROTO.get(kind_of(column), _TEXT))
        told.label = 3 if column.get("mode") == "REPEATED" else 1
        if kind_of(column) == "RECORD":
            inner = descriptor.nested_type.add(name=f"R{i}")
            _describe(inner, column["fields"])
            told.type_name = f"{inner.name}"


def _wire(values: pa.Array, column: Column) -> pa.Array:
    """Values as a message holds them: days, microseconds, and text for what has no type of its own."""
    if t.is_list(values.type):
        inside = _wire(values.flatten(), {**column, "mode": "NULLABLE"})
        offsets = pc.cumulative_sum(pc.list_value_length(values).cast(pa.int64())).cast(pa.int32())
        return pa.ListArray.from_arrays(pa.concat_arrays([pa.array([0], pa.int32()), offsets]), inside)
    if t.is_struct(values.type):
        parts = [_wire(part, c) for part, c in zip(values.flatten(), column["fields"], strict=True)]
        return pa.StructArray.from_arrays(parts, names=[c["name"] for c in column["fields"]], mask=values.is_null())
    kind = kind_of(column)
    if kind in ("DATE", "TIMESTAMP"):
        return values.cast(pa.int32() if kind == "DATE" else pa.int64())
    if kind in ("NUMERIC", "BIGNUMERIC"):
        return pa.array([None if v is None else format(v, "f") for v in values.to_pylist()], pa.string())
    return values.cast(pa.string()) if kind in ("DATETIME", "TIME") else values


def _present(value: Any) -> Any:
    """Without nulls, which a message leaves out."""
    if isinstance(value, dict):
        return {name: _present(inner) for name, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value
