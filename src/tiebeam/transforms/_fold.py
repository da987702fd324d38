"""Fold: what a transform remembers of a shard of the keys, and what follows from it, as a pure function over columns.

A `Fold` knows neither Beam nor how its input is cut: `tiebeam.transforms._keyed` drives it, over a bounded input at once, over
an endless one tick by tick.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa

from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RESERVED, ROW_TIME, RowBatch, concat

BEGIN, END = -(1 << 62), 1 << 62
"""Before and after all times, in microseconds; `upto` is END where nothing comes behind."""

Tables = dict[str, RowBatch]
"""Rows by the name of what they are: an input, or a part of the state. A name without rows is not in it."""


@dataclass(frozen=True)
class Folded:
    """What a fold gives: rows that go on, what is remembered, and the smallest `upto` at which that alone says something new."""

    rows: Iterable[RowBatch | Letters] = ()
    state: Tables = field(default_factory=dict)
    due: int | None = None


class Fold(ABC):
    """What a transform remembers of a shard of the keys, and what follows from it."""

    version: ClassVar[int] = 1
    """Of the state's shape: raise it with a change, and let `upgrade` read what older releases left."""
    timed: bool = True
    """Whether every row needs a `row_time`."""
    condenses: bool = False
    """Whether `condense` makes rows smaller."""

    keys: Mapping[str, tuple[str, ...]]
    """The key columns of each input, in one order: rows with equal keys meet in one shard."""

    @abstractmethod
    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        """Takes in all rows before `upto` (microseconds) that were not folded yet, in no particular order.

        Must be a function of the rows alone: folding everything at once gives the same rows as folding piece by piece.
        A row that is emitted has a `row_time` in the stretch of time that is being folded, or `holds` says how much earlier.
        """

    def ticks(self, times: np.ndarray, tick: int) -> np.ndarray:
        """The tick with which rows of these times are folded: their own, or a later one when nothing can be told of them before."""
        return times // tick

    def holds(self) -> int:
        """How long after its `row_time` a row may be emitted, in microseconds; the end of its tick does not count."""
        return 0

    def trim(self, name: str, rows: RowBatch) -> RowBatch:
        """What of the rows is needed, before they are shuffled: as many rows, fewer columns."""
        return rows

    def condense(self, name: str, rows: RowBatch) -> RowBatch:
        """Makes rows of one tick smaller while they wait, if `condenses`; may be applied again to what it gave."""
        return rows

    def check(self, name: str, rows: pa.Schema) -> None:  # noqa: B027 - a fold that takes any rows need not say so
        """Raises ConfigError when rows of this schema cannot be folded."""

    def upgrade(self, version: int, state: Tables) -> Tables:
        """State that an older release left, as this one has it."""
        raise ConfigError(Problem(f"the state is of version {version}, and only {self.version} can be read", type(self).__name__))


def names(by: str | Iterable[str]) -> tuple[str, ...]:
    """Names of columns, given as one or several."""
    return (by,) if isinstance(by, str) else tuple(by)


def micros_of(rows: RowBatch) -> np.ndarray:
    """The event times of rows, none of them null, in microseconds."""
    return rows.column(ROW_TIME).cast(RESERVED[ROW_TIME]).cast(pa.int64()).to_numpy()


def times_of(micros: np.ndarray) -> pa.Array:
    """Microseconds as a column of event times."""
    return pa.array(micros, pa.int64()).cast(RESERVED[ROW_TIME])


def mark(rows: RowBatch, **facts: str | int) -> RowBatch:
    """Writes on a batch what it is; it travels with the batch."""
    return rows.replace_schema_metadata({key: str(value) for key, value in facts.items()})


def fact(rows: RowBatch, key: str) -> str:
    return rows.schema.metadata[key.encode()].decode()


def tables_of(parts: Iterable[RowBatch]) -> Tables:
    """Joins marked batches by their names."""
    named: dict[str, list[RowBatch]] = {}
    for part in parts:
        named.setdefault(fact(part, "name"), []).append(part.replace_schema_metadata())
    return {name: concat(rows) for name, rows in named.items()}
