"""Event time: reads a column of any type as instants in UTC, all rows at once, null where a value is none.

Text follows ISO 8601 as Arrow reads it (`2026-01-02T03:04:05.678Z`, offsets, a blank for the T, a date alone), or a strptime format;
numbers count seconds, milliseconds or microseconds since 1970. Digits beyond a microsecond are cut. A local time that a change of
clocks repeats is the earlier of the two; one that it leaves out is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

UTC = pa.timestamp("us", tz="UTC")
UNIX = {"unix_secs": 1_000_000, "unix_millis": 1_000, "unix_micros": 1}

_ISO = r"^\d{4}-\d\d-\d\d([ T]\d\d.*)?$"
ISO_WITH_ZONE = r"[ T].*(Z|[+-]\d\d(:?\d\d)?)$"


def event_times(values: pa.Array, form: str, zone: str) -> pa.Array:
    """Gives timestamps in UTC; `form` is `iso`, a name of `UNIX` or a strptime format and says how to read text and numbers."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return event_times(values.dictionary_decode(), form, zone)
    if pa.types.is_timestamp(kind):
        values = where_possible(lambda v: v.cast(pa.timestamp("us", tz=kind.tz), safe=kind.unit != "ns"), values)
        return values.cast(UTC) if kind.tz else _in_zone(values, zone)
    if pa.types.is_date(kind):
        return _in_zone(where_possible(lambda v: v.cast(pa.timestamp("us")), values), zone)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return event_times(values.cast(pa.string()), form, zone)
    if pa.types.is_string(kind):
        return _iso(values, zone) if form == "iso" else _unix_text(values, UNIX[form]) if form in UNIX else _strptime(values, form, zone)
    if form in UNIX and pa.types.is_integer(kind):
        return _unix_whole(values, UNIX[form])
    if form in UNIX and (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return _unix_fraction(values.cast(pa.float64()), UNIX[form])
    return pa.nulls(len(values), UTC)


def where_possible(convert: Callable[[pa.Array], pa.Array], values: pa.Array) -> pa.Array:
    """Converts what can be converted, halving the array around what cannot, which becomes null."""
    try:
        return convert(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(values) == 1:
            return convert(pa.nulls(1, values.type))
        half = len(values) // 2
        return pa.concat_arrays([where_possible(convert, values[:half]), where_possible(convert, values[half:])])


def _in_zone(local: pa.Array, zone: str) -> pa.Array:
    if zone == "UTC":
        return local.cast(UTC)
    return where_possible(lambda v: pc.assume_timezone(v, zone, ambiguous="earliest", nonexistent="raise").cast(UTC), local)


def names_zone(text: pa.Array) -> bool:
    """Whether the first time there is says its zone. Worth a look: where Arrow cannot cast, it words an error for each value."""
    first = text.drop_null()[:1].to_pylist()
    return bool(first) and re.search(ISO_WITH_ZONE, first[0]) is not None


def _iso(text: pa.Array, zone: str) -> pa.Array:
    try:
        return text.cast(UTC) if names_zone(text) else _in_zone(text.cast(pa.timestamp("us")), zone)
    except pa.ArrowInvalid:
        pass
    text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
    zoned = pc.match_substring_regex(text, ISO_WITH_ZONE)
    looks = pc.match_substring_regex(text, _ISO)
    none = pa.scalar(None, pa.string())
    instants = where_possible(lambda v: v.cast(UTC), pc.if_else(pc.and_(looks, zoned), text, none))
    local = where_possible(lambda v: v.cast(pa.timestamp("us")), pc.if_else(pc.and_(looks, pc.invert(zoned)), text, none))
    return pc.coalesce(instants, _in_zone(local, zone))


def _strptime(text: pa.Array, form: str, zone: str) -> pa.Array:
    import polars as pl

    # `%.f` is what Polars (chrono) calls Python's `.%f`; a day alone needs an hour to become an instant
    form = form.replace(".%f", "%.f")
    timed = any(part in form for part in ("%H", "%I", "%T", "%X", "%c", "%R", "%r", "%s", "%+"))
    column = pl.Series(pl.from_arrow(text))
    if timed:
        parsed = column.str.to_datetime(form, strict=False, time_unit="us").to_arrow()
    else:
        parsed = column.str.to_date(form, strict=False).to_arrow().cast(pa.timestamp("us"))
    return parsed.cast(UTC) if parsed.type.tz else _in_zone(parsed, zone)


def _unix_text(text: pa.Array, micros: int) -> pa.Array:
    whole = pc.match_substring_regex(text, r"^-?\d{1,19}$")
    fraction = pc.match_substring_regex(text, r"^-?\d{1,18}\.\d+$")
    none = pa.scalar(None, pa.string())
    wholes = where_possible(lambda v: v.cast(pa.int64()), pc.if_else(whole, text, none))
    fractions = pc.if_else(fraction, text, none).cast(pa.float64())
    return pc.coalesce(_unix_whole(wholes, micros), _unix_fraction(fractions, micros))


def _unix_whole(values: pa.Array, micros: int) -> pa.Array:
    most = (2**63 - 1) // micros
    if values.type == pa.uint64():
        values = pc.if_else(pc.less_equal(values, pa.scalar(most, pa.uint64())), values, pa.scalar(None, pa.uint64()))
    values = values.cast(pa.int64())
    if micros > 1:
        fits = pc.and_(pc.greater_equal(values, -most), pc.less_equal(values, most))
        values = pc.multiply(pc.if_else(fits, values, pa.scalar(None, pa.int64())), micros)
    return values.cast(UTC)


def _unix_fraction(values: pa.Array, micros: int) -> pa.Array:
    scaled = pc.round(pc.multiply(values, float(micros)))
    fits = pc.less(pc.abs(scaled), 2.0**63)  # false for infinity, and for NaN
    return pc.if_else(fits, scaled, pa.scalar(None, pa.float64())).cast(pa.int64()).cast(UTC)
