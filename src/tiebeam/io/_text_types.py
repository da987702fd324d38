"""Types of columns in text files: how they are declared in words, and how text becomes a value of each without silent loss.

A declaration is a list of names and SQL types: `id bigint, amount decimal(12,2), at timestamptz`.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import ConfigError, Problem
from tiebeam.io._event_time import ISO_WITH_ZONE, names_zone, where_possible

_NAMES: dict[str, pa.DataType] = {
    **dict.fromkeys(("bigint", "int64", "long"), pa.int64()),
    **dict.fromkeys(("int", "integer", "int32"), pa.int32()),
    **dict.fromkeys(("smallint", "int16"), pa.int16()),
    **dict.fromkeys(("tinyint", "int8"), pa.int8()),
    **dict.fromkeys(("ubigint", "uint64"), pa.uint64()),
    **dict.fromkeys(("double", "float64"), pa.float64()),
    **dict.fromkeys(("real", "float", "float32"), pa.float32()),
    **dict.fromkeys(("boolean", "bool"), pa.bool_()),
    **dict.fromkeys(("string", "text", "varchar"), pa.string()),
    **dict.fromkeys(("binary", "bytes", "blob"), pa.binary()),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
}
_DECLARED = re.compile(r'\s*(?:"([^"]+)"|([^\s,"]+))\s+([A-Za-z0-9]+)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?\s*(?:,|$)')


def declared_schema(text: str) -> pa.Schema:
    """Reads a declaration; raises ValueError saying which part is none."""
    fields, at = [], 0
    while at < len(text):
        match = _DECLARED.match(text, at)
        if not match:
            raise ValueError(f"{text[at:].strip()!r} is not a name and a type")
        quoted, plain, kind, precision, scale = match.groups()
        fields.append(pa.field(quoted or plain, _type(kind.lower(), precision, scale)))
        at = match.end()
    if doubled := {f.name for f in fields if [g.name for g in fields].count(f.name) > 1}:
        raise ValueError(f"{', '.join(sorted(doubled))} is declared twice")
    return pa.schema(fields)


def _type(kind: str, precision: str | None, scale: str | None) -> pa.DataType:
    if kind in ("decimal", "numeric"):
        digits = int(precision or 38)
        return pa.decimal128(digits, int(scale or 0)) if digits <= 38 else pa.decimal256(digits, int(scale or 0))
    if kind not in _NAMES:
        raise ValueError(f"{kind!r} is no type; one of {', '.join([*_NAMES, 'decimal(p,s)'])}")
    return _NAMES[kind]


def refuse_unsupported(schema: pa.Schema) -> None:
    """Raises ConfigError for columns whose type no text file can be read as."""
    problems = [
        Problem(f"{field.type} cannot be read from text", f"column {field.name}", "declare it as text")
        for field in schema
        if not _supported(field.type)
    ]
    if problems:
        raise ConfigError(*problems)


def _supported(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_struct(kind):
        return kind.num_fields > 0 and all(_supported(f.type) for f in kind)
    if t.is_list(kind) or t.is_large_list(kind):
        return _supported(kind.value_type)
    texts = (t.is_string, t.is_large_string, t.is_binary, t.is_large_binary)
    others = (t.is_integer, t.is_floating, t.is_boolean, t.is_decimal, t.is_date, t.is_time, t.is_timestamp, t.is_duration)
    return any(is_kind(kind) for is_kind in (*texts, *others))


def from_text(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """Reads text as values of a type; null where it is none, or would lose something."""
    t = pa.types
    if t.is_timestamp(kind):
        return where_possible(lambda v: v.cast(kind), _instants(text, kind))
    if t.is_duration(kind):
        return from_text(text, pa.int64()).cast(kind)
    if t.is_time(kind):
        dated = pc.binary_join_element_wise("1970-01-01T", text, "")
        dated = where_possible(lambda v: v.cast(pa.timestamp(kind.unit)), dated)
        return dated.cast(kind)
    if t.is_binary(kind) or t.is_large_binary(kind):
        return _from_base64(text).cast(kind)
    if t.is_decimal(kind):
        text = _where(text, pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"))
    if t.is_integer(kind):
        text = _where(text, pc.match_substring_regex(text, r"^[+-]?(0|[1-9]\d*)$"))
        text = pc.replace_substring_regex(text, r"^\+", "")
    values = where_possible(lambda v: v.cast(kind), text)
    if t.is_floating(kind):
        beyond = pc.and_(pc.is_inf(values), pc.match_substring_regex(text, r"\d"))
        values = _where(values, pc.invert(pc.fill_null(beyond, False)))
    return values


def _where(values: pa.Array, mask: pa.Array) -> pa.Array:
    return pc.if_else(mask, values, pa.scalar(None, values.type))


def _instants(text: pa.Array, kind: pa.TimestampType) -> pa.Array:
    """Text with an offset is an instant, text without is one in UTC; a type without a zone then holds the UTC time."""
    try:
        found = text.cast(pa.timestamp(kind.unit, "UTC" if names_zone(text) else None)).cast(pa.timestamp(kind.unit, "UTC"))
        return found if kind.tz else found.cast(pa.timestamp(kind.unit))
    except pa.ArrowInvalid:
        pass
    zoned = pc.match_substring_regex(text, ISO_WITH_ZONE)
    instants = where_possible(lambda v: v.cast(pa.timestamp(kind.unit, "UTC")), _where(text, zoned))
    local = where_possible(lambda v: v.cast(pa.timestamp(kind.unit)), _where(text, pc.invert(zoned)))
    both = pc.coalesce(instants, local.cast(pa.timestamp(kind.unit, "UTC")))
    return both if kind.tz else both.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.timestamp(kind.unit))


def _from_base64(text: pa.Array) -> pa.Array:
    import polars as pl

    shaped = pc.match_substring_regex(text, r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")
    decoded = pl.Series(pl.from_arrow(_where(text, shaped)), dtype=pl.String).str.decode("base64", strict=False)
    return decoded.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.binary())


BEYOND_DOUBLE = pa.decimal128(19)
"""Stands in a sample for a whole number that a double cannot hold."""


def widened(kinds: set[pa.DataType]) -> pa.DataType:
    """The type that holds what a sample showed without loss: whole numbers and fractions are double, other mixtures text."""
    if kinds <= {pa.int64(), BEYOND_DOUBLE} and kinds:
        return pa.int64()
    if kinds == {pa.int64(), pa.float64()}:
        return pa.float64()
    return next(iter(kinds)) if len(kinds) == 1 else pa.string()
