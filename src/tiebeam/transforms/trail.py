"""What was known of a key at the time of each row: figures over its trail, the rows before.

A row sees its own past and nothing else, whether the rows come as a stream or years later from files: what a model is trained
with is what it will be given (point-in-time correct).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, concat, with_column
from tiebeam.transforms._fold import Fold, Folded, Tables, names
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._moments import StdDev, Variance
from tiebeam.transforms._order import runs_of
from tiebeam.transforms._partials import Partials
from tiebeam.transforms._reducers import Count, First, Last, Max, Mean, Min, Reducer, Sum
from tiebeam.transforms._search import first_at_least
from tiebeam.transforms._shards import SHARDS
from tiebeam.transforms._states import plain
from tiebeam.transforms._trails import distinct, reduced
from tiebeam.transforms._windows import length_micros, lengths

__all__ = [
    "Count", "Distinct", "First", "Last", "Max", "Mean", "Min", "Past", "RatioToMean", "SinceLast", "StdDev", "Sum", "Trail", "Variance",
]  # fmt: skip

_PAST = "past"


@dataclass(frozen=True)
class Distinct:
    """How many different values a column has, nulls left out: int64, exact."""

    column: str


@dataclass(frozen=True)
class SinceLast:
    """The time since the row before, in seconds: float64, null where there is none."""


@dataclass(frozen=True)
class RatioToMean:
    """The row's own value divided by the mean of the past ones: float64, null without a past, or where its mean is 0."""

    column: str


@dataclass(frozen=True)
class Past:
    """A figure over the rows of the same key less than `over` before, with `rows` over the last so many of them at most; `itself` says
    whether the row belongs to them.

    `what` is Distinct, SinceLast, RatioToMean, or a reducer as Aggregate has them: Count, Sum, Mean, Min, Max, First, Last, Variance,
    StdDev.
    """

    over: str | float
    what: Reducer | Distinct | SinceLast | RatioToMean
    itself: bool = False
    rows: int | None = None

    @property
    def micros(self) -> int:
        return length_micros(self.over, "over")[0]

    @property
    def reducer(self) -> Reducer:
        """The reducer that is asked, or that reads the same columns."""
        if isinstance(self.what, Reducer):
            return self.what
        if isinstance(self.what, SinceLast):
            return Count()
        return Count(self.what.column) if isinstance(self.what, Distinct) else Mean(self.what.column)


class Trail(Keyed):
    """Adds to each row figures over the rows of the same key before it.

    `by` are the key columns (null is a key like any other). The rows before are those with a smaller `row_time`, at equal times with
    a smaller position, then content; the row itself is left out unless `itself=True`.
    In: rows with the key columns, the columns of the figures, and `row_time`.
    Out: the rows as they are, with a column for each figure.
    Errors: `no_event_time`, `time_out_of_range`, `late`.
    State: of each key the rows of the longest `over`, only the columns that are needed.
    Time: event time; a row goes on with its tick.

    Example:
        >>> import apache_beam as beam
        >>> from tiebeam.transforms._fold import times_of
        >>> batch = RowBatch.from_pydict({"card": ["x", "x", "x"], "paid": [10, 30, 60], "row_time": times_of([0, 60_000_000, 90_000_000])})
        >>> trail = Trail("card", times=Past("1h", Count()), spent=Past("1m", Sum("paid")), unusual=Past("1h", RatioToMean("paid")))
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     known = p | beam.Create([batch]) | trail | beam.FlatMap(RowBatch.to_pylist)
        ...     _ = known | beam.Map(lambda row: print(row["paid"], row["times"], row["spent"], row["unusual"]))
        10 0 None None
        30 1 None 3.0
        60 2 30 3.0
    """

    def __init__(
        self,
        by: str | Iterable[str],
        *,
        tick: str | float = "1m",
        shards: int = SHARDS,
        lateness: str | float = 0,
        late: str = "reject",
        **figures: Past,
    ):
        problems: list[Problem] = []
        (tick_micros,) = lengths(problems, tick=tick)
        (lateness_micros,) = lengths(problems, 0, lateness=lateness)
        if not figures:
            problems.append(Problem("there is nothing to compute", "Trail", 'name figures, such as spent=Past("24h", Sum("amount"))'))
        for name, figure in figures.items():
            problems += _problems(name, figure)
        if problems:
            raise ConfigError(*problems)
        super().__init__(TrailFold(names(by), figures), tick=tick_micros, shards=shards, lateness=lateness_micros, late=late)


