"""Rules: what a contract demands of the values of a column, each judged as one mask over the whole column.

`broken(values)` is true where a value breaks the rule; nulls break none. `reason` is the word a dead letter carries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def mask(flags: pa.Array) -> Mask:
    """A NumPy mask of an Arrow one; null is false."""
    return pc.fill_null(flags, False).to_numpy(zero_copy_only=False)


def either(masks: Iterable[Mask], rows: int) -> Mask:
    """True where any of the masks is."""
    merged = np.zeros(rows, bool)
    for one in masks:
        merged |= one
    return merged


class _Demand:
    @property
    def refusal(self) -> str:
        """What is said of a value that breaks the rule."""
        return f"is not {self}"


@dataclass(frozen=True)
class OneOf(_Demand):
    """Demands one of the accepted values."""

    accepted: pa.Array
    reason: ClassVar[str] = "not_accepted"

    def broken(self, values: pa.Array) -> Mask:
        return mask(pc.and_not(pc.is_valid(values), pc.is_in(values, value_set=self.accepted)))

    def __str__(self) -> str:
        return f"one of {_listed(self.accepted)}"


@dataclass(frozen=True)
class NotMissing(_Demand):
    """Refuses the values that stand for a missing one."""

    words: pa.Array
    reason: ClassVar[str] = "missing_value"

    def broken(self, values: pa.Array) -> Mask:
        return mask(pc.and_(pc.is_valid(values), pc.is_in(values, value_set=self.words)))

    def __str__(self) -> str:
        return f"none of {_listed(self.words)}"

    @property
    def refusal(self) -> str:
        return "stands for a missing value"


@dataclass(frozen=True)
class Bound(_Demand):
    """Demands that values lie on one side of a limit: `sign` is one of >=, >, <=, <. NaN lies on neither."""

    sign: str
    limit: pa.Scalar
    reason: ClassVar[str] = "out_of_range"
    _COMPARE: ClassVar[dict[str, str]] = {">=": "greater_equal", ">": "greater", "<=": "less_equal", "<": "less"}

    def broken(self, values: pa.Array) -> Mask:
        extreme = (pc.min if self.sign.startswith(">") else pc.max)(values)
        if not pa.types.is_floating(values.type) and self._holds(extreme):  # cheaper than a mask; but NaN is no extreme
            return np.zeros(len(values), bool)
        return mask(pc.invert(self._holds(values)))

    def _holds(self, values: Any) -> Any:
        holds = pc.call_function(self._COMPARE[self.sign], [values, self.limit])
        return holds.as_py() is not False if isinstance(holds, pa.Scalar) else holds

    def __str__(self) -> str:
        return f"{self.sign} {self.limit.as_py()}"


@dataclass(frozen=True)
class Pattern(_Demand):
    """Demands that a regular expression (RE2) is found in the text; anchor it with ^ and $ to cover all of it."""

    regex: str
    reason: ClassVar[str] = "pattern"

    def broken(self, values: pa.Array) -> Mask:
        return mask(pc.invert(pc.match_substring_regex(values, self.regex)))

    def __str__(self) -> str:
        return f"matches {self.regex}"

    @property
    def refusal(self) -> str:
        return f"does not match {self.regex}"


@dataclass(frozen=True)
class Length(_Demand):
    """Demands a number of characters, bytes or items."""

    low: int = 0
    high: int | None = None
    reason: ClassVar[str] = "length"

    def broken(self, values: pa.Array) -> Mask:
        if pa.types.is_string(values.type):
            size = pc.utf8_length(values)
        else:
            size = pc.list_value_length(values) if pa.types.is_nested(values.type) else pc.binary_length(values)
        broken = mask(pc.less(size, self.low))
        return broken if self.high is None else broken | mask(pc.greater(size, self.high))

    def __str__(self) -> str:
        return f"{self.low} to {self.high} long" if self.high is not None else f"at least {self.low} long"


@dataclass(frozen=True)
class MultipleOf(_Demand):
    """Demands whole multiples of an integer."""

    factor: int
    reason: ClassVar[str] = "multiple_of"

    def broken(self, values: pa.Array) -> Mask:
        numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
        return numbers % numbers.dtype.type(self.factor) != 0

    def __str__(self) -> str:
        return f"a multiple of {self.factor}"


def _listed(values: pa.Array) -> str:
    return ", ".join(str(v) for v in values[:10].to_pylist()) + (", …" if len(values) > 10 else "")


Rule = OneOf | NotMissing | Bound | Pattern | Length | MultipleOf
