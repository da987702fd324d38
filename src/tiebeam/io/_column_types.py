"""Column types: which Arrow type holds every value of which other, so that nothing is lost when columns meet.

Types that differ only in how values lie in memory (dictionaries, views, large variants) are one type here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.types as t

_UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_FLOAT_BITS = {16: 11, 32: 24, 64: 53}


class ConflictError(Exception):
    """Says that no type holds every value of two others."""

    def __init__(self, column: str, one: pa.DataType, other: pa.DataType):
        super().__init__(column, one, other)
        self.column, self.one, self.other = column, one, other


def fits(given: pa.DataType, kept: pa.DataType) -> bool:
    """Whether every value of type `given` is kept whole by a column of type `kept`."""
    given, kept = _plain(given), _plain(kept)
    if given == kept or t.is_null(given):
        return True
    for kind, holds in _HOLDS:
        if kind(given):
            return holds(given, kept)
    return False


def widest(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The schema that holds the rows of all, columns in order of appearance; raises ConflictError."""
    fields: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            held = fields.get(field.name)
            fields[field.name] = field.type if held is None or held == field.type else _wider(field.name, held, field.type)
    return pa.schema(list(fields.items()))


def _wider(column: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
    one, other = _decoded(one), _decoded(other)
    if fits(one, other):
        return other
    if fits(other, one):
        return one
    try:
        pair = [pa.schema([(column, one)]), pa.schema([(column, other)])]
        wide = pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except pa.ArrowException:
        raise ConflictError(column, one, other) from None
    if fits(one, wide) and fits(other, wide):
        return wide
    raise ConflictError(column, one, other)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if t.is_dictionary(kind) or t.is_run_end_encoded(kind) else kind


def _plain(kind: pa.DataType) -> pa.DataType:
    kind = _decoded(kind)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_binary_view(kind):
        return pa.binary()
    return pa.date32() if t.is_date64(kind) else kind


def _is_any_list(kind: pa.DataType) -> bool:
    return t.is_list(kind) or t.is_large_list(kind) or t.is_list_view(kind) or t.is_large_list_view(kind)


def _integer(given: pa.DataType, kept: pa.DataType) -> bool:
    bits = given.bit_width - t.is_signed_integer(given)
    if t.is_integer(kept):
        signed = t.is_signed_integer(kept)
        return bits <= kept.bit_width - signed and (signed or not t.is_signed_integer(given))
    if t.is_floating(kept):
        return bits <= _FLOAT_BITS[kept.bit_width]
    return t.is_decimal(kept) and len(str(1 << bits)) <= kept.precision - kept.scale


def _decimal(given: pa.DataType, kept: pa.DataType) -> bool:
    return t.is_decimal(kept) and given.scale <= kept.scale and given.precision - given.scale <= kept.precision - kept.scale


def _timestamp(given: pa.DataType, kept: pa.DataType) -> bool:
    return t.is_timestamp(kept) and (given.tz is None) == (kept.tz is None) and _finer(given, kept)


def _finer(given: pa.DataType, kept: pa.DataType) -> bool:
    return _UNITS[given.unit] <= _UNITS[kept.unit]


def _list(given: pa.DataType, kept: pa.DataType) -> bool:
    if t.is_fixed_size_list(kept):
        return t.is_fixed_size_list(given) and given.list_size == kept.list_size and fits(given.value_type, kept.value_type)
    return _is_any_list(kept) and fits(given.value_type, kept.value_type)


def _struct(given: pa.DataType, kept: pa.DataType) -> bool:
    if not t.is_struct(kept):
        return False
    places = {f.name: kept.get_field_index(f.name) for f in given}
    return all(i >= 0 and fits(given.field(name).type, kept.field(i).type) for name, i in places.items())


def _map(given: pa.DataType, kept: pa.DataType) -> bool:
    return t.is_map(kept) and fits(given.key_type, kept.key_type) and fits(given.item_type, kept.item_type)


_HOLDS: list[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType, pa.DataType], bool]]] = [
    (t.is_integer, _integer),
    (t.is_fixed_size_binary, lambda given, kept: t.is_binary(kept)),
    (t.is_floating, lambda given, kept: t.is_floating(kept) and given.bit_width <= kept.bit_width),
    (t.is_decimal, _decimal),
    (t.is_timestamp, _timestamp),
    (t.is_time, lambda given, kept: t.is_time(kept) and _finer(given, kept)),
    (t.is_duration, lambda given, kept: t.is_interval(kept) or (t.is_duration(kept) and _finer(given, kept))),
    (t.is_struct, _struct),
    (t.is_map, _map),
    (lambda kind: _is_any_list(kind) or t.is_fixed_size_list(kind), _list),
]
