"""Top rows: the first rows of each key and window in an order of their own, whole.

`Aggregate` has a reducer `TopK`, which ranks the values of a column by their weight; here rows are ranked, and stay rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_TIME, RowBatch, concat, with_column
from tiebeam.transforms._fold import Fold, Folded, Tables, micros_of, names
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._order import runs_of
from tiebeam.transforms._shards import SHARDS
from tiebeam.transforms._states import plain
from tiebeam.transforms._windows import WINDOW_START, lengths, window_starts

RANK = "rank"
_DIRECTIONS = {"asc": "ascending", "desc": "descending"}


class Top(Keyed):
    """Lets the first `n` rows of each key and window go on, ranked.

    `order_by` names the columns that rank, the largest value first; "price asc" ranks the smallest first. NaN comes behind all
    numbers, null behind all values. Equal rows rank by `row_time`, then by position, then by content.
    In: rows with the columns of `by` and `order_by`, with a window also `row_time`.
    Out: some of the rows as they are, with `window_start` (only with a window) and `rank`, from 1.
    Errors: with a window `no_event_time`, `time_out_of_range`, `late`.
    State: `n` rows per key and open window; gone when the window is over.
    Time: event time, fixed windows of length `window`, aligned with 1970; a window is told when it is over. Without one the whole
    input is ranked, so it must be bounded.

    Example:
        >>> import apache_beam as beam
        >>> sales = RowBatch.from_pydict({"shop": ["a", "a", "b", "a"], "price": [3, 9, 4, 7]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     best = p | beam.Create([sales]) | Top(2, order_by="price", by="shop", shards=1)
        ...     _ = best | beam.FlatMap(RowBatch.to_pylist) | beam.Map(print)
        {'shop': 'a', 'price': 9, 'rank': 1}
        {'shop': 'a', 'price': 7, 'rank': 2}
        {'shop': 'b', 'price': 4, 'rank': 1}
    """

    def __init__(
        self,
        n: int,
        order_by: str | Iterable[str],
        by: str | Iterable[str] = (),
        window: str | float | None = None,
        *,
        tick: str | float | None = None,
        shards: int = SHARDS,
        lateness: str | float = 0,
        late: str = "reject",
    ):
        problems: list[Problem] = []
        window_micros, tick_micros = lengths(problems, window=window, tick=window or "1m" if tick is None else tick)
        (lateness_micros,) = lengths(problems, 0, lateness=lateness)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            problems.append(Problem(f"{n!r} is not a whole number from 1", "n"))
        if window_micros and tick_micros and window_micros % tick_micros:
            problems.append(Problem(f"{tick!r} does not divide the window, {window!r}", "tick"))
        if not (ranking := [_direction(name) for name in names(order_by)]):
            problems.append(Problem("names no column", "order_by", 'name what ranks, such as "price" or "price asc"'))
        if problems:
            raise ConfigError(*problems)
        fold = TopFold(n, ranking, names(by), window_micros, window_micros - tick_micros)
        super().__init__(fold, tick=tick_micros, shards=shards, lateness=lateness_micros, late=late)

    def expand(self, inputs: Any) -> Any:
        if not self.fold.timed and not inputs.is_bounded:
            what = "an input that never ends may bring a better row at any time"
            raise ConfigError(Problem(what, self.label, 'rank the rows of windows: window="1h"'))
        return super().expand(inputs)


def _direction(name: str) -> tuple[str, str]:
    """A column and its direction, as `sort_indices` takes them."""
    column, _, direction = name.rpartition(" ")
    return (column, _DIRECTIONS[direction]) if column and direction in _DIRECTIONS else (name, "descending")


class TopFold(Fold):
    """Remembers of each key and open window the rows that lead so far."""

    condenses = True

    def __init__(self, n: int, ranking: list[tuple[str, str]], by: tuple[str, ...], window: int, hold: int):
        self.keys = {"rows": by}
        self.n = n
        self.ranking = ranking
        self.by = by
        self.window = window
        self.timed = bool(window)
        self._hold = hold

    def holds(self) -> int:
        return self._hold if self.window else 0

    def check(self, name: str, rows: pa.Schema) -> None:
        if problems := list(self._problems(rows)):
            raise ConfigError(*problems)

    def _problems(self, rows: pa.Schema) -> Iterator[Problem]:
        for column, _ in self.ranking:
            if column not in rows.names:
                yield Problem(f"there is no column {column!r}", "order_by", f"the rows have: {', '.join(rows.names)}")
            elif pa.types.is_nested(rows.field(column).type):
                yield Problem(f"{column!r} is {rows.field(column).type}", "order_by", "rank by flat columns")
        for column in (RANK, WINDOW_START) if self.window else (RANK,):
            if column in rows.names:
                yield Problem(f"the rows have a column {column!r} already", "Top", "rename it before")

    def condense(self, name: str, rows: RowBatch) -> RowBatch:
        return rows.take(pa.array(self._leading(rows)[0]))

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        known = [tables["rows"] for tables in (state, rows) if "rows" in tables]
        if not known:
            return Folded()
        together = concat(known)
        leading, ranks = self._leading(together)
        led = together.take(pa.array(leading))
        if not self.window:
            return Folded([with_column(led, RANK, pa.array(ranks))])
        micros = micros_of(led)
        ends = micros - micros % self.window + self.window
        over = ends <= upto
        told = with_column(with_column(led, WINDOW_START, window_starts(led.column(ROW_TIME), self.window)), RANK, pa.array(ranks))
        left = {"rows": led.filter(pa.array(~over))} if not over.all() else {}
        return Folded([told.filter(pa.array(over))], left, int(ends[~over].min()) if left else None)

    def _leading(self, rows: RowBatch) -> tuple[np.ndarray, np.ndarray]:
        """The rows that lead, by key, window and rank, and their ranks."""
        by = list(self.by)
        if self.window:
            rows, by = with_column(rows, WINDOW_START, window_starts(rows.column(ROW_TIME), self.window)), [*by, WINDOW_START]
        runs = runs_of(rows, by)
        columns = [plain(rows.column(name)).take(pa.array(runs.order)) for name, _ in self.ranking]
        table = pa.table([pa.array(runs.run), *columns], [str(i) for i in range(len(columns) + 1)])
        directions = ["ascending", *(direction for _, direction in self.ranking)]
        place = pc.sort_indices(table, sort_keys=[(str(i), d) for i, d in enumerate(directions)]).to_numpy()  # stable
        ranks = np.arange(len(place)) - np.repeat(runs.starts, runs.ends - runs.starts) + 1
        leads = ranks <= self.n
        return runs.order[place[leads]], ranks[leads]
