"""Sequences of rows: A, then B, then C of the same key, within a time, and nothing that rules it out between them.

Funnels and rules over events. Of the strategies of complex event processing this is "skip till next match": rows that fit
nothing are passed over, and each step takes the next row that fits it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, concat, with_column
from tiebeam.transforms._expressions import Expressions
from tiebeam.transforms._fold import Fold, Folded, Tables, names, times_of
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._order import Runs, runs_of
from tiebeam.transforms._rules import either, mask
from tiebeam.transforms._search import first_at_least
from tiebeam.transforms._shards import SHARDS
from tiebeam.transforms._windows import lengths

REACHED = "steps_reached"
_WITHOUT = "without"
_OPEN, _FITS = "open", "steps that fit"
_MOST = 62


@dataclass(frozen=True)
class Step:
    """One step of a sequence: its name, and the condition of its row in DuckDB's SQL, as `Filter` takes it."""

    name: str
    condition: str


class Detect(Keyed):
    """Finds sequences of rows of each key.

    `by` are the key columns (null is a key like any other). Rows of a key are taken by `row_time`, at equal times by position, then
    content. Each row that fits the first step is a start. From there each step takes the next row behind the one before that fits it,
    less than `within` after the start. Each start has a sequence of its own: several may share later rows. A row that fits `without`
    ends all sequences that are under way, and takes no step itself. `keep` names columns wanted of every row taken.
    In: rows with the key columns, the columns of the conditions, and `row_time`.
    Out: with `emit="matches"` one row per sequence that was completed: the key columns, for each step `NAME_time` and `NAME_COLUMN`
    for each of `keep`, and `row_time`, that of the last step. With `emit="furthest"` one row per start, complete or not: the same,
    null for steps not reached, `steps_reached` (from 1), and as `row_time` the last microsecond in which a row could have counted.
    Errors: `expression_failed` for a row on which a condition cannot be computed; `no_event_time`, `time_out_of_range`, `late`.
    State: of each key the rows that fit a step, from its first start that is still open; only the columns that are needed.
    Time: event time. A match is told with the tick of its last row, the furthest step when `within` is over.

    Example:
        >>> import apache_beam as beam
        >>> at = times_of([0, 60_000_000, 120_000_000, 180_000_000])
        >>> did = ["view", "buy", "view", "leave"]
        >>> batch = RowBatch.from_pydict({"user": ["ann"] * 4, "did": did, "row_time": at})
        >>> steps = [Step("viewed", "did = 'view'"), Step("bought", "did = 'buy'")]
        >>> funnel = Detect("user", steps, within="1h", emit="furthest")
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     found = p | beam.Create([batch]) | funnel | beam.FlatMap(RowBatch.to_pylist)
        ...     _ = found | beam.Map(lambda row: print(f"{row['viewed_time']:%H:%M}", row["steps_reached"]))
        00:00 2
        00:02 1
    """

    def __init__(
        self,
        by: str | Iterable[str],
        sequence: Sequence[Step],
        within: str | float,
        without: str | None = None,
        emit: str = "matches",
        keep: str | Iterable[str] = (),
        *,
        tick: str | float = "1m",
        shards: int = SHARDS,
        lateness: str | float = 0,
        late: str = "reject",
    ):
        problems: list[Problem] = []
        within_micros, tick_micros = lengths(problems, within=within, tick=tick)
        (lateness_micros,) = lengths(problems, 0, lateness=lateness)
        by, keep, steps = names(by), names(keep), list(sequence)
        if emit not in ("matches", "furthest"):
            problems.append(Problem(f"{emit!r} is not one of matches, furthest", "emit"))
        problems += _problems(by, keep, steps)
        texts = {step.name: step.condition for step in steps if isinstance(step, Step)}
        try:
            conditions = Expressions("Detect", texts | ({_WITHOUT: without} if without is not None else {}))
        except ConfigError as e:
            problems += e.problems
        if problems:
            raise ConfigError(*problems)
        fold = DetectFold(by, list(texts), conditions, within_micros, keep, emit == "furthest")
        super().__init__(fold, tick=tick_micros, shards=shards, lateness=lateness_micros, late=late)