def _problems(name: str, figure: Past) -> Iterator[Problem]:
    if not isinstance(figure, Past):
        yield Problem(f"{figure!r} is no figure of the past", name, 'write Past("24h", Sum("amount"))')
        return
    yield from length_micros(figure.over, f"{name}, over")[1]
    if figure.rows is not None and (isinstance(figure.rows, bool) or not isinstance(figure.rows, int) or figure.rows < 1):
        yield Problem(f"{figure.rows!r} is not a number of rows from 1", f"{name}, rows")
    if not isinstance(figure.what, Reducer | Distinct | SinceLast | RatioToMean):
        yield Problem(f"{figure.what!r} is no figure", name, 'write Count(), Sum("amount"), Distinct("shop"), SinceLast(), …')
    elif figure.reducer.fine_grained:
        yield Problem(f"{type(figure.what).__name__} cannot look back", name, "use Distinct, or Aggregate by windows")
    else:
        yield from (Problem(trouble, name) for trouble in figure.reducer.problems())


class TrailFold(Fold):
    """Remembers the rows of the longest past: `past` has them by key, in their order, which stands in their `row_position`."""

    def __init__(self, by: tuple[str, ...], figures: dict[str, Past]):
        self.keys = {"rows": by}
        self.by = by
        self.figures = figures
        self.longest = max(figure.micros for figure in figures.values())
        self.partials = Partials({name: figure.reducer for name, figure in figures.items()})

    def check(self, name: str, rows: pa.Schema) -> None:
        there = f"the rows have: {', '.join(rows.names)}"
        missing = [c for c in self.partials.columns if c not in rows.names and c != ROW_POSITION]
        problems = [Problem(f"there is no column {c!r}", "Trail", there) for c in missing]
        taken = [c for c in self.figures if c in rows.names]
        problems += [Problem(f"the rows have a column {c!r} already", "Trail", "choose another name") for c in taken]
        if problems:
            raise ConfigError(*problems)
        self.partials.types(rows)

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        past, fresh = state.get(_PAST), rows.get("rows")
        needed = list(dict.fromkeys([*self.by, ROW_TIME, ROW_POSITION, *self.partials.columns]))
        known = [batch for batch in (past, fresh) if batch is not None]
        if not known:
            return Folded()
        together = concat(known)
        runs = runs_of(together, self.by)
        ordered = together.select([c for c in needed if c in together.schema.names]).take(pa.array(runs.order))
        told = []
        if fresh is not None:
            old = past.num_rows if past is not None else 0
            new = np.flatnonzero(runs.order >= old)
            out = fresh.take(pa.array(runs.order[new] - old))
            for name, column in self._figures(ordered, runs.run, runs.times, new):
                out = with_column(out, name, column)
            told.append(out)
        return Folded(told, *self._left(ordered, runs.times, upto))

    def _figures(self, ordered: RowBatch, run: np.ndarray, times: np.ndarray, new: np.ndarray) -> Iterator[tuple[str, pa.Array]]:
        rows = self.partials.read(ordered)
        begins = np.searchsorted(run, run[new])
        found: dict[int, np.ndarray] = {}
        for name, figure in self.figures.items():
            if figure.micros not in found:
                found[figure.micros] = first_at_least(times, times[new] - figure.micros + 1, begins, new)
            low, high = found[figure.micros], new + figure.itself
            if figure.rows is not None:
                low = np.maximum(low, high - figure.rows)
            if isinstance(figure.what, Distinct):
                yield name, distinct(rows.column(figure.what.column), run, low, high)
            elif isinstance(figure.what, SinceLast):
                yield name, pa.array((times[new] - times[new - 1]) / 1e6, mask=low == new)
            elif isinstance(figure.what, RatioToMean):
                mean = reduced(figure.reducer, rows, low, high).fill_null(0).to_numpy()
                own = plain(ordered.column(figure.what.column)).take(pa.array(new)).cast(pa.float64())
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratio = pa.array(own.to_numpy(zero_copy_only=False) / mean)
                yield name, pc.if_else(pc.and_(own.is_valid(), pa.array(mean != 0)), ratio, None)
            else:
                yield name, reduced(figure.reducer, rows, low, high)

    def _left(self, ordered: RowBatch, times: np.ndarray, upto: int) -> tuple[Tables, int | None]:
        stay = times + self.longest > upto
        if not stay.any():
            return {}, None
        left = ordered.filter(pa.array(stay))
        left = with_column(left, ROW_POSITION, pa.array([str(i) for i in range(left.num_rows)]))
        return {_PAST: left}, int(times.max()) + self.longest
