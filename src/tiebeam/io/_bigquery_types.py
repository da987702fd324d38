"""Types of BigQuery and of Arrow: which column holds what, what changes a table so that it can, and which values do not fit.

https://cloud.google.com/bigquery/docs/reference/standard-sql/data-types and, for Arrow, /docs/supported-data-types of the Storage API.
Columns are described as the REST API does it: {"name", "type", "mode", "fields"}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from tiebeam.errors import ConfigError, Problem
from tiebeam.io._typed_files import cast

Column = dict[str, Any]

ARROW: dict[str, pa.DataType] = {
    "BOOLEAN": pa.bool_(),
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "JSON": pa.string(),
    "GEOGRAPHY": pa.string(),
}
"""What a column of each type is in Arrow, on the way in and on the way out."""

_ALIASES = {"BOOL": "BOOLEAN", "INT64": "INTEGER", "FLOAT64": "FLOAT", "DECIMAL": "NUMERIC", "BIGDECIMAL": "BIGNUMERIC", "STRUCT": "RECORD"}
_EXTENSIONS = {"arrow.json": "JSON", "arrow.uuid": "STRING", "geoarrow.wkt": "GEOGRAPHY", "arrow.bool8": "BOOLEAN"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")
_TAKEN = ("_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier", "_change_")
_FAMILIES: tuple[Callable[[pa.DataType], bool], ...] = (
    lambda kind: t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind),
    lambda kind: t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind),
    lambda kind: t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind) or t.is_fixed_size_binary(kind),
    t.is_boolean,
    t.is_date,
    t.is_time,
    lambda kind: t.is_timestamp(kind) and kind.tz is None,
    lambda kind: t.is_timestamp(kind) and kind.tz is not None,
)
_DAY_MICROS = 86_400_000_000
_YEARS = ((date(1, 1, 1) - date(1970, 1, 1)).days, (date(9999, 12, 31) - date(1970, 1, 1)).days + 1)


class UnfitError(ValueError):
    """Says why a value cannot be held, or (MisfitError) no value of this type."""


class MisfitError(UnfitError):
    """Says why no value of a type can be held."""


def column_of(name: str, kind: pa.DataType) -> Column | None:
    """The column that a table gets for values of an Arrow type; None for one of nothing but nulls, whose type is not known yet.

    Raises ConfigError for what BigQuery does not have.
    """
    if not _NAME.fullmatch(name):
        raise _refused(name, "is no name of a column", "letters, digits and _, not beginning with a digit, at most 300: rename it before")
    if name.lower().startswith(_TAKEN):
        raise _refused(name, "is a name that BigQuery keeps for itself", "rename it before writing")
    if t.is_null(kind):
        return None
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return column_of(name, kind.value_type)
    if t.is_map(kind):
        return column_of(name, pa.list_(_entries(kind)))
    if _is_list(kind):
        inner = column_of(name, kind.value_type)
        if inner and inner["mode"] == "REPEATED":
            raise _refused(name, "is an array of arrays, which BigQuery does not have", "put the inner array into a struct")
        return inner and {**inner, "mode": "REPEATED"}
    if t.is_struct(kind):
        inside = [c for field in kind if (c := column_of(field.name, field.type))]
        if not inside and kind.num_fields == 0:
            raise _refused(name, "is a struct without fields", "leave it out")
        return {"name": name, "type": "RECORD", "mode": "NULLABLE", "fields": inside} if inside else None
    return {"name": name, "type": _scalar(name, kind), "mode": "NULLABLE"}


def _scalar(name: str, kind: pa.DataType) -> str:
    if isinstance(kind, pa.BaseExtensionType):
        return _EXTENSIONS[kind.extension_name] if kind.extension_name in _EXTENSIONS else _scalar(name, kind.storage_type)
    if t.is_duration(kind) or t.is_interval(kind):
        fix = "write seconds as a number, or the two moments"
        raise _refused(name, f"is {kind}; INTERVAL of BigQuery cannot be written by its Storage API", fix)
    if t.is_decimal(kind):
        return "NUMERIC" if kind.scale <= 9 and kind.precision - kind.scale <= 29 else "BIGNUMERIC"
    if t.is_timestamp(kind):
        return "TIMESTAMP" if kind.tz else "DATETIME"
    if t.is_uint64(kind):
        return "NUMERIC"
    for name_of, is_kind in (
        ("BOOLEAN", t.is_boolean), ("INTEGER", t.is_integer), ("FLOAT", t.is_floating), ("DATE", t.is_date), ("TIME", t.is_time),
        ("STRING", _FAMILIES[1]), ("BYTES", _FAMILIES[2]),
    ):  # fmt: skip
        if is_kind(kind):
            return name_of
    raise _refused(name, f"is {kind}, which BigQuery has no type for", "convert it before writing")


def columns_of(schema: pa.Schema) -> list[Column]:
    """The columns of a table for rows of a schema."""
    same: dict[str, str] = {}
    for name in schema.names:
        if (other := same.setdefault(name.lower(), name)) != name:
            raise _refused(name, f"differs from {other!r} in case only, and BigQuery takes them for one", "rename one")
    return [column for field in schema if (column := column_of(field.name, field.type))]


def evolved(kept: list[Column], wanted: list[Column], nulls: set[str], *, within: str = "") -> tuple[list[Column], list[str]]:
    """The columns a table needs to take rows, and what of it is new, in words. `nulls`: columns that rows leave empty.

    Columns are added as NULLABLE, and REQUIRED ones that rows leave empty become NULLABLE; nothing else is changed.
    """
    rows = {c["name"].lower(): c for c in wanted}
    known = {c["name"].lower() for c in kept}
    news, out = [], []
    for held in kept:
        column, row, name = held, rows.get(held["name"].lower()), within + held["name"]
        if column.get("mode") == "REQUIRED" and not within and (row is None or column["name"].lower() in nulls):
            column = {**column, "mode": "NULLABLE"}
            news.append(f"{name} may be null")
        if row and row["type"] == kind_of(column) == "RECORD":
            fields, inside = evolved(column["fields"], row["fields"], set(), within=f"{name}.")
            column = {**column, "fields": fields}
            news += inside
        out.append(column)
    added = [c for c in wanted if c["name"].lower() not in known]
    return [*out, *added], news + [f"{within}{c['name']} {c['type']}" for c in added]


def arrow_type(column: Column) -> pa.DataType:
    """What a column is in Arrow."""
    if kind_of(column) == "RECORD":
        kind: pa.DataType = pa.struct([(c["name"], arrow_type(c)) for c in column["fields"]])
    elif kind_of(column) in ARROW:
        kind = ARROW[kind_of(column)]
    else:
        raise ConfigError(Problem(f"column {column['name']!r} is {kind_of(column)}, which cannot be written", "table", "write to another"))
    return pa.list_(kind) if column.get("mode") == "REPEATED" else kind


def kind_of(column: Column) -> str:
    """The type of a column, by its one name."""
    name: str = column["type"]
    return _ALIASES.get(name, name)


def fitted(values: pa.Array, column: Column) -> pa.Array:
    """Values as the column holds them, nothing lost; raises UnfitError when one of them cannot be held."""
    try:
        return _fitted(values, column)
    except pa.ArrowException as e:
        raise UnfitError(f"column {column['name']!r}: {str(e).splitlines()[0]}") from None


def where_fitted(values: pa.Array, column: Column) -> tuple[pa.Array, pa.Array, dict[int, str]]:
    """Values as the column holds them, which of them cannot be held, and why; what cannot is halved out."""
    troubles: dict[int, str] = {}

    def halved(start: int, part: pa.Array) -> Iterator[pa.Array]:
        try:
            yield fitted(part, column)
        except UnfitError as e:
            if len(part) == 1 or isinstance(e, MisfitError):
                troubles.update((start + i, str(e)) for i in range(len(part)) if part[i].is_valid)
                yield from [_empty(column)] * len(part)
            else:
                half = len(part) // 2
                yield from halved(start, part[:half])
                yield from halved(start + half, part[half:])

    parts = list(halved(0, values))
    bad = pa.array([i in troubles for i in range(len(values))], pa.bool_()) if troubles else pa.repeat(False, len(values))
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts), bad, troubles


def _empty(column: Column) -> pa.Array:
    empty: list[Any] = [[]] if column.get("mode") == "REPEATED" else [None]
    return pa.array(empty, arrow_type(column))


def _fitted(values: pa.Array, column: Column) -> pa.Array:
    kind = values.type
    if t.is_dictionary(kind):
        return _fitted(values.dictionary_decode(), column)
    if t.is_run_end_encoded(kind):
        return _fitted(pc.run_end_decode(values), column)
    if isinstance(kind, pa.BaseExtensionType):
        return _fitted(values.cast(pa.string()) if kind.extension_name == "arrow.uuid" else values.storage, column)
    if t.is_null(kind):
        return _fitted(pa.nulls(len(values), arrow_type(column)), column)
    if column.get("mode") == "REPEATED":
        return _repeated(values, column)
    if kind_of(column) == "RECORD":
        return _record(values, column)
    return _scalars(values, column)


def _repeated(values: pa.Array, column: Column) -> pa.Array:
    """An array is never null, and none of its elements is."""
    if t.is_map(values.type):
        values = values.cast(pa.list_(_entries(values.type)))
    if not _is_list(values.type):
        raise MisfitError(f"column {column['name']!r} is an array in the table, and {values.type} here")
    if not t.is_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    inside = values.flatten()
    if inside.null_count:
        raise UnfitError(f"column {column['name']!r}: an array of BigQuery holds no nulls")
    lengths = pc.fill_null(pc.list_value_length(values), 0).cast(pa.int64())
    ends = pc.cumulative_sum(lengths).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    return pa.ListArray.from_arrays(offsets, _fitted(inside, {**column, "mode": "NULLABLE"}))


def _record(values: pa.Array, column: Column) -> pa.Array:
    if not t.is_struct(values.type):
        raise MisfitError(f"column {column['name']!r} is a RECORD in the table, and {values.type} here")
    given = {field.name.lower(): part for field, part in zip(values.type, values.flatten(), strict=True)}
    parts = [
        _fitted(given[c["name"].lower()], c) if c["name"].lower() in given else _fitted(pa.nulls(len(values)), c) for c in column["fields"]
    ]
    fields = [pa.field(c["name"], arrow_type(c)) for c in column["fields"]]
    return pa.StructArray.from_arrays(parts, fields=fields, mask=values.is_null() if values.null_count else None)


def _scalars(values: pa.Array, column: Column) -> pa.Array:
    kind, wanted = values.type, arrow_type(column)
    if not any(same(kind) and same(wanted) for same in _FAMILIES):
        raise MisfitError(f"column {column['name']!r} is {kind_of(column)} in the table, and {kind} here")
    if t.is_floating(kind) and t.is_decimal(wanted):
        raise MisfitError(f"column {column['name']!r} is {kind_of(column)} in the table; a float is not exact")
    if t.is_floating(kind) and t.is_float16(kind):
        values = values.cast(pa.float32())
    if kind_of(column) == "JSON":
        _check_json(values, column["name"])
    fit = cast(values, wanted)
    if t.is_date(wanted) or t.is_timestamp(wanted):
        _check_years(fit, column["name"])
    return fit


def _check_json(values: pa.Array, name: str) -> None:
    def no(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    for text in values.drop_null().to_pylist():
        try:
            json.loads(text, parse_constant=no)
        except ValueError as e:
            raise UnfitError(f"column {name!r} is JSON: {e}") from None


def _check_years(values: pa.Array, name: str) -> None:
    days = t.is_date(values.type)
    counted = values.cast(pa.int32() if days else pa.int64())
    first, last = (limit * (1 if days else _DAY_MICROS) for limit in _YEARS)
    if pc.any(pc.or_(pc.less(counted, first), pc.greater_equal(counted, last))).as_py():
        raise UnfitError(f"column {name!r}: BigQuery knows the years 1 to 9999")


def _entries(kind: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)])


def _is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view))


def _refused(name: str, what: str, fix: str) -> ConfigError:
    return ConfigError(Problem(f"column {name!r} {what}", "columns", fix))


def mapping() -> list[tuple[str, str, str]]:
    """What becomes of each Arrow type, for the documentation: type, column, and what a reader gets back."""
    kinds: Iterable[pa.DataType] = (
        pa.bool_(), pa.int8(), pa.int64(), pa.uint32(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(18, 2),
        pa.decimal128(38, 9), pa.decimal128(38, 10), pa.decimal256(76, 38), pa.string(), pa.large_string(), pa.string_view(), pa.binary(),
        pa.binary(16), pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"), pa.time64("ns"), pa.timestamp("us"),
        pa.timestamp("ns", tz="UTC"), pa.timestamp("us", tz="Europe/Paris"), pa.json_(), pa.uuid(), pa.dictionary(pa.int8(), pa.string()),
        pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.list_(pa.list_(pa.int64())),
        pa.duration("us"), pa.month_day_nano_interval(), pa.null(),
    )  # fmt: skip
    return [(str(kind), *_shown(kind)) for kind in kinds]


def _shown(kind: pa.DataType) -> tuple[str, str]:
    try:
        column = column_of("c", kind)
    except ConfigError as e:
        return "refused", e.problems[0].what.removeprefix("column 'c' ")
    if column is None:
        return "waits for a value", ""
    inside = f"<{', '.join(c['name'] + ' ' + c['type'] for c in column['fields'])}>" if "fields" in column else ""
    return ("REPEATED " if column["mode"] == "REPEATED" else "") + column["type"] + inside, str(arrow_type(column))
