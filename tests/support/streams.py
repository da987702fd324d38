"""Sources that never end, for tests: what arrives, and when, is written down, and the clock is a logical one that each look moves on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tiebeam.io._endless import EndlessSource, PartitionReader, Piece, Progress
from tiebeam.rows import ROW_TIME, RowBatch, RowBatchCoder, concat

CODER = RowBatchCoder()
MOMENTS = 8


@dataclass(frozen=True)
class Pace:
    """How a partition is skewed, in parts of the whole time (0 to 1)."""

    weight: float = 1.0
    """Its part of the rows, beside the others' weights."""
    opens: float = 0.0
    """When it can be read at last: until then it is being connected to."""
    slow: bool = False
    """Whether it gives one piece at each moment, whatever waits."""
    quiet: tuple[float, float] = (0.0, 0.0)
    """While no rows arrive in it."""


@dataclass(frozen=True)
class Part:
    """A partition: its pieces, each with the time it arrives at, and when it opens; in microseconds."""

    pieces: tuple[tuple[int, bytes], ...] = ()
    opens: int = -(1 << 62)
    slow: bool = False


@dataclass(frozen=True)
class Scripted(EndlessSource):
    """Partitions `0`, `1`, … that give their pieces as a logical clock passes; it moves on by `step` when nothing is there."""

    parts: tuple[Part, ...]
    disorder: int = 0
    lag: int = 0
    step: int = 1_000_000
    bounded: bool = False
    ends: bool = True
    """Whether it finishes when all was given, or goes on without rows."""

    def partitions(self) -> Sequence[str]:
        return [str(i) for i in range(len(self.parts))]

    def number(self, partition: str) -> int:
        return int(partition)

    def reader(self, partitions: Sequence[str]) -> ScriptedReader:
        return ScriptedReader(self, {name: self.parts[int(name)] for name in partitions})


class ScriptedReader(PartitionReader):
    """Positions are numbers of pieces given. What readers were told and gave is kept for tests of the same process."""

    def __init__(self, source: Scripted, parts: dict[str, Part]):
        self.source = source
        self.parts = parts
        arrivals = [at for part in source.parts for at, _ in part.pieces]
        self.clock, self.last = min(arrivals, default=0), max(arrivals, default=0)
        self.given: dict[str, int] = {}
        self.served: set[str] = set()
        self.committed: dict[str, Any] = {}
        self.closed = False

    def seek(self, positions: dict[str, Any]) -> None:
        self.given = {name: position or 0 for name, position in positions.items()}
        self.served = set()
        past = [self.parts[name].pieces[n - 1][0] for name, n in self.given.items() if n]
        self.clock = max([self.clock, *past])

    def poll(self, order: Sequence[str]) -> Piece | None:
        for name in order:
            if self._due(name) and not (self.parts[name].slow and name in self.served):
                self.served.add(name)
                self.given[name] += 1
                return Piece(name, self.given[name], (CODER.decode(self.parts[name].pieces[self.given[name] - 1][1]),))
        self.served.clear()
        self.clock += self.source.step
        return None

    def progress(self, partition: str) -> Progress:
        part = self.parts[partition]
        if self.clock < part.opens or self._due(partition):
            return Progress.BEHIND
        over = self.source.ends and self.clock >= self.last and self.given[partition] == len(part.pieces)
        return Progress.FINISHED if over else Progress.CAUGHT_UP

    def lag(self, partition: str) -> int:
        """In pieces."""
        return len(self.parts[partition].pieces) - self.given[partition]

    def now(self) -> int:
        return self.clock

    def commit(self, positions: dict[str, Any]) -> None:
        self.committed = positions

    def close(self) -> None:
        self.closed = True

    def _due(self, name: str) -> bool:
        part, given = self.parts[name], self.given[name]
        return self.clock >= part.opens and given < len(part.pieces) and part.pieces[given][0] <= self.clock


SKEWED = (Pace(weight=6), Pace(weight=2, opens=0.5, slow=True), Pace(weight=1, quiet=(0.3, 0.8)))


def piece(rows: RowBatch, at: int) -> tuple[int, bytes]:
    return at, CODER.encode(rows)


def dealt(batches: list[RowBatch], paces: Sequence[Pace] = SKEWED, *, disorder: int, seed: int, **settings: Any) -> Scripted:
    """Deals rows to partitions: each arrives up to `disorder` microseconds after its event time."""
    chance = np.random.default_rng(seed)
    alike = [concat([batch for batch in batches if batch.schema == schema]) for schema in {batch.schema: None for batch in batches}]
    kind = np.repeat(np.arange(len(alike)), [batch.num_rows for batch in alike])
    index = np.concatenate([np.arange(batch.num_rows) for batch in alike]) if alike else kind
    times = np.concatenate([times_of(batch) for batch in alike]) if alike else kind
    arrival = times + chance.integers(0, disorder + 1, len(times))
    first, last = (int(arrival.min()), int(arrival.max())) if len(arrival) else (0, 0)
    span = max(last - first, MOMENTS)
    owners = _owners(paces, (arrival - first) / span, chance)
    parts = []
    for owner, pace in enumerate(paces):
        mine = np.flatnonzero(owners == owner)
        mine = mine[np.argsort(arrival[mine], kind="stable")]
        cuts = {*chance.integers(0, len(mine) + 1, 5).tolist(), *(np.flatnonzero(np.diff(kind[mine])) + 1).tolist()}
        pieces = [
            piece(alike[kind[part[0]]].take(pa.array(index[part])), int(arrival[part[0]]))
            for part in np.split(mine, sorted(cuts))
            if len(part)
        ]
        parts.append(Part(tuple(pieces), first + int(pace.opens * span), pace.slow))
    return Scripted(tuple(parts), disorder, disorder, -(-span // MOMENTS), **settings)


def _owners(paces: Sequence[Pace], moments: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The partition of each row: by weight, among those that are not quiet then."""
    weights = np.array([pace.weight * ~((moments >= pace.quiet[0]) & (moments < pace.quiet[1])) for pace in paces])
    bounds = np.cumsum(weights, axis=0) / weights.sum(axis=0)
    return (chance.random(len(moments)) >= bounds).sum(axis=0)


def times_of(batch: RowBatch) -> np.ndarray:
    return batch.column(ROW_TIME).cast(pa.int64()).fill_null(0).to_numpy()
