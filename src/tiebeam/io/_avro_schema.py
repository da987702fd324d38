"""Avro schemas and Arrow schemas: which type stands for which, both ways.

Avro 1.12 (https://avro.apache.org/docs/1.12.0/specification/). In Avro every field is a union with null. Logical types stand for numbers
and bytes; records are decoded and encoded without them, as plain numbers, and Arrow gives the columns their meaning.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.io._typed_files import cast, rebuilt

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PRIMITIVES = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_BACK = {kind: name for name, kind in _PRIMITIVES.items()}
_LOGICAL = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", "UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", "UTC"),
    ("long", "timestamp-nanos"): pa.timestamp("ns", "UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}
_LOGICAL_BACK = {kind: {"type": base, "logicalType": logical} for (base, logical), kind in _LOGICAL.items()}


def arrow_schema(schema: Any, logical: bool = True) -> pa.Schema:
    """The Arrow schema of a file of records, with logical types or as numbers; raises ValueError for what no column can hold."""
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ValueError("it does not hold records")
    return pa.schema(list(_Reading(logical).kind(schema)))


class _Reading:
    """Turns Avro types to Arrow types; knows the named types met so far."""

    def __init__(self, logical: bool):
        self.logical = logical
        self.named: dict[str, pa.DataType | None] = {}

    def kind(self, avro: Any, space: str = "") -> pa.DataType:
        if isinstance(avro, list):
            return self._union(avro, space)
        if isinstance(avro, str):
            return _PRIMITIVES[avro] if avro in _PRIMITIVES else self._reference(avro, space)
        base = avro["type"]
        if base in ("record", "enum", "fixed", "error"):
            return self._named(avro, space)
        if base == "array":
            return pa.list_(self.kind(avro["items"], space))
        if base == "map":
            return pa.map_(pa.string(), self.kind(avro["values"], space))
        if not isinstance(base, str) or base not in _PRIMITIVES:
            return self.kind(base, space)
        if base == "bytes" and avro.get("logicalType") == "decimal":
            return _decimal(avro)
        return _LOGICAL.get((base, avro.get("logicalType")), _PRIMITIVES[base]) if self.logical else _PRIMITIVES[base]

    def _union(self, branches: list[Any], space: str) -> pa.DataType:
        kinds = {self.kind(branch, space) for branch in branches if branch != "null"}
        for widest, narrow in ((pa.int64(), pa.int32()), (pa.float64(), pa.float32())):
            if kinds == {widest, narrow}:
                return widest
        if len(kinds) > 1:
            raise ValueError(f"a column is a union of {', '.join(sorted(map(str, kinds)))}; a column has one type")
        return kinds.pop() if kinds else pa.null()

    def _reference(self, name: str, space: str) -> pa.DataType:
        full = name if "." in name or not space else f"{space}.{name}"
        kind = self.named.get(full, self.named.get(name))
        if kind is None:
            raise ValueError(f"the type {name!r} {'contains itself' if full in self.named or name in self.named else 'is not defined'}")
        return kind

    def _named(self, avro: dict[str, Any], space: str) -> pa.DataType:
        space = avro["name"].rpartition(".")[0] or avro.get("namespace", space)
        full = f"{space}.{avro['name'].rpartition('.')[2]}" if space else avro["name"]
        self.named[full] = None
        if avro["type"] == "enum":
            kind = pa.string()
        elif avro["type"] == "fixed":
            kind = _decimal(avro) if avro.get("logicalType") == "decimal" else pa.binary(avro["size"])
        else:
            kind = pa.struct([pa.field(field["name"], self.kind(field["type"], space)) for field in avro["fields"]])
        self.named[full] = kind
        return kind


def _decimal(avro: dict[str, Any]) -> pa.DataType:
    precision, scale = avro["precision"], avro.get("scale", 0)
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def numbers_only(avro: Any) -> Any:
    """A schema without logical types, but for decimals."""
    if isinstance(avro, list):
        return [numbers_only(branch) for branch in avro]
    if not isinstance(avro, dict):
        return avro
    kept = {key: value for key, value in avro.items() if key != "logicalType" or value == "decimal"}
    if "fields" in kept:
        kept["fields"] = [{**field, "type": numbers_only(field["type"])} for field in kept["fields"]]
    for key in ("type", "items", "values"):
        if key in kept:
            kept[key] = numbers_only(kept[key])
    return kept


def typed(column: pa.Array, kind: pa.DataType, meant: pa.DataType) -> pa.Array:
    """A column as decoded, in the type that stands for its Avro type."""
    if pa.types.is_decimal(kind):
        column.validate(full=True)  # decoders do not hold decimals to their precision
    return cast(cast(column, kind), meant)


def pairs(value: Any, kind: pa.DataType) -> Any:
    """Turns the maps in a value to lists of pairs, as Arrow takes them."""
    if value is None or not pa.types.is_nested(kind):
        return value
    if pa.types.is_map(kind):
        return [(key, pairs(item, kind.item_type)) for key, item in value.items()]
    if pa.types.is_struct(kind):
        return {field.name: pairs(value[field.name], field.type) for field in kind}
    return [pairs(item, kind.value_type) for item in value]


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The Arrow types that Avro holds, for a schema of any; raises ConfigError naming each column that cannot be held."""
    problems, fields = [], []
    for field in schema:
        try:
            fields.append(pa.field(field.name, rebuilt(field.type, _storable)))
            _check_names(field.name, fields[-1].type)
        except ValueError as e:
            problems.append(Problem(f"Avro cannot hold it: {e}", f"column {field.name}", "drop, rename or convert it first"))
    if problems:
        raise ConfigError(*problems)
    return pa.schema(fields)


