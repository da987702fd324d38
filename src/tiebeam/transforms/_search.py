"""Binary search of many values at once, each in a stretch of its own of one sorted column."""

from __future__ import annotations

import numpy as np


def first_at_least(values: np.ndarray, wanted: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """For each of `wanted`, the first place in [low, high) whose value is not less; `high` where there is none.

    The values are sorted within each stretch.
    """
    low, high = low.astype(np.int64), high.astype(np.int64)
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) >> 1
        less = (low < high) & (values[np.minimum(middle, len(values) - 1)] < wanted)
        low, high = np.where(less, middle + 1, low), np.where(less, high, middle)
    return low
