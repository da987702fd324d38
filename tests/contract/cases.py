"""The cases that every connector is put through: small tables, one concern each. Every table has a key column `n`."""

from __future__ import annotations

import decimal
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa

D = decimal.Decimal


def _table(**columns: tuple[pa.DataType, list]) -> pa.RecordBatch:
    rows = len(next(iter(columns.values()))[1])
    arrays = {"n": pa.array(range(rows), pa.int64())} | {name: pa.array(values, kind) for name, (kind, values) in columns.items()}
    return pa.RecordBatch.from_pydict(arrays)


CASES: dict[str, pa.RecordBatch] = {
    "integers": _table(
        small=(pa.int32(), [0, -(2**31), 2**31 - 1, None]),
        large=(pa.int64(), [0, -(2**63), 2**63 - 1, None]),
        beyond_a_double=(pa.int64(), [2**53 + 1, -(2**53) - 1, 7, None]),
    ),
    "floats": _table(double=(pa.float64(), [0.1, -1.5e300, 5e-324, None]), whole=(pa.float64(), [1.0, 2.0, 3.0, None])),
    "booleans": _table(flag=(pa.bool_(), [True, False, None])),
    "text": _table(
        word=(pa.string(), ["plain", "", None, "ünï 🐝", " spaces ", "null", "1", "true"]),
        hard=(pa.string(), ['quo"te', "com,ma", "line\nbreak", "tab\there", "back\\slash", "'", "cr\r\nlf", "{}"]),
    ),
    "decimals": _table(amount=(pa.decimal128(18, 2), [D("0.10"), D("-9999999999999999.99"), D("1.00"), None])),
    "dates": _table(day=(pa.date32(), [date(2026, 11, 24), date(1970, 1, 1), date(1583, 1, 1), None])),
    "times": _table(
        at=(
            pa.timestamp("us", tz="UTC"),
            [
                datetime(2026, 11, 24, 1, 2, 3, 456789, UTC),
                datetime(1970, 1, 1, tzinfo=UTC),
                datetime(1969, 12, 31, 23, 59, tzinfo=UTC),
                None,
            ],
        ),
        local=(pa.timestamp("us"), [datetime(2026, 11, 24, 1, 2, 3, 456789), datetime(1999, 12, 31), datetime(2000, 1, 1), None]),
    ),
    "bytes": _table(raw=(pa.binary(), [b"\x00\xff", b"", b"plain", None])),
    "nested": _table(
        items=(pa.list_(pa.struct([("sku", pa.string()), ("count", pa.int64())])), [[{"sku": "a", "count": 1}], [], None]),
        deep=(pa.struct([("a", pa.struct([("b", pa.list_(pa.int64()))]))]), [{"a": {"b": [1, 2]}}, {"a": None}, None]),
    ),
    "durations": _table(took=(pa.duration("us"), [timedelta(seconds=1), timedelta(days=-2), None])),
    "only nulls": _table(nothing=(pa.string(), [None, None])),
    "odd names": _table(**{"Größe in m²": (pa.int64(), [1, 2]), "select": (pa.int64(), [3, 4]), "a b,c": (pa.int64(), [5, 6])}),
    "dictionary": _table(colour=(pa.dictionary(pa.int8(), pa.string()), ["red", "blue", "red", None])),
    "many": pa.RecordBatch.from_pydict({"n": range(70_000), "word": [f"w{i % 97}" for i in range(70_000)]}),
}

SOME = CASES["booleans"]
"""The rows of tests that care about delivery, not about types."""
