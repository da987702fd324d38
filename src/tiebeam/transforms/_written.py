"""Written times: the date patterns of the standard, read strictly.

Patterns are those of Java's DateTimeFormatter (https://docs.oracle.com/javase/8/docs/api/java/time/format/DateTimeFormatter.html),
the part of it that has one meaning: yyyy or uuuu, MM, M, MMM, dd, d, HH, H, hh, mm, ss, SSS, SSSSSS, SSSSSSSSS, a, XXX,
and text in quotes.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from tiebeam.transforms import _types
from tiebeam.transforms._rules import Mask

_LETTERS = {"yyyy": "%Y", "uuuu": "%Y", "MM": "%m", "M": "%-m", "MMM": "%b", "MMMM": "%B", "dd": "%d", "d": "%-d", "HH": "%H", "H": "%-H"}
_LETTERS |= {"hh": "%I", "mm": "%M", "ss": "%S", "SSS": "%3f", "SSSSSS": "%6f", "SSSSSSSSS": "%9f", "a": "%p", "EEE": "%a"}
_LETTERS |= {"XXX": "%:z", "XX": "%z"}
_TOKEN = re.compile(r"'(?P<quoted>[^']*)'|(?P<letters>([A-Za-z])\3*)|(?P<other>[^A-Za-z']+)")


def strptime_of(pattern: str) -> str:
    """The pattern in strptime's letters; raises ValueError when a part of it has no single meaning."""
    made, end = "", 0
    for token in _TOKEN.finditer(pattern):
        if token.start() != end:
            break
        end = token.end()
        letters, text = token["letters"], token["other"] or ("'" if token["quoted"] == "" else token["quoted"])
        if letters and letters not in _LETTERS:
            raise ValueError(f"{letters!r} in the format {pattern!r} is not supported")
        made += _LETTERS[letters] if letters else text.replace("%", "%%")
    if end != len(pattern):
        raise ValueError(f"the format {pattern!r} has an open quote")
    return made


def read_written(values: pa.Array, written: str, to: pa.DataType, zone: str) -> tuple[pa.Array, Mask]:
    """Reads text of a declared format; what would be written otherwise than it was does not fit."""
    text = pl.Series(values=pl.from_arrow(values), dtype=pl.String)
    family, aware = _types.kind(to), written.endswith("z")
    unit: Any = to.unit if family in ("timestamp", "time") and to.unit != "s" else "ms"
    kind = {"date": pl.Date, "time": pl.Time}.get(family) or pl.Datetime(unit, "UTC" if aware else None)
    if aware:
        text = text.str.replace("Z$", "+00:00")
    read = text.str.strptime(kind, written, strict=False, exact=True)
    if not aware:
        read = pl.select(pl.when(read.dt.to_string(written) == text).then(read)).to_series()
    if family == "timestamp" and to.tz and not aware:
        read = read.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
    bad = (text.is_not_null() & read.is_null()).to_numpy()
    made = read.to_arrow()
    if family == "timestamp" and to.tz is None and aware:
        return pa.nulls(len(values), to), np.ones(len(values), bool)
    try:
        return made.cast(to), bad
    except pa.ArrowInvalid:
        back = made.cast(to, safe=False)
        changed = pl.Series(pl.from_arrow(back.cast(made.type))).ne_missing(read).to_numpy()
        return back, bad | changed
