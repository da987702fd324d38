"""Duplicates: of rows with equal keys, one goes on, whichever comes first or last in event time, never in arrival."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, concat, with_column
from tiebeam.transforms._fold import Fold, Folded, Tables, names, times_of
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._order import runs_of
from tiebeam.transforms._search import leaps
from tiebeam.transforms._shards import SHARDS
from tiebeam.transforms._windows import lengths

_OPEN = "open"
_BEGUN = "tiebeam:begun"
_EVER = 1 << 61


class Deduplicate(Keyed):
    """Lets one of all rows with equal keys go on.

    `by` are the key columns; by default the source's own position, so that a row that was delivered twice counts once. With `within`,
    rows are duplicates that come less than that long after the first of them; the next row is a first one again. `keep` says
    which goes on, the "first" or the "last" by `row_time`, at equal times by position, then by content.
    In: rows with the key columns and `row_time`.
    Out: some of the rows, as they are.
    Errors: `no_event_time`, `time_out_of_range`, `late`.
    State: one small row per key that was seen within the last `within` (with `keep="last"`: the row that would go on).
    Time: event time. A first row goes on with its tick, a last one when `within` is over. Without `within` the whole input is one
    stretch of time, so it must be bounded.

    Example:
        >>> import apache_beam as beam
        >>> batch = RowBatch.from_pydict({"row_position": ["log:7", "log:8", "log:7"], "row_time": times_of([1, 2, 1]), "n": [5, 6, 5]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     _ = p | beam.Create([batch]) | Deduplicate() | beam.FlatMap(lambda rows: rows["n"].to_pylist()) | beam.Map(print)
        5
        6
    """

    def __init__(
        self,
        by: str | Iterable[str] = ROW_POSITION,
        within: str | float | None = None,
        keep: str = "first",
        *,
        tick: str | float = "1m",
        shards: int = SHARDS,
        lateness: str | float = 0,
        late: str = "reject",
    ):
        problems: list[Problem] = []
        within_micros, tick_micros = lengths(problems, within=within, tick=tick)
        (lateness_micros,) = lengths(problems, 0, lateness=lateness)
        if keep not in ("first", "last"):
            problems.append(Problem(f"{keep!r} is not one of first, last", "keep"))
        if not names(by):
            problems.append(Problem("names no key", "by", "name the columns that duplicates have in common"))
        if problems:
            raise ConfigError(*problems)
        self.within = within_micros
        fold = DuplicateFold(names(by), within_micros or _EVER, keep == "last")
        super().__init__(fold, tick=tick_micros, shards=shards, lateness=lateness_micros, late=late)

    def expand(self, inputs: Any) -> Any:
        if not self.within and not inputs.is_bounded:
            what = "an input that never ends may bring a duplicate at any time"
            raise ConfigError(Problem(what, self.label, 'say how long rows are remembered: within="1h"'))
        return super().expand(inputs)


class DuplicateFold(Fold):
    """Remembers of each key since when rows are duplicates, and the row that goes on when it is the last."""

    def __init__(self, by: tuple[str, ...], within: int, last: bool):
        self.keys = {"rows": by}
        self.by = by
        self.within = within
        self.last = last

    def holds(self) -> int:
        return self.within if self.last else 0

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        opened, fresh = state.get(_OPEN), rows.get("rows")
        known = [batch for batch in (opened, fresh) if batch is not None]
        if not known:
            return Folded()
        together = concat(known)
        runs = runs_of(together, self.by)
        first = runs.starts
        begun = runs.times[first]
        if opened is not None:
            again = runs.order[first] < opened.num_rows
            begun[again] = opened.column(_BEGUN).cast(pa.int64()).to_numpy()[runs.order[first[again]]]
        marks = leaps(runs.times, first, runs.ends, begun, self.within)
        groups = np.flatnonzero(marks)
        since = runs.times[groups]
        since[np.searchsorted(groups, first)] = begun
        over = since + self.within <= upto
        kept = np.append(groups, len(marks))[1:] - 1 if self.last else groups
        old = opened.num_rows if opened is not None else 0
        if self.last:
            told = together.take(pa.array(runs.order[kept[over]]))
            told = told.select([name for name in told.schema.names if name != _BEGUN])
        else:
            at = runs.order[groups]
            told = together.slice(0, 0) if fresh is None else fresh.take(pa.array(at[at >= old] - old))
        return Folded([told], *self._left(together, runs.order[kept[~over]], since[~over]))

    def _left(self, together: RowBatch, rows: np.ndarray, since: np.ndarray) -> tuple[Tables, int | None]:
        """The groups that are not over. First rows went on already: that they are forgotten is worth a look when all are."""
        if not len(rows):
            return {}, None
        kept = together if self.last else together.select(list(dict.fromkeys([*self.by, ROW_TIME])))
        open = with_column(kept.take(pa.array(rows)), _BEGUN, times_of(since))
        ends = since + self.within
        return {_OPEN: open}, int(ends.min() if self.last else ends.max())
