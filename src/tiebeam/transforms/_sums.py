"""Exact sums: numbers are cut into digits of 32 bits, and the digits are summed as integers.

A number is the sum of `digit[k] * 2**(32*k)`, k negative for fractions. Integer addition is associative, so the sum of
any number of doubles, integers or decimals is exact, and the same in every order. Only at the end is it rounded, once.
Doubles of similar size have three digits; their whole range has 66. Why not floating-point addition, and what this
costs: docs/decisions/0004-float-sums.md. After Shewchuk's exact and Neal's "small" superaccumulator (arXiv:1505.05571).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

BITS = 32
_MASK = (1 << BITS) - 1

Digits = dict[int, np.ndarray]
"""Digits by place, one int64 per number; an absent place is zero everywhere."""


def digits_of(array: pa.Array) -> Digits:
    """The digits of integers, booleans, decimals and doubles; of nulls and of what is not finite they are zero."""
    kind = array.type
    if pt.is_decimal(kind):
        return _decimal_digits(array)
    if pt.is_floating(kind):
        values = array.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
        return float_digits(np.where(np.isfinite(values), values, 0.0))
    if kind == pa.uint64():
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        return {0: (values & np.uint64(_MASK)).astype(np.int64), 1: (values >> np.uint64(BITS)).astype(np.int64)}
    values = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if max(-low, high) * len(values) < 1 << 62:
        return {0: values}
    return {0: values & _MASK, 1: values >> BITS}


def float_digits(values: np.ndarray) -> Digits:
    """The digits of finite doubles: every step is exact, since it only takes bits away from the front."""
    digits: Digits = {}
    rest = values
    place = int(np.frexp(np.abs(values).max(initial=0.0))[1] - 1) // BITS
    while rest.any():
        head = np.trunc(_scale(rest, -BITS * place))
        if head.any():
            digits[place] = head.astype(np.int64)
            rest = rest - _scale(head, BITS * place)
        place -= 1
    return digits


def _scale(values: np.ndarray, exponent: int) -> np.ndarray:
    if abs(exponent) < 1000:
        return values * 2.0**exponent
    return np.ldexp(values, exponent)


def _decimal_digits(array: pa.Array) -> Digits:
    kind = array.type
    if kind.byte_width < 16:
        array = array.cast(pa.decimal128(kind.precision, kind.scale))
    width = array.type.byte_width // 4
    filled = array.fill_null(0)  # a copy of its own, or the array itself, which may be part of a larger one
    raw = np.frombuffer(filled.buffers()[1], np.uint32).reshape(-1, width)[filled.offset : filled.offset + len(filled)]
    digits = {k: raw[:, k].astype(np.int64) for k in range(width)}
    digits[width - 1] = raw[:, width - 1].astype(np.int32).astype(np.int64)
    return {k: d for k, d in digits.items() if d.any()}


def carry(digits: Digits) -> Digits:
    """The same numbers with every digit within 33 bits, so that two thousand million of them can be added."""
    carried = dict(digits)
    place = min(carried, default=0)
    while carried and place <= (top := max(carried)):
        digit = carried.get(place)
        if digit is not None and (place < top or (np.abs(digit) > _MASK).any()):
            over = digit >> BITS
            if over.any():
                carried[place] = digit & _MASK
                carried[place + 1] = carried.get(place + 1, 0) + over
        place += 1
    return carried


def to_float(digits: Digits, n: int) -> np.ndarray:
    """The nearest double of each number, as `math.fsum` rounds; infinite beyond the largest."""
    if not digits:
        return np.zeros(n)
    low, places = _ladder(digits, n)
    negative = places[-1] < 0
    places = _settle(np.where(negative, -places, places))
    some = places != 0
    lead = len(places) - 1 - np.argmax(some[::-1], axis=0)
    lead = np.where(some.any(axis=0), lead, 2)
    row = np.arange(n)
    first, second, third = (places[lead - i, row].astype(np.uint64) for i in range(3))
    below = np.logical_or.accumulate(some, axis=0)[np.maximum(lead - 3, 0), row] & (lead > 2)
    shift = (BITS - np.frexp(first.astype(np.float64))[1]).astype(np.uint64)
    unshift = np.uint64(BITS) - shift
    below |= (third & ((np.uint64(1) << unshift) - np.uint64(1))) != 0
    leading = ((first << np.uint64(BITS) | second) << shift) | (third >> unshift) | below.astype(np.uint64)
    with np.errstate(over="ignore"):
        magnitude = np.ldexp(leading.astype(np.float64), (BITS * (low + lead - 1)) - shift.astype(np.int64))
    return np.where(negative, -magnitude, magnitude)


def to_int64(digits: Digits, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers as int64, and a mask of those that do not fit (their value is meaningless)."""
    _, places = _ladder({0: np.zeros(n, np.int64), 1: np.zeros(n, np.int64), **digits}, n)
    zero, one, sign = places[2], places[3], places[-1]
    value = (one << BITS) | zero
    fits = (sign == (value >> 63)) & (places[4:] == (sign & _MASK)).all(axis=0, where=_inner(places))
    return value, ~fits


def _inner(places: np.ndarray) -> np.ndarray:
    mask = np.ones((len(places) - 4, 1), bool)
    mask[-1] = False
    return mask


def to_decimal(digits: Digits, n: int, kind: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """Unscaled whole numbers as decimals, and a mask of those that do not fit (their value is null)."""
    width = kind.byte_width // 4
    _, places = _ladder({k: digits.get(k, np.zeros(n, np.int64)) for k in range(max([width - 1, *digits]) + 1)}, n)
    kept, sign = places[2 : 2 + width], places[-1]
    fits = (sign == -(kept[-1] >> (BITS - 1))) & (places[2 + width : -1] == (sign & _MASK)).all(axis=0)
    limit = 10**kind.precision
    largest = [((limit - 1) >> (BITS * k)) & _MASK for k in range(width)]
    magnitude = _settle(np.where(sign < 0, -kept, kept)) & _MASK
    fits &= ~_greater(magnitude, largest)
    raw = np.ascontiguousarray(kept.T.astype(np.uint32))
    array = pa.Array.from_buffers(kind, n, [None, pa.py_buffer(raw.tobytes())])
    return pc.if_else(pa.array(fits), array, pa.scalar(None, kind)), ~fits


def _greater(places: np.ndarray, than: list[int]) -> np.ndarray:
    greater = np.zeros(places.shape[1], bool)
    for place, limit in zip(places, than, strict=True):  # from the lowest: a higher place overrules
        greater = (place > limit) | ((place == limit) & greater)
    return greater


def _ladder(digits: Digits, n: int) -> tuple[int, np.ndarray]:
    """Digits as a matrix, lowest place first, two empty places below and above; each within 32 bits, the top the sign."""
    low = min(digits) - 2
    places = np.zeros((max(digits) - low + 3, n), np.int64)
    for place, digit in digits.items():
        places[place - low] = digit
    return low, _settle(places)


def _settle(places: np.ndarray) -> np.ndarray:
    places = places.copy()
    for k in range(len(places) - 1):
        places[k + 1] += places[k] >> BITS
        places[k] &= _MASK
    return places
