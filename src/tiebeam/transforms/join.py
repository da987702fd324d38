"""Joins of two inputs: by keys alone, by keys and nearness in time, or with what was last known at the time (as of)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.transforms._fold import names
from tiebeam.transforms._join_folds import AsOfFold, IntervalFold, JoinFold, TableFold
from tiebeam.transforms._joined import Joined
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._shards import SHARDS
from tiebeam.transforms._windows import length_micros, lengths

_HOW = ("inner", "left", "full", "anti")


class Join(Keyed):
    """Joins left rows with right ones of equal keys.

    `on` names the key columns, or maps those of the left to those of the right: `{"product": "id"}`. As in SQL, null keys match nothing.
    What matches:

    - `between=("-5m", "1h")`: right rows from 5 minutes before to an hour after the left one, both ends included;
    - `as_of=True`: the one last right row that is not after the left one, and with `within="1d"` no more than a day before it. So the
      left rows see what was known at their time and nothing later; the right input is the history of a table that changes slowly;
    - neither: all right rows of the key. Both inputs must be bounded.

    `how`: "inner" gives the pairs; "left" also left rows without a partner, "full" those of both sides (not as of), "anti" only left rows
    without one. Where a side may be missing its columns must be named, with their types: `right_columns=pa.schema(…)`.
    In: a dict {"left": rows, "right": rows}, with the key columns and, unless whole tables are joined, `row_time`.
    Out: the columns of the left row (its `row_time` too), then those of the right without its keys; a name that is taken gets `_right`, so
    there is `row_time_right`. `row_position` is the left row's where it has one partner at most, else both, joined by "+".
    Errors: `no_event_time`, `time_out_of_range`, `late`. Key columns of different types stop the job where they meet.
    State: between: rows of both sides until nothing can match them any more; as of: of each key the last right row, for ever, or for
    `within`. Whole tables: both sides of a shard are in memory.
    Time: event time. A pair goes on with the later of its rows, a row without a partner when none can come any more.

    Example:
        >>> import apache_beam as beam
        >>> from tiebeam.rows import RowBatch
        >>> from tiebeam.transforms._fold import times_of
        >>> prices = RowBatch.from_pydict({"id": [1, 1], "price": [2.0, 2.5], "row_time": times_of([0, 100])})
        >>> sales = RowBatch.from_pydict({"product": [1, 1], "row_time": times_of([99, 100])})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     given = {"left": p | "Sales" >> beam.Create([sales]), "right": p | "Prices" >> beam.Create([prices])}
        ...     joined = given | Join(on={"product": "id"}, as_of=True) | beam.FlatMap(RowBatch.to_pylist)
        ...     _ = joined | beam.Map(lambda row: print(row["product"], row["price"]))
        1 2.0
        1 2.5
    """

    def __init__(
        self,
        on: str | Iterable[str] | Mapping[str, str],
        how: str = "inner",
        *,
        between: tuple[str | float, str | float] | None = None,
        as_of: bool = False,
        within: str | float | None = None,
        left_columns: pa.Schema | None = None,
        right_columns: pa.Schema | None = None,
        tick: str | float = "1m",
        shards: int = SHARDS,
        lateness: str | float = 0,
        late: str = "reject",
    ):
        pairs = dict(on) if isinstance(on, Mapping) else {name: name for name in names(on)}
        problems: list[Problem] = []
        (tick_micros,) = lengths(problems, tick=tick)
        (lateness_micros,) = lengths(problems, 0, lateness=lateness)
        within_micros, wrong = length_micros(within, "within", 0) if within is not None else (None, [])
        ends = [signed_micros(end, "between") for end in between or ()]
        problems += wrong + [problem for _, found in ends for problem in found]
        problems += _problems(pairs, how, between, as_of, within)
        if how in ("left", "full") and right_columns is None:
            problems.append(_unnamed("right"))
        if how == "full" and left_columns is None:
            problems.append(_unnamed("left"))
        if between and len(ends) == 2 and not problems and ends[0][0] > ends[1][0]:
            problems.append(Problem(f"{between[0]!r} is after {between[1]!r}", "between", "give the earlier end first"))
        if problems:
            raise ConfigError(*problems)
        self.ends = not between and not as_of
        joined = Joined(tuple(pairs), tuple(pairs.values()), left_columns, right_columns, timed=not self.ends)
        fold: JoinFold = TableFold(joined, how)
        if between:
            fold = IntervalFold(joined, how, ends[0][0], ends[1][0])
        elif as_of:
            fold = AsOfFold(joined, how, within_micros)
        super().__init__(fold, tick=tick_micros, shards=shards, lateness=lateness_micros, late=late)

    def expand(self, inputs: Any) -> Any:
        if not isinstance(inputs, dict) or set(inputs) != {"left", "right"}:
            raise ConfigError(Problem("needs two inputs", self.label, 'apply it to {"left": rows, "right": rows}'))
        if self.ends and not all(rows.is_bounded for rows in inputs.values()):
            what = "an input that never ends may bring a match at any time"
            raise ConfigError(Problem(what, self.label, 'say what matches in time: between=("-1h", "1h"), or as_of=True'))
        return super().expand(inputs)


def signed_micros(length: str | float, where: str) -> tuple[int, list[Problem]]:
    """A length of time in microseconds, which may have a sign."""
    sign, text = re.fullmatch(r"\s*([+-]?)\s*(.*)", f"{length}s" if isinstance(length, int | float) else str(length), re.S).groups()  # type: ignore[union-attr]
    micros, problems = length_micros(text, where, 0)
    return -micros if sign == "-" else micros, problems


def _unnamed(side: str) -> Problem:
    what = f"a row may have no {side} partner, and nothing tells the columns it would have"
    return Problem(what, f"{side}_columns", "name them: pa.schema(…)")


def _problems(on: Mapping[str, str], how: str, between: Any, as_of: bool, within: Any) -> Iterator[Problem]:
    if not on:
        yield Problem("names no key", "on", 'name the key columns, such as on=("product_id",)')
    if how not in _HOW:
        yield Problem(f"{how!r} is not one of {', '.join(_HOW)}", "how")
    if between is not None and (not isinstance(between, tuple | list) or len(between) != 2):
        yield Problem(f"{between!r} are not two ends", "between", 'write ("-5m", "1h")')
    if between and as_of:
        yield Problem("a row is joined by nearness or as of its time, not both", "between, as_of", "choose one")
    if as_of and how == "full":
        yield Problem("as of their time rows are joined inner, left or anti", "how", 'use how="left"')
    if within is not None and not as_of:
        yield Problem("says how old the right row may be, as of the left one's time", "within", "set as_of=True, or use between")
