"""Rate limits: so many rows of each key in a stretch of event time go on, and what is beyond them is told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_TIME, RowBatch, concat, with_column
from tiebeam.steps import BatchFn, apply_batches
from tiebeam.transforms._fold import Fold, Folded, Tables, names
from tiebeam.transforms._keyed import Keyed, WithLate
from tiebeam.transforms._order import runs_of
from tiebeam.transforms._shards import SHARDS
from tiebeam.transforms._windows import WINDOW_START, lengths, window_starts

RATE_LIMITED = "rate_limited"
_SEEN, _ROWS = "seen", "tiebeam:rows"
_MINUTE = 60_000_000
_WINDOW = f"tiebeam:{WINDOW_START}"


class WithOver(NamedTuple):
    """The outputs of a rate limit with `over="output"`."""

    rows: beam.PCollection
    over: beam.PCollection


class RateLimit(Keyed):
    """Lets the first `rows` rows of each key go on in every `per` of event time.

    Time is cut into fixed windows of length `per`, aligned with 1970, so that around a border up to twice as many rows may go on
    within `per`. Which rows come first is said by `row_time`, at equal times by position, then by content, never by arrival.
    In: rows with the key columns and `row_time`.
    Out: rows as they are. `over` says what becomes of those beyond the limit: "reject" makes them dead letters, "output" gives a
    `WithOver`, "mark" lets all rows go on with a column `rate_limited` (bool). With `late="output"` as well, this is the `rows` of a
    `WithLate`.
    Errors: `rate_limited` (with `over="reject"`), `no_event_time`, `time_out_of_range`, `late`.
    State: one small row per key that was seen in a window that is open.
    Time: event time; a row goes on with its tick, by default one of a minute, or of `per` where that is shorter.

    Example:
        >>> from tiebeam.transforms._fold import times_of
        >>> calls = RowBatch.from_pydict({"client": ["a", "a", "b", "a"], "row_time": times_of([1, 2, 3, 60_000_000])})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     marked = p | beam.Create([calls]) | RateLimit(by="client", rows=1, per="1m", over="mark", shards=1)
        ...     _ = marked | beam.FlatMap(RowBatch.to_pylist) | beam.Map(lambda row: print(row["client"], row["rate_limited"]))
        a False
        a True
        b False
        a False
    """

    def __init__(
        self,
        by: str | Iterable[str],
        rows: int = 100,
        per: str | float = "1m",
        over: str = "reject",
        *,
        tick: str | float | None = None,
        shards: int = SHARDS,
        lateness: str | float = 0,
        late: str = "reject",
    ):
        problems: list[Problem] = []
        per_micros, tick_micros = lengths(problems, per=per, tick=tick)
        (lateness_micros,) = lengths(problems, 0, lateness=lateness)
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            problems.append(Problem(f"{rows!r} is not a whole number from 1", "rows"))
        if over not in ("reject", "output", "mark"):
            problems.append(Problem(f"{over!r} is not one of reject, output, mark", "over"))
        if problems:
            raise ConfigError(*problems)
        tick_micros = tick_micros or min(per_micros, _MINUTE)
        self.over = over
        self.said = f"beyond {rows:,} rows per {per_micros / 1e6:g} s"
        super().__init__(LimitFold(names(by), rows, per_micros), tick=tick_micros, shards=shards, lateness=lateness_micros, late=late)

    def expand(self, inputs: Any) -> Any:
        given = super().expand(inputs)
        if isinstance(given, WithLate):
            return given._replace(rows=self._parted(given.rows))
        return self._parted(given)

    def _parted(self, marked: beam.PCollection) -> Any:
        if self.over == "mark":
            return marked
        if self.over == "reject":
            return apply_batches(marked, "Reject", _RejectFn(self.label, self.said))
        within, beyond = (_ChooseFn(self.label, over) for over in (False, True))
        return WithOver(apply_batches(marked, "Within the limit", within), apply_batches(marked, "Beyond the limit", beyond))


class LimitFold(Fold):
    """Remembers how many rows of each key the open windows have: `seen` has one row each, its `row_time` the last row's."""

    def __init__(self, by: tuple[str, ...], most: int, per: int):
        self.keys = {"rows": by}
        self.by = by
        self.most = most
        self.per = per

    def check(self, name: str, rows: pa.Schema) -> None:
        if RATE_LIMITED in rows.names:
            raise ConfigError(Problem(f"the rows have a column {RATE_LIMITED!r} already", "RateLimit", "rename it before"))

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        seen, fresh = state.get(_SEEN), rows.get("rows")
        known = [batch for batch in (seen, fresh) if batch is not None]
        if not known:
            return Folded()
        together = concat(known)
        windows = window_starts(together.column(ROW_TIME), self.per)
        runs = runs_of(with_column(together, _WINDOW, windows), [*self.by, _WINDOW])
        old = seen.num_rows if seen is not None else 0
        counts = np.ones(len(runs.order), np.int64)
        if seen is not None:
            counts[:old] = seen.column(_ROWS).to_numpy()
        counts = counts[runs.order]
        running = np.cumsum(counts)
        nth = running - (running - counts)[runs.starts][runs.run]
        told = []
        if fresh is not None:
            new = runs.order >= old  # what was seen is earlier than all that is fresh, so each run begins with it
            chosen = fresh.take(pa.array(runs.order[new] - old))
            told.append(with_column(chosen, RATE_LIMITED, pa.array(nth[new] > self.most)))
        return Folded(told, *self._left(together, windows, runs.order[runs.ends - 1], nth[runs.ends - 1], upto))

    def _left(self, together: RowBatch, windows: pa.Array, last: np.ndarray, counts: np.ndarray, upto: int) -> tuple[Tables, int | None]:
        """The windows that are not over. They say nothing new: that they are forgotten is worth a look when all are."""
        ends = windows.cast(pa.int64()).to_numpy()[last] + self.per
        open = ends > upto
        if not open.any():
            return {}, None
        kept = together.select(list(dict.fromkeys([*self.by, ROW_TIME]))).take(pa.array(last[open]))
        return {_SEEN: with_column(kept, _ROWS, pa.array(counts[open]))}, int(ends[open].max())


class _ChooseFn(BatchFn):
    """Chooses the rows within the limit, or those beyond it."""

    def __init__(self, step: str, over: bool):
        super().__init__(step)
        self.over = over

    def apply(self, batch: RowBatch) -> Iterator[RowBatch]:
        yield _chosen(batch, self.over)


class _RejectFn(BatchFn):
    """Lets the rows within the limit go on, and rejects those beyond it."""

    def __init__(self, step: str, said: str):
        super().__init__(step)
        self.said = said

    def apply(self, batch: RowBatch) -> Iterator[RowBatch | Letters]:
        yield _chosen(batch, False)
        if (beyond := _chosen(batch, True)).num_rows:
            yield letters_of_rows(self.step, beyond, RATE_LIMITED, [self.said] * beyond.num_rows)


def _chosen(batch: RowBatch, over: bool) -> RowBatch:
    marks = batch.column(RATE_LIMITED)
    return batch.filter(marks if over else pc.invert(marks)).drop_columns([RATE_LIMITED])
