"""Binary search of many values at once, each in a stretch of its own of one sorted column."""

from __future__ import annotations

import numpy as np

_ROUNDS = 16


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


def leaps(values: np.ndarray, first: np.ndarray, ends: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Marks the first row of each stretch, and again and again the first row whose value is `length` or more beyond the last mark.

    The values are sorted within each stretch [first, end); `starts` is what the first row of each counts as, less than `length` before
    its value. A mark depends on the one
    before it, so marks are found in rounds: one after another at first, then by doubling the leap.
    """
    marked = np.zeros(len(values), bool)
    marked[first] = True
    for _ in range(_ROUNDS):
        at = first_at_least(values, starts + length, first, ends)
        first, ends = at[at < ends], ends[at < ends]
        starts = values[first]
        marked[first] = True
        if not len(first):
            return marked
    return marked | _orbits(values, first, ends, length)


def _orbits(values: np.ndarray, first: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """What can be reached from `first` by leaps: all leaps are found at once, then each round goes twice as far."""
    n = len(values)
    edges = np.zeros(n + 1, np.int64)
    edges[first] += 1
    edges[ends] -= 1
    inside, high = np.flatnonzero(np.cumsum(edges)[:n]), np.repeat(ends, ends - first)
    found = first_at_least(values, values[inside] + length, inside, high)
    leap = np.full(n + 1, n)
    leap[inside] = np.where(found < high, found, n)
    marked = np.zeros(n + 1, bool)
    marked[first] = True
    while (leap < n).any():
        marked[leap[np.flatnonzero(marked)]] = True
        leap = leap[leap]
    return marked[:n]
