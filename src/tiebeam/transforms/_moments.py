"""Variance and standard deviation, from the exact sums of values and of their squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tiebeam.transforms._reducers import Reducer, number
from tiebeam.transforms._states import Rows, States
from tiebeam.transforms._sums import Digits, float_digits, to_float


@dataclass(frozen=True)
class Variance(Reducer):
    """The variance of a column taken as doubles, float64: of a sample (`ddof=1`) or of everything there is (`ddof=0`).

    From the exact sums of values and of squares, so that neither order nor a large mean costs precision. Null with no
    more than `ddof` values; NaN with infinities, NaN or values whose squares no double can hold (beyond 1e150).
    """

    column: str
    ddof: int = 1

    def type_of(self, rows: pa.Schema) -> pa.DataType:
        number(self, rows, self.column)
        return pa.float64()

    def lift(self, rows: Rows) -> dict[str, pa.Array]:
        values = rows.doubles(self.column)
        with np.errstate(over="ignore"):
            odd = ~np.isfinite(values * values)
        finite = np.where(odd, 0.0, values)
        square, error = _two_product(finite, finite)
        squares = float_digits(square)
        for place, digit in float_digits(error).items():
            squares[place] = squares.get(place, 0) + digit
        states = {f"count:{self.column}:": rows.valid(self.column)}
        states |= {f"floats:{self.column}:{place}": pa.array(digit) for place, digit in float_digits(finite).items()}
        states |= {f"squares:{self.column}:{place}": pa.array(digit) for place, digit in squares.items()}
        return states | ({f"squares:{self.column}:odd": pa.array(odd.astype(np.int8))} if odd.any() else {})

    def lower(self, states: States, rows: pa.Schema) -> pa.Array:
        return pa.array(*self._variance(states))

    def _variance(self, states: States) -> tuple[np.ndarray, None, np.ndarray]:
        n = states.numbers(f"count:{self.column}:")
        total, rest = _double_double(states.digits("floats", self.column), states.n)
        square, square_rest = _double_double(states.digits("squares", self.column), states.n)
        with np.errstate(over="ignore", invalid="ignore"):
            of_mean, error = _two_product(total, total)
            error += 2 * total * rest
            divisor = np.maximum(n, 1).astype(np.float64)
            part = of_mean / divisor
            back, back_error = _two_product(part, divisor)
            remainder = ((of_mean - back) - back_error + error) / divisor
            variance = ((square - part) + (square_rest - remainder)) / np.maximum(n - self.ddof, 1)
        variance = np.where(states.numbers(f"squares:{self.column}:odd") > 0, np.nan, np.maximum(variance, 0.0))
        return variance, None, n <= self.ddof


def _two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The product and its rounding error, exactly (Dekker 1971)."""

    def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        high = x * 134217729.0
        high = high - (high - x)
        return high, x - high

    product = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _double_double(digits: Digits, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A number as a double and what it leaves over."""
    head = to_float(digits, n)
    rest = dict(digits)
    for place, digit in float_digits(np.where(np.isfinite(head), head, 0.0)).items():
        rest[place] = rest.get(place, 0) - digit
    return head, to_float(rest, n)


@dataclass(frozen=True)
class StdDev(Variance):
    """The standard deviation of a column, float64: the square root of its `Variance`."""

    def lower(self, states: States, rows: pa.Schema) -> pa.Array:
        variance, _, empty = self._variance(states)
        return pa.array(np.sqrt(variance), mask=empty)
