"""Folds of Join: what each kind remembers of both sides, and when a row is known to have no partner."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pyarrow as pa

from tiebeam.rows import RowBatch, concat, with_column
from tiebeam.transforms._fold import END, Fold, Folded, Tables, micros_of
from tiebeam.transforms._joined import Joined, chosen
from tiebeam.transforms._matching import Matching, Pairs
from tiebeam.transforms._order import runs_of

_MATCHED = "tiebeam:matched"


class JoinFold(Fold):
    """What all joins have in common."""

    def __init__(self, joined: Joined, how: str):
        self.keys = {"left": joined.on_left, "right": joined.on_right}
        self.joined = joined
        self.how = how
        self.timed = joined.timed

    def check(self, name: str, rows: pa.Schema) -> None:
        self.joined.check(name, rows)

    def trim(self, name: str, rows: RowBatch) -> RowBatch:
        return self.joined.trim(name, rows)

    def matching(self, left: RowBatch, right: RowBatch) -> Matching:
        return Matching(left, right, self.joined.on_left, self.joined.on_right, "Join")

    def told(self, left: RowBatch, right: RowBatch, pairs: Pairs, once: bool = False) -> Iterator[RowBatch]:
        if self.how != "anti":
            for ours, theirs in pairs:
                yield self.joined.pairs(left.take(pa.array(ours)), right.take(pa.array(theirs)), once)

    def lonely(self, left: RowBatch | None, right: RowBatch | None = None) -> Iterator[RowBatch]:
        """Rows that have no partner, as far as they are wanted."""
        if left is not None and left.num_rows and self.how != "inner":
            yield left if self.how == "anti" else self.joined.alone(left)
        if right is not None and right.num_rows and self.how == "full":
            yield self.joined.strangers(right)


class TableFold(JoinFold):
    """Joins whole tables; remembers nothing, for both must be there at once."""

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        return Folded(self._rows(rows.get("left"), rows.get("right")))

    def _rows(self, left: RowBatch | None, right: RowBatch | None) -> Iterator[RowBatch]:
        if left is None or right is None:
            yield from self.lonely(left, right)
            return
        pairs = self.matching(left, right).by_key()
        yield from self.told(left, right, pairs)
        yield from self.lonely(chosen(left, pairs.counts == 0), chosen(right, ~pairs.matched()))


class AsOfFold(JoinFold):
    """Remembers of each key the last right row, for as long as it counts."""

    def __init__(self, joined: Joined, how: str, within: int | None):
        super().__init__(joined, how)
        self.within = within

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        left = rows.get("left")
        known = [tables["right"] for tables in (state, rows) if "right" in tables]
        if not known:
            return Folded(self.lonely(left))
        right = concat(known)
        told = self._rows(left, right) if left is not None else iter(())
        return Folded(told, *self._left(right, upto))

    def _rows(self, left: RowBatch, right: RowBatch) -> Iterator[RowBatch]:
        pairs = self.matching(left, right).as_of(micros_of(left), micros_of(right), self.within)
        yield from self.told(left, right, pairs, once=True)
        yield from self.lonely(chosen(left, pairs.counts == 0))

    def _left(self, right: RowBatch, upto: int) -> tuple[Tables, int | None]:
        if upto == END:
            return {}, None
        keyed = np.logical_and.reduce([right.column(key).is_valid() for key in self.joined.on_right])
        right = chosen(right, keyed)
        runs = runs_of(right, self.joined.on_right)
        last, times = runs.order[runs.ends - 1], runs.times[runs.ends - 1]
        if self.within is not None:
            last = last[times + self.within >= upto]
        if not len(last):
            return {}, None
        return {"right": right.take(pa.array(last))}, None if self.within is None else int(times.max()) + self.within + 1


class IntervalFold(JoinFold):
    """Remembers the rows of each side for as long as one of the other may come, and whether they had a partner."""

    def __init__(self, joined: Joined, how: str, low: int, high: int):
        super().__init__(joined, how)
        self.low = low
        self.high = high

    def holds(self) -> int:
        return max(0, self.high, -self.low if self.how == "full" else 0)

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        left, right = (_Side(state.get(name), rows.get(name)) for name in ("left", "right"))
        told = []
        if left.rows is not None and right.rows is not None:
            for ours, theirs in ((left.fresh, right.every), (left.before, right.fresh)):
                if len(ours) and len(theirs):
                    told.append(self._met(left, right, ours, theirs))
        left_ends, right_ends = left.times + self.high, right.times - self.low
        lonely = (side.gone((ends < upto) & ~side.matched) for side, ends in ((left, left_ends), (right, right_ends)))
        waiting = [left_ends[~left.matched]] if self.how != "inner" else []
        waiting += [right_ends[~right.matched]] if self.how == "full" else []
        soon = np.concatenate([ends[ends >= upto] for ends in waiting]) if waiting else np.array([], np.int64)
        ends = np.concatenate([left_ends, right_ends])
        stay = {"left": left.left(left_ends >= upto), "right": right.left(right_ends >= upto)}
        kept = {name: rows for name, rows in stay.items() if rows is not None}
        due = int(soon.min()) if len(soon) else int(ends.max()) if kept else None
        return Folded(chain(*told, self.lonely(*lonely)), kept, None if due is None else due + 1)

    def _met(self, left: _Side, right: _Side, ours: np.ndarray, theirs: np.ndarray) -> Iterator[RowBatch]:
        """Pairs of some left with some right rows; they are marked at once, told when asked."""
        mine, others = left.plain(ours), right.plain(theirs)
        pairs = self.matching(mine, others).within(left.times[ours], right.times[theirs], self.low, self.high)
        left.matched[ours] |= pairs.counts > 0
        right.matched[theirs] |= pairs.matched()
        return self.told(mine, others, pairs)


class _Side:
    """The rows of a side that were there before and those that are fresh, and whether they had a partner."""

    def __init__(self, before: RowBatch | None, fresh: RowBatch | None):
        known = [rows for rows in (before, fresh) if rows is not None]
        self.rows = concat(known) if known else None
        old, n = before.num_rows if before is not None else 0, sum(rows.num_rows for rows in known)
        self.before, self.fresh, self.every = np.arange(old), np.arange(old, n), np.arange(n)
        self.times = micros_of(self.rows) if self.rows is not None else np.array([], np.int64)
        self.matched = np.zeros(n, bool)
        if before is not None:
            self.matched[:old] = before.column(_MATCHED).to_numpy(zero_copy_only=False)

    def plain(self, rows: np.ndarray) -> RowBatch:
        """Some of the rows as they came."""
        assert self.rows is not None
        names = [name for name in self.rows.schema.names if name != _MATCHED]
        return self.rows.select(names).slice(rows[0], len(rows))

    def gone(self, mask: np.ndarray) -> RowBatch | None:
        return self.plain(self.every).filter(pa.array(mask)) if mask.any() else None

    def left(self, mask: np.ndarray) -> RowBatch | None:
        return with_column(self.plain(self.every), _MATCHED, pa.array(self.matched)).filter(pa.array(mask)) if mask.any() else None