def _problems(by: tuple[str, ...], keep: tuple[str, ...], steps: list[Step]) -> Iterator[Problem]:
    for step in steps:
        if not isinstance(step, Step):
            yield Problem(f"{step!r} is no step", "sequence", 'write Step("bought", "event = \'buy\'")')
            return
    if not 2 <= len(steps) <= _MOST:
        yield Problem(f"{len(steps)} steps", "sequence", f"give 2 to {_MOST}; for one, Filter does")
    for name in sorted({ROW_TIME, ROW_POSITION} & set(keep)):
        yield Problem(f"{name!r} cannot be kept", "keep", "the times of the steps are in the result; derive another column of a position")
    told = [*by, REACHED, ROW_TIME, ROW_POSITION, *(column for step in steps for column in _told(step.name, keep))]
    for name in sorted({name for name in told if told.count(name) > 1}):
        yield Problem(f"{name!r} would be in the result twice", "Detect", "name steps and columns differently")
    if any(step.name == _WITHOUT for step in steps):
        yield Problem("a step cannot be named 'without'", "sequence", "give it another name")


def _told(step: str, keep: Iterable[str]) -> list[str]:
    """The columns of the result that speak of a step."""
    return [f"{step}_time", *(f"{step}_{column}" for column in keep)]


class DetectFold(Fold):
    """Remembers, in `open`, rows that fit: by key, in their order, which stands in their `row_position`, and what they fit in bits."""

    def __init__(self, by: tuple[str, ...], steps: list[str], conditions: Expressions, within: int, keep: tuple[str, ...], furthest: bool):
        self.keys = {"rows": by}
        self.by = by
        self.steps = steps
        self.conditions = conditions
        self.within = within
        self.keep = keep
        self.furthest = furthest

    def check(self, name: str, rows: pa.Schema) -> None:
        there = f"the rows have: {', '.join(rows.names)}"
        problems = [Problem(f"there is no column {c!r}", "Detect", there) for c in self.keep if c not in rows.names]
        try:
            types = self.conditions.types(rows)
        except ConfigError as e:
            raise ConfigError(*problems, *e.problems) from None
        for step, kind in types.items():
            if kind not in (pa.bool_(), pa.null()):
                where = f"Detect: {step} = {self.conditions.texts[step]!r}"
                problems.append(Problem(f"the condition is {kind}, not a truth value", where, "compare it: … > 0, … IS NOT NULL"))
        if problems:
            raise ConfigError(*problems)

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        told: list[RowBatch | Letters] = []
        known = []
        if _OPEN in state:
            known.append((state[_OPEN].drop_columns([_FITS]), state[_OPEN].column(_FITS).to_numpy()))
        old = sum(batch.num_rows for batch, _ in known)
        if "rows" in rows:
            fresh, fits, refused = self._judged(rows["rows"])
            told += refused
            known += [(fresh, fits)] if fresh.num_rows else []
        if not known:
            return Folded(told)
        together = concat([batch for batch, _ in known])
        runs = runs_of(together, self.by)
        found = self._sequences(runs, np.concatenate([fits for _, fits in known])[runs.order])
        ends = runs.times[found.starts] + self.within
        if self.furthest:
            say, still = ends <= upto, ends > upto
        else:
            last = np.append(runs.order, -1)[found.taken[-1]]
            say, still = last >= old, (ends > upto) & found.under_way
        told += self._told(together, runs, found, np.flatnonzero(say))
        if not still.any():
            return Folded(told)
        due = ends[still].min() if self.furthest else ends[still].max()
        return Folded(told, self._left(together, runs, found, still), int(due))

    def _judged(self, rows: RowBatch) -> tuple[RowBatch, np.ndarray, list[RowBatch | Letters]]:
        """The rows that fit something, what they fit, and those on which a condition fails."""
        values, failed = self.conditions.compute(rows)
        met = {name: mask(values[name].cast(pa.bool_())) for name in self.conditions.texts}
        without = met.get(_WITHOUT, np.zeros(rows.num_rows, bool))
        fits = sum(met[step].astype(np.int64) << i for i, step in enumerate(self.steps))
        fits = np.where(without, 1 << _MOST, fits)
        bad = either(failed.values(), rows.num_rows)
        refused: list[RowBatch | Letters] = []
        if bad.any():
            at = np.flatnonzero(bad)
            details = self.conditions.failures(rows, failed, at)
            refused.append(letters_of_rows("Detect", rows.take(pa.array(at)), "expression_failed", details))
        chosen = (fits != 0) & ~bad
        return rows.filter(pa.array(chosen)), fits[chosen], refused

    def _sequences(self, runs: Runs, fits: np.ndarray) -> _Sequences:
        """Walks all starts at once, step by step."""
        n = len(fits)
        starts = np.flatnonzero(fits & 1)
        run_ends = runs.ends[runs.run[starts]]
        ruled_out = _next(fits, _MOST)[starts + 1]
        ends = first_at_least(runs.times, runs.times[starts] + self.within, starts, np.minimum(run_ends, ruled_out))
        taken = [starts]
        for step in range(1, len(self.steps)):
            at = _next(fits, step)[taken[-1] + 1]
            taken.append(np.where(at < ends, at, n))
        return _Sequences(fits, starts, taken, (taken[-1] == n) & (ruled_out >= run_ends))

    def _told(self, together: RowBatch, runs: Runs, found: _Sequences, chosen: np.ndarray) -> Iterator[RowBatch]:
        if not len(chosen):
            return
        n = len(runs.order)
        taken = [at[chosen] for at in found.taken]
        order = pa.array(runs.order)
        columns = {name: together.column(name).take(order.take(pa.array(taken[0]))) for name in self.by}
        times, kept = times_of(runs.times), {name: together.column(name) for name in self.keep}
        for step, at in zip(self.steps, taken, strict=True):
            place = pa.array(at, mask=at == n)
            rows = order.take(place)
            columns |= dict(zip(_told(step, kept), [times.take(place), *(column.take(rows) for column in kept.values())], strict=True))
        if self.furthest:
            columns[REACHED] = pa.array(sum((at < n).astype(np.int64) for at in taken))
            columns[ROW_TIME] = times_of(runs.times[taken[0]] + self.within - 1)
        else:
            columns[ROW_TIME] = times.take(pa.array(taken[-1]))
        yield RowBatch.from_pydict(columns)

    def _left(self, together: RowBatch, runs: Runs, found: _Sequences, still: np.ndarray) -> Tables:
        """The rows of each key from its first open start."""
        first = np.full(int(runs.run[-1]) + 1, len(runs.order))
        np.minimum.at(first, runs.run[found.starts[still]], found.starts[still])
        at = np.flatnonzero(np.arange(len(runs.order)) >= first[runs.run])
        needed = dict.fromkeys([*self.by, ROW_TIME, *self.keep])
        left = together.select(list(needed)).take(pa.array(runs.order[at]))
        left = with_column(left, ROW_POSITION, pa.array([str(i) for i in range(len(at))]))
        return {_OPEN: with_column(left, _FITS, pa.array(found.fits[at]))}


@dataclass(frozen=True)
class _Sequences:
    """Sequences over ordered rows: what each row fits, in bits; where each sequence starts; the row that each step takes, as many as
    there are rows where it takes none; and whether it may still be completed, but for its time."""

    fits: np.ndarray
    starts: np.ndarray
    taken: list[np.ndarray]
    under_way: np.ndarray


def _next(fits: np.ndarray, step: int) -> np.ndarray:
    """For each place, and for two behind the last, the first row from there that fits a step."""
    n = len(fits)
    places = np.where(fits >> step & 1, np.arange(n), n)
    return np.append(np.minimum.accumulate(places[::-1])[::-1], [n, n])
