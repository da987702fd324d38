"""Types: what the Open Data Contract Standard calls them, and what Arrow calls them.

A logical type and its options give the Arrow type. `physicalType` is a word of some other system, and is followed only
where it spells a type the logical one cannot: `decimal(10,2)`, `timestamp[ms]`, `time32[s]`, `duration[us]`,
`date64[ms]`, `fixed_size_binary[16]`, `halffloat`. Integers are 64 bits wide unless `format` says otherwise (the
standard's own default, 32 bits, would refuse values nobody has forbidden).
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

INTEGERS = {"i8": pa.int8(), "i16": pa.int16(), "i32": pa.int32(), "i64": pa.int64()}
INTEGERS |= {"u8": pa.uint8(), "u16": pa.uint16(), "u32": pa.uint32(), "u64": pa.uint64()}
FLOATS = {"f32": pa.float32(), "f64": pa.float64()}
VECTORS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(), "int8": pa.int8(), "uint8": pa.uint8()}
SIMPLE = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
SIMPLE |= {"date": pa.date32(), "time": pa.time64("us")}

_PHYSICAL = {"halffloat": pa.float16(), "date64": pa.date64(), "date64[ms]": pa.date64(), "binary": pa.binary()}
_DECIMAL = re.compile(r"(?:decimal(?:128|256)?|numeric|number)\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)", re.IGNORECASE)
_UNIT = re.compile(r"(timestamp|time32|time64|duration)\[(s|ms|us|ns)(?:, tz=(.+))?\]")
_FIXED = re.compile(r"fixed_size_binary\[(\d+)\]")


def kind(type: pa.DataType) -> str:
    """The family of a type, by the standard's names, and a few that it lacks: binary, duration, null, other."""
    for name, belongs in _KINDS.items():
        if belongs(type):
            return name
    return "other"


_KINDS = {
    "null": kinds.is_null,
    "string": lambda t: kinds.is_string(t) or kinds.is_large_string(t) or kinds.is_string_view(t),
    "binary": lambda t: kinds.is_binary(t) or kinds.is_large_binary(t) or kinds.is_binary_view(t) or kinds.is_fixed_size_binary(t),
    "boolean": kinds.is_boolean,
    "integer": kinds.is_integer,
    "number": kinds.is_floating,
    "decimal": kinds.is_decimal,
    "date": kinds.is_date,
    "time": kinds.is_time,
    "timestamp": kinds.is_timestamp,
    "duration": kinds.is_duration,
    "object": kinds.is_struct,
    "map": kinds.is_map,
    "vector": kinds.is_fixed_size_list,
    "array": lambda t: kinds.is_list(t) or kinds.is_large_list(t) or kinds.is_list_view(t) or kinds.is_large_list_view(t),
}


def plain(type: pa.DataType) -> pa.DataType:
    """The same values in their ordinary Arrow type: no dictionary, no large or view variant, no extension."""
    if isinstance(type, pa.BaseExtensionType):
        return plain(type.storage_type)
    if kinds.is_dictionary(type) or kinds.is_run_end_encoded(type):
        return plain(type.value_type)
    match kind(type):
        case "string":
            return pa.string()
        case "binary" if not kinds.is_fixed_size_binary(type):
            return pa.binary()
        case "array":
            return pa.list_(plain(type.value_type))
        case "vector":
            return pa.list_(plain(type.value_type), type.list_size)
        case "object":
            return pa.struct([pa.field(f.name, plain(f.type)) for f in type])
        case "map":
            return pa.map_(plain(type.key_type), plain(type.item_type))
    return type


def physical(text: Any) -> pa.DataType | None:
    """The type that a `physicalType` spells, when it is one that we follow."""
    text = str(text).strip()
    if text.lower() in _PHYSICAL:
        return _PHYSICAL[text.lower()]
    if m := _DECIMAL.fullmatch(text):
        return decimal(int(m[1]), int(m[2] or 0))
    if m := _FIXED.fullmatch(text):
        return pa.binary(int(m[1]))
    if m := _UNIT.fullmatch(text):
        make = getattr(pa, m[1])
        return make(m[2], tz=m[3]) if m[1] == "timestamp" else make(m[2])
    return None


def decimal(precision: int, scale: int) -> pa.DataType:
    """The smaller Arrow decimal that has this precision; raises ValueError when there is none."""
    if not 1 <= precision <= 76 or scale > precision:
        raise ValueError(f"there is no decimal({precision},{scale})")
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def described(name: str, type: pa.DataType) -> dict[str, Any]:
    """A property of the standard for a column of this type; `contract` reads the same type from it again."""
    type, described_ = plain(type), {"name": name}
    family = kind(type)
    if family == "other":
        raise ValueError(f"the type {type} has no place in a contract")
    if family in ("decimal", "null", "binary"):
        described_["logicalType"] = {"decimal": "number"}.get(family, "string")
    elif family != "duration":
        described_["logicalType"] = family
    described_ |= _details(family, type)
    return described_


def _details(family: str, type: pa.DataType) -> dict[str, Any]:
    match family:
        case "integer" if type != pa.int64():
            return {"logicalTypeOptions": {"format": next(f for f, t in INTEGERS.items() if t == type)}}
        case "number" if type != pa.float64():
            return {"physicalType": "halffloat"} if type == pa.float16() else {"logicalTypeOptions": {"format": "f32"}}
        case "decimal":
            return {"physicalType": f"decimal({type.precision},{type.scale})"}
        case "binary" if type == pa.binary():
            return {"logicalTypeOptions": {"format": "binary"}}
        case "binary" | "duration":
            return {"physicalType": str(type)}
        case "date" | "time" if type != SIMPLE[family]:
            return {"physicalType": str(type)}
        case "timestamp":
            unit = {} if type.unit == "us" else {"physicalType": f"timestamp[{type.unit}]"}
            return unit | ({"logicalTypeOptions": {"timezone": True, "defaultTimezone": type.tz}} if type.tz else {})
        case "object":
            return {"properties": [described(f.name, f.type) for f in type]}
        case "array":
            return {"items": _nameless(type.value_type)}
        case "map":
            return {"map": {"key": _nameless(type.key_type), "value": _nameless(type.item_type)}}
        case "vector":
            element = next((name for name, t in VECTORS.items() if t == type.value_type), None)
            if element is None:
                return {"logicalType": "array", "items": _nameless(type.value_type)}
            return {"logicalTypeOptions": {"dimensions": type.list_size, "elementType": element}}
    return {}


def _nameless(type: pa.DataType) -> dict[str, Any]:
    return {k: v for k, v in described("", type).items() if k != "name"}
