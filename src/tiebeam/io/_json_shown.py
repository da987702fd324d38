"""What columns some JSON objects show, where nobody has said which there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from tiebeam.io._json_exact import BadLineError, Number, Pairs, parsed
from tiebeam.io._text_types import BEYOND_DOUBLE, widened


def shown_schema(lines: Iterable[bytes]) -> pa.Schema:
    """Whole numbers bigint, others double, true and false boolean, all else text. What is no object is passed over."""
    kinds: dict[str, set[pa.DataType]] = {}
    for line in lines:
        try:
            pairs = parsed(line)
        except BadLineError:
            continue
        for key, value in pairs or ():
            kinds.setdefault(key, set()).update(() if value is None else (_kind(value),))
    return pa.schema([(key, widened(seen)) for key, seen in kinds.items()])


def _kind(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, (Pairs, list)) or not isinstance(value, Number):
        return pa.string()
    if value.lstrip("-").isdigit():
        whole = int(value) if len(value) <= 20 else 2**63
        return pa.int64() if abs(whole) <= 2**53 else BEYOND_DOUBLE if -(2**63) <= whole < 2**63 else pa.string()
    return pa.float64()