def _storable(kind: pa.DataType) -> pa.DataType:
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _storable(kind.storage_type)
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return _storable(kind.value_type)
    if t.is_integer(kind):
        return pa.decimal128(20, 0) if kind == pa.uint64() else pa.int64() if kind in (pa.int64(), pa.uint32()) else pa.int32()
    if t.is_float16(kind):
        return pa.float32()
    if t.is_decimal(kind):
        precision, scale = (kind.precision, kind.scale) if kind.scale >= 0 else (kind.precision - kind.scale, 0)
        return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_binary_view(kind):
        return pa.binary()
    if t.is_timestamp(kind):
        return pa.timestamp("ms" if kind.unit == "s" else kind.unit, "UTC" if kind.tz else None)
    if t.is_duration(kind) or kind == pa.time64("ns"):
        return pa.int64()
    plain = {pa.date64(): pa.date32(), pa.time32("s"): pa.time32("ms")}
    if t.is_large_list(kind) or t.is_fixed_size_list(kind) or t.is_list_view(kind) or t.is_large_list_view(kind):
        return pa.list_(kind.value_field)
    if t.is_union(kind) or t.is_interval(kind):
        raise ValueError(f"there is no type for {kind}")
    return plain.get(kind, kind)


def _check_names(name: str, kind: pa.DataType) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name there (letters, digits and _, no digit first)")
    if pa.types.is_struct(kind):
        for field in kind:
            _check_names(field.name, field.type)
    elif pa.types.is_map(kind):
        if kind.key_type != pa.string():
            raise ValueError(f"the keys of a map are text, not {kind.key_type}")
        _check_names(name, kind.item_type)
    elif pa.types.is_list(kind):
        _check_names(name, kind.value_type)


def avro_schema(schema: pa.Schema) -> dict[str, Any]:
    """The Avro schema for Arrow types that Avro holds (`stored_schema`)."""
    return _record(schema, "row", "")


def _record(fields: Any, name: str, space: str) -> dict[str, Any]:
    inside = f"{space}.{name}" if space else name
    return {
        "type": "record",
        "name": name,
        **({"namespace": space} if space else {}),
        "fields": [{"name": field.name, "type": _optional(field.type, field.name, inside), "default": None} for field in fields],
    }


def _optional(kind: pa.DataType, name: str, space: str) -> Any:
    return "null" if pa.types.is_null(kind) else ["null", _avro(kind, name, space)]


def _avro(kind: pa.DataType, name: str, space: str) -> Any:
    t = pa.types
    if kind in _BACK:
        return _BACK[kind]
    if kind in _LOGICAL_BACK:
        return _LOGICAL_BACK[kind]
    if t.is_decimal(kind):
        return {"type": "bytes", "logicalType": "decimal", "precision": kind.precision, "scale": kind.scale}
    if t.is_fixed_size_binary(kind):
        return {"type": "fixed", "name": name, "namespace": space, "size": kind.byte_width}
    if t.is_struct(kind):
        return _record(kind, name, space)
    inside = f"{space}.{name}"
    if t.is_map(kind):
        return {"type": "map", "values": _optional(kind.item_type, "value", inside)}
    return {"type": "array", "items": _optional(kind.value_type, "item", inside)}
