"""Column ranges: the smallest and largest value of each column of a file, for the manifest."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.rows import RowBatch

MAX_RANGE_TEXT = 64


class Ranges:
    """The smallest and largest value of each column whose values are cheap to compare."""

    def __init__(self):
        self.found: dict[str, tuple[pa.Scalar, pa.Scalar]] = {}
        self.given_up: set[str] = set()

    def add(self, batch: RowBatch) -> None:
        for field, column in zip(batch.schema, batch.columns, strict=True):
            if field.name in self.given_up or not _comparable(field.type):
                continue
            both = pc.min_max(column)
            low, high = both["min"], both["max"]
            if not low.is_valid:
                continue
            if pa.types.is_string(field.type) and max(len(low.as_py()), len(high.as_py())) > MAX_RANGE_TEXT:
                self.given_up.add(field.name)
                self.found.pop(field.name, None)
                continue
            if before := self.found.get(field.name):
                low, high = min(before[0], low, key=_order), max(before[1], high, key=_order)
            self.found[field.name] = (low, high)

    def result(self) -> tuple[dict[str, Any], dict[str, Any]]:
        plain = {name: (_plain(low), _plain(high)) for name, (low, high) in self.found.items()}
        known = {name: pair for name, pair in plain.items() if None not in pair}
        return {name: low for name, (low, _) in known.items()}, {name: high for name, (_, high) in known.items()}


def _comparable(kind: pa.DataType) -> bool:
    t = pa.types
    return (
        t.is_integer(kind)
        or t.is_float32(kind)
        or t.is_float64(kind)
        or t.is_decimal128(kind)
        or t.is_date(kind)
        or t.is_time(kind)
        or t.is_timestamp(kind)
        or t.is_string(kind)
    )


def _order(value: pa.Scalar) -> Any:
    return value.value if hasattr(value, "value") else value.as_py()  # the count of days or ticks: Python has no nanoseconds


def _plain(value: pa.Scalar) -> Any:
    if pa.types.is_integer(value.type) or pa.types.is_string(value.type):
        return value.as_py()
    if pa.types.is_floating(value.type):
        return value.as_py() if math.isfinite(value.as_py()) else None
    try:
        return value.cast(pa.string()).as_py()
    except pa.ArrowInvalid:  # a time beyond the calendar
        return None
