"""Matching: which rows of one table belong to which of another, by keys and, within a key, by time.

Keys are equal as in SQL: null matches nothing. Integers of any width match one another; other types must agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RowBatch
from tiebeam.transforms._order import codes_of, order_of
from tiebeam.transforms._search import first_at_least
from tiebeam.transforms._states import plain

MAX_PAIRS = 65_536


def comparable(ours: pa.Array, theirs: pa.Array, name: str, step: str) -> tuple[pa.Array, pa.Array]:
    """Key columns of two tables in one type; raises ConfigError when there is none."""
    ours, theirs = plain(ours), plain(theirs)
    one, other = ours.type, theirs.type
    if pt.is_null(one) or pt.is_null(other):  # nothing to compare: such a column has no valid row
        return ours.cast(other) if pt.is_null(one) else ours, theirs.cast(one) if pt.is_null(other) else theirs
    for alike, widest in ((pt.is_unsigned_integer, pa.uint64()), (pt.is_integer, pa.int64()), (pt.is_floating, pa.float64())):
        if alike(one) and alike(other) and (widest != pa.int64() or pa.uint64() not in (one, other)):
            return ours.cast(widest), theirs.cast(widest)
    if one != other:
        raise ConfigError(Problem(f"the key {name!r} is {one} on one side and {other} on the other", step, "cast one of them before"))
    return ours, theirs


@dataclass(frozen=True)
class Pairs:
    """For each left row, the stretch [low, high) of the ordered right rows that it matches."""

    low: np.ndarray
    high: np.ndarray
    order: np.ndarray
    rights: int
    """How many right rows there are, also without a key."""

    @property
    def counts(self) -> np.ndarray:
        return self.high - self.low

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The numbers of left and right rows, pair by pair, so many at a time."""
        behind = np.cumsum(self.counts)
        for start in range(0, int(behind[-1]) if len(behind) else 0, MAX_PAIRS):
            pair = np.arange(start, min(start + MAX_PAIRS, int(behind[-1])))
            left = np.searchsorted(behind, pair, "right")
            yield left, self.order[self.low[left] + pair - (behind - self.counts)[left]]

    def matched(self) -> np.ndarray:
        """Which right rows are in a pair."""
        edges = np.zeros(len(self.order) + 1, np.int64)
        some = self.counts > 0
        np.add.at(edges, self.low[some], 1)
        np.add.at(edges, self.high[some], -1)
        found = np.zeros(self.rights, bool)
        found[self.order] = np.cumsum(edges)[:-1] > 0
        return found


class Matching:
    """Two tables, their keys compared once."""

    def __init__(self, left: RowBatch, right: RowBatch, on_left: Sequence[str], on_right: Sequence[str], step: str):
        self.right = right
        both = [comparable(left.column(a), right.column(b), a, step) for a, b in zip(on_left, on_right, strict=True)]
        n = left.num_rows
        codes = codes_of([pa.concat_arrays(pair) for pair in both], n + right.num_rows)
        nothing = np.zeros(len(codes), bool)
        for ours, theirs in both:
            nothing |= np.concatenate([column.is_null().to_numpy(zero_copy_only=False) for column in (ours, theirs)])
        self.left_codes = np.where(nothing[:n], -1, codes[:n])
        self.right_codes = codes[n:]
        self.valid = ~nothing[n:]

    @cached_property
    def order(self) -> np.ndarray:
        """The right rows that have a key, by key, time, position and content."""
        order = order_of(self.right, self.right_codes)
        return order[self.valid[order]]

    @cached_property
    def stretches(self) -> tuple[np.ndarray, np.ndarray]:
        """For each left row, where the right rows of its key begin and end."""
        codes = self.right_codes[self.order]
        return np.searchsorted(codes, self.left_codes), np.searchsorted(codes, self.left_codes, "right")

    def by_key(self) -> Pairs:
        return Pairs(*self.stretches, self.order, len(self.valid))

    def within(self, left_times: np.ndarray, right_times: np.ndarray, low: int, high: int) -> Pairs:
        """Right rows from `low` to `high` behind a left one, in microseconds, both included."""
        times, (begin, end) = right_times[self.order], self.stretches
        first = first_at_least(times, left_times + low, begin, end)
        return Pairs(first, first_at_least(times, left_times + high + 1, first, end), self.order, len(self.valid))

    def as_of(self, left_times: np.ndarray, right_times: np.ndarray, within: int | None) -> Pairs:
        """The last right row not after a left one, and no more than `within` before it."""
        times, (begin, end) = right_times[self.order], self.stretches
        behind = first_at_least(times, left_times + 1, begin, end)
        last = np.maximum(behind - 1, begin)
        some = behind > begin
        if within is not None and len(times):
            some &= left_times - times[np.minimum(last, len(times) - 1)] <= within
        return Pairs(last, last + some, self.order, len(self.valid))
