"""Casts that lose nothing: a value either arrives as it was or is told apart in a mask.

What counts as the same value: a number with its exact counterpart; a binary float with the decimal that it is written as
(0.1 is 0.1), there and back; text with the value it spells, where a fraction spelt in text is the nearest float to it.
Times are not moved to a coarser unit unless nothing is cut off, and not stripped of their zone. A time without zone is
read in the column's default zone, unless that hour happened twice or never. Numbers are no times and times no numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.transforms._rules import Mask, mask
from tiebeam.transforms._types import kind
from tiebeam.transforms._written import read_written

Cast = tuple[pa.Array, Mask | None]

_YEAR_ONE = -719_162
_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def cast_exactly(values: pa.Array, to: pa.DataType, written: str | None = None, zone: str = "UTC") -> Cast:
    """Casts plain values of a plain type; what does not fit is null in the result and true in the mask (None: all fit)."""
    if values.type == to:
        return values, None
    source, target = kind(values.type), kind(to)
    if values.null_count == len(values):
        return pa.nulls(len(values), to), None
    read: Cast
    if source == "string" and written:
        read = read_written(values, written, to, zone)
    elif source == "string" and target in ("date", "time", "timestamp"):
        read = _time_of_text(values, to, zone)
    elif target == "timestamp" and source in ("date", "timestamp"):
        read = _timestamp(values, to, zone)
    elif way := _WAYS.get((source, target)):
        read = way(values, to)
    else:
        read = pa.nulls(len(values), to), np.ones(len(values), bool)
    made, bad = read
    if bad is not None:
        bad &= mask(pc.is_valid(values))
    return (made, None) if bad is None or not bad.any() else (without(made, bad), bad)


def without(values: pa.Array, bad: Mask | None) -> pa.Array:
    """The values with null where the mask is true."""
    if bad is None or not bad.any():
        return values
    return pc.if_else(pa.array(~bad), values, pa.scalar(None, values.type))


def _each(values: pa.Array, cast: Callable[[pa.Array], pa.Array]) -> Cast:
    """Casts all at once; where Arrow refuses, every distinct value is judged alone, by halving."""
    try:
        return cast(values), None
    except pa.ArrowInvalid:
        distinct = values.dictionary_encode()
    pieces, bad = [], []
    waiting = [distinct.dictionary]
    while waiting:
        part = waiting.pop()
        try:
            pieces.append(cast(part))
            bad.append(np.zeros(len(part), bool))
        except pa.ArrowInvalid:
            if len(part) == 1:
                pieces.append(None)
                bad.append(np.ones(1, bool))
            else:
                waiting += [part.slice(len(part) // 2), part.slice(0, len(part) // 2)]
    type = next((p.type for p in pieces if p is not None), pa.null())
    made = pa.concat_arrays([pa.nulls(1, type) if p is None else p for p in pieces])
    flags = pa.array(np.concatenate(bad))
    return made.take(distinct.indices), mask(flags.take(distinct.indices))


def _arrow(values: pa.Array, to: pa.DataType) -> Cast:
    made, bad = _each(values, lambda part: part.cast(to))
    return (made if made.type == to else pa.nulls(len(values), to)), bad


def _numbers(values: pa.Array) -> np.ndarray[Any, Any]:
    return pc.fill_null(values, 0).to_numpy(zero_copy_only=False)


def _array(numbers: np.ndarray[Any, Any], like: pa.Array, to: pa.DataType) -> pa.Array:
    return pa.array(numbers, to, mask=mask(pc.is_null(like)))


def _int_to_float(values: pa.Array, to: pa.DataType) -> Cast:
    numbers = _numbers(values)
    limits = np.iinfo(numbers.dtype)
    with np.errstate(over="ignore"):
        made = numbers.astype(to.to_pandas_dtype())
    wide = made.astype(np.float64)
    inside = (wide >= float(limits.min)) & (wide < float(limits.max + 1))
    same = np.where(inside, wide, 0).astype(numbers.dtype) == numbers
    return _array(made, values, to), ~(inside & same)


def _float_to_int(values: pa.Array, to: pa.DataType) -> Cast:
    numbers = _numbers(values).astype(np.float64)
    limits = np.iinfo(to.to_pandas_dtype())
    fits = (np.floor(numbers) == numbers) & (numbers >= float(limits.min)) & (numbers < float(int(limits.max) + 1))
    return _array(np.where(fits, numbers, 0).astype(to.to_pandas_dtype()), values, to), ~fits


def _float_to_float(values: pa.Array, to: pa.DataType) -> Cast:
    numbers = _numbers(values)
    with np.errstate(over="ignore"):
        made = numbers.astype(to.to_pandas_dtype())
    return _array(made, values, to), (made.astype(np.float64) != numbers.astype(np.float64)) & ~np.isnan(numbers)


def _float_to_decimal(values: pa.Array, to: pa.DataType) -> Cast:
    """By arithmetic where it is exact, which is nearly always; the rest by the shortest text of the value."""
    numbers, power = _numbers(values).astype(np.float64), 10.0 ** min(to.scale, 22)
    if to.scale > 22 or to.bit_width != 128 or values.type != pa.float64():
        return _via_text(values, to)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.rint(numbers * power)
        sure = (np.abs(scaled) < min(10.0**15, 10.0**to.precision)) & (scaled / power == numbers)
    units = np.where(sure, scaled, 0).astype(np.int64)
    words = np.stack([units, units >> 63], axis=1)  # little-endian: the low half, then its sign
    kept = mask(pc.is_valid(values)) & sure
    made = pa.Array.from_buffers(to, len(values), [pa.array(kept).buffers()[1], pa.py_buffer(words)])
    if sure.all():
        return made, None
    rest, bad = _via_text(pc.if_else(pa.array(~sure), values, pa.scalar(None, values.type)), to)
    return pc.coalesce(made, rest), bad


def _via_text(values: pa.Array, to: pa.DataType) -> Cast:
    """From float or integer to decimal, by the shortest text of the value."""
    return _arrow(values.cast(pa.string()), to)


def _decimal_to_float(values: pa.Array, to: pa.DataType) -> Cast:
    made = values.cast(pa.string()).cast(pa.float64())
    if to != pa.float64():
        made = pa.array(_numbers(made).astype(to.to_pandas_dtype()), to, mask=mask(pc.is_null(values)))
    back, lost = _via_text(made.cast(pa.float32()) if to == pa.float16() else made, values.type)
    changed = mask(pc.not_equal(back, values))
    return made, _either(changed, lost)


def _int_to_bool(values: pa.Array, to: pa.DataType) -> Cast:
    return values.cast(to), mask(pc.invert(pc.is_in(values, value_set=pa.array([0, 1], values.type))))


def _text_to_int(values: pa.Array, to: pa.DataType) -> Cast:
    made, bad = _arrow(values, to)
    return made, _either(bad, mask(pc.match_substring(values, "x", ignore_case=True)))  # Arrow reads 0x1F as 31


def _text_to_float(values: pa.Array, to: pa.DataType) -> Cast:
    """The nearest float; not one beyond the largest or below the smallest, nor one that misses a whole number."""
    made, bad = _arrow(values, to if to == pa.float32() else pa.float64())
    if to == pa.float16():
        made, narrowed = _float_to_float(made, to)
        bad = _either(bad, narrowed)
    numbers = _numbers(made).astype(np.float64)
    strange = np.isinf(numbers) | (numbers == 0)
    lost = np.zeros(len(values), bool) if bad is None else bad
    if strange.any():
        zero = mask(pc.match_substring_regex(values, r"^[+-]?[0.]*([eE]|$)"))
        infinite = mask(pc.match_substring_regex(values, "(?i)inf"))
        lost = lost | (np.isinf(numbers) & ~infinite) | ((numbers == 0) & ~zero)
    large = np.flatnonzero(np.isfinite(numbers) & (np.abs(numbers) >= 2.0 ** _digits(to)))
    for i, text in zip(large, values.take(pa.array(large)).to_pylist(), strict=True):
        lost[i] |= text.lstrip("+-").isdigit() and int(text) != int(numbers[i])
    return made, lost


def _timestamp_to_date(values: pa.Array, to: pa.DataType) -> Cast:
    if values.type.tz:
        return pa.nulls(len(values), to), np.ones(len(values), bool)
    return values.cast(to), _numbers(values.cast(pa.int64())) % _PER_DAY[values.type.unit] != 0


def _timestamp(values: pa.Array, to: pa.DataType, zone: str) -> Cast:
    aware = kind(values.type) == "timestamp" and values.type.tz is not None
    if aware and not to.tz:
        return pa.nulls(len(values), to), np.ones(len(values), bool)
    if aware or not to.tz:
        return _arrow(values, to)
    naive, bad = _arrow(values, pa.timestamp(to.unit))
    made, unclear = _each(naive, lambda part: pc.assume_timezone(part, zone).cast(to))
    return (made if made.type == to else pa.nulls(len(values), to)), _either(bad, unclear)


def _time_of_text(values: pa.Array, to: pa.DataType, zone: str) -> Cast:
    if kind(to) == "time":
        moments, bad = _arrow(pc.binary_join_element_wise("1970-01-01T", values, ""), pa.timestamp(to.unit))
        return moments.cast(to), bad
    if kind(to) == "date" or to.tz is None:
        made, bad = _arrow(values, to)
        days = made.cast(pa.date32()).cast(pa.int32())
    else:
        made, bad = _zoned_text(values, to, zone)
        days = made.cast(pa.timestamp(to.unit, "UTC")).cast(pa.date32()).cast(pa.int32())
    return made, _either(bad, mask(pc.less(days, _YEAR_ONE)))


def _zoned_text(values: pa.Array, to: pa.DataType, zone: str) -> Cast:
    try:
        return values.cast(to), None
    except pa.ArrowInvalid:
        zoned = pc.match_substring_regex(values, r"(Z|[+-]\d\d:?\d\d|T.*[+-]\d\d)$")
    none = pa.scalar(None, pa.string())
    made, bad = _arrow(pc.if_else(zoned, values, none), to)
    local, unfit = cast_exactly(pc.if_else(zoned, none, values), pa.timestamp(to.unit))
    moved, unclear = cast_exactly(local, to, zone=zone)
    return pc.coalesce(made, moved), _either(_either(bad, unfit), unclear)


def _either(one: Mask | None, other: Mask | None) -> Mask | None:
    return other if one is None else one if other is None else one | other


_WAYS: dict[tuple[str, str], Callable[[pa.Array, pa.DataType], Cast]] = {
    ("integer", "integer"): _arrow,
    ("integer", "number"): _int_to_float,
    ("integer", "decimal"): _via_text,
    ("integer", "boolean"): _int_to_bool,
    ("number", "integer"): _float_to_int,
    ("number", "number"): _float_to_float,
    ("number", "decimal"): _float_to_decimal,
    ("decimal", "integer"): _arrow,
    ("decimal", "number"): _decimal_to_float,
    ("decimal", "decimal"): _arrow,
    ("boolean", "integer"): _arrow,
    ("string", "integer"): _text_to_int,
    ("string", "number"): _text_to_float,
    ("string", "decimal"): _arrow,
    ("string", "boolean"): _arrow,
    ("string", "binary"): _arrow,
    ("binary", "string"): _arrow,
    ("binary", "binary"): _arrow,
    ("date", "date"): _arrow,
    ("timestamp", "date"): _timestamp_to_date,
    ("time", "time"): _arrow,
    ("duration", "duration"): _arrow,
    **{(family, "string"): _arrow for family in ("string", "integer", "number", "decimal", "boolean", "date", "time", "timestamp")},
}


def holds_all(source: pa.DataType, to: pa.DataType) -> bool:
    """Whether a type can hold every value of another, so that moving to it never depends on the values."""
    families = kind(source), kind(to)
    if source == to or families[0] == "null":
        return True
    match families:
        case ("integer", "integer"):
            return _digits(source) <= _digits(to) and (pa.types.is_signed_integer(to) or pa.types.is_unsigned_integer(source))
        case ("integer", "number") | ("number", "number"):
            return _digits(source) <= _digits(to)
        case ("integer", "decimal"):
            return math.ceil(_digits(source) * math.log10(2)) <= to.precision - to.scale
        case ("decimal", "decimal"):
            return source.scale <= to.scale and source.precision - source.scale <= to.precision - to.scale
        case ("boolean", "integer") | ("string", "binary"):
            return True
    return (*families,) in _WAYS and families[1] == "string" and families[0] != "binary"


def _digits(type: pa.DataType) -> int:
    """How many binary digits a number type keeps."""
    if pa.types.is_floating(type):
        return {16: 11, 32: 24, 64: 53}[type.bit_width]
    return type.bit_width - pa.types.is_signed_integer(type)
