"""Ticks: how a fold is driven over an input that never ends, with state and timers.

Event time is cut into ticks. The rows of a tick wait in one of a ring of bags, so that to fold a tick is not to read the
whole backlog, and every tick has a timer of its own: a timer that is set while another fires would wait for the end of the
bundle. Only bags, one cell and event-time timers are used: these exist on every portable runner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam import pvalue
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from tiebeam.dead_letters import letters_of_rows
from tiebeam.rows import RowBatch, RowBatchCoder, cut
from tiebeam.steps import BatchFn, count
from tiebeam.transforms._fold import BEGIN, Fold, Tables, fact, mark, micros_of, tables_of

LATE = "late"
ROWS_LATE = "rows_late"
MILLI = 1_000
SLOTS = 16
MAX_PIECES = 64

_LAST = GlobalWindow().max_timestamp()
RING = [BagStateSpec(f"ring{slot}", RowBatchCoder()) for slot in range(SLOTS)]


class FoldTicksFn(BatchFn):
    """Keeps the rows of ticks that are not over, and folds each tick when it is."""

    STATE = BagStateSpec("state", RowBatchCoder())
    CLOCK = ReadModifyWriteStateSpec("clock", RowBatchCoder())
    TICK = TimerSpec("tick", TimeDomain.WATERMARK)

    def __init__(self, step: str, fold: Fold, tick: int, lag: int, late: str):
        super().__init__(step)
        self.fold = fold
        self.tick = tick
        self.lag = lag
        self.late = late

    def process(
        self, keyed, clock=beam.DoFn.StateParam(CLOCK), timer=beam.DoFn.TimerParam(TICK),
        r0=beam.DoFn.StateParam(RING[0]), r1=beam.DoFn.StateParam(RING[1]), r2=beam.DoFn.StateParam(RING[2]),
        r3=beam.DoFn.StateParam(RING[3]), r4=beam.DoFn.StateParam(RING[4]), r5=beam.DoFn.StateParam(RING[5]),
        r6=beam.DoFn.StateParam(RING[6]), r7=beam.DoFn.StateParam(RING[7]), r8=beam.DoFn.StateParam(RING[8]),
        r9=beam.DoFn.StateParam(RING[9]), r10=beam.DoFn.StateParam(RING[10]), r11=beam.DoFn.StateParam(RING[11]),
        r12=beam.DoFn.StateParam(RING[12]), r13=beam.DoFn.StateParam(RING[13]), r14=beam.DoFn.StateParam(RING[14]),
        r15=beam.DoFn.StateParam(RING[15]),
    ):  # fmt: skip
        ring = _Ring(self.fold, (r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15))
        time = _Clock.read(clock)
        batch = keyed[1]
        ticks = self.fold.ticks(micros_of(batch), self.tick)
        late = ticks <= time.done
        if late.any():
            yield from self._too_late(batch.filter(pa.array(late)))
            batch, ticks = batch.filter(pa.array(~late)), ticks[~late]
        for tick, rows in _by_tick(batch, ticks):
            if tick not in time.pieces:
                timer.set(self._end(tick), dynamic_timer_tag=str(tick))
            time.pieces[tick] = ring.add(tick, rows, time.pieces.get(tick, 0))
        clock.write(time.written())

    @on_timer(TICK)
    def fire(
        self, tag=beam.DoFn.DynamicTimerTagParam, clock=beam.DoFn.StateParam(CLOCK), state=beam.DoFn.StateParam(STATE),
        timer=beam.DoFn.TimerParam(TICK),
        r0=beam.DoFn.StateParam(RING[0]), r1=beam.DoFn.StateParam(RING[1]), r2=beam.DoFn.StateParam(RING[2]),
        r3=beam.DoFn.StateParam(RING[3]), r4=beam.DoFn.StateParam(RING[4]), r5=beam.DoFn.StateParam(RING[5]),
        r6=beam.DoFn.StateParam(RING[6]), r7=beam.DoFn.StateParam(RING[7]), r8=beam.DoFn.StateParam(RING[8]),
        r9=beam.DoFn.StateParam(RING[9]), r10=beam.DoFn.StateParam(RING[10]), r11=beam.DoFn.StateParam(RING[11]),
        r12=beam.DoFn.StateParam(RING[12]), r13=beam.DoFn.StateParam(RING[13]), r14=beam.DoFn.StateParam(RING[14]),
        r15=beam.DoFn.StateParam(RING[15]),
    ):  # fmt: skip
        ring = _Ring(self.fold, (r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15))
        time = _Clock.read(clock)
        over = sorted(tick for tick in time.pieces if tick <= int(tag))
        if not over:
            return  # an earlier timer, which came later, has nothing left to do
        tables = self._remembered(state)
        for tick in over:
            folded = self.fold.fold(tables, ring.take(tick, time.pieces.pop(tick)), (tick + 1) * self.tick)
            for result in self.emit(piece for rows in folded.rows for piece in (cut(rows) if isinstance(rows, RowBatch) else (rows,))):
                yield TimestampedValue(result, self._end(tick)) if isinstance(result, RowBatch) else result
            tables, time.done = folded.state, tick
        if folded.due is not None and (due := max((folded.due - 1) // self.tick, time.done + 1)) not in time.pieces:
            time.pieces[due] = 0
            timer.set(self._end(due), dynamic_timer_tag=str(due))
        self._remember(state, tables)
        clock.write(time.written())

    def _end(self, tick: int) -> Timestamp:
        """When a tick is over. One millisecond before the next: what is emitted then lies in the tick's own windows."""
        return min(_LAST, Timestamp(micros=(tick + 1) * self.tick + (self.lag - 1) * MILLI))

    def _too_late(self, rows: RowBatch) -> Iterator[Any]:
        rows = rows.replace_schema_metadata()
        count(self.step, ROWS_LATE, rows.num_rows)
        if self.late == "output":
            yield pvalue.TaggedOutput(LATE, rows)
        else:
            detail = f"came after its time was closed ({self.tick / 1e6:g} s ticks, lateness included)"
            yield from self.emit([letters_of_rows(self.step, rows, LATE, [detail] * rows.num_rows)])

    def _remembered(self, state: Any) -> Tables:
        parts = list(state.read())
        version = int(fact(parts[0], "version")) if parts else self.fold.version
        tables = tables_of(parts)
        return tables if version == self.fold.version else self.fold.upgrade(version, tables)

    def _remember(self, state: Any, tables: Tables) -> None:
        state.clear()
        for name, rows in tables.items():
            state.add(mark(rows, name=name, version=self.fold.version))


def _by_tick(batch: RowBatch, ticks: np.ndarray) -> Iterator[tuple[int, RowBatch]]:
    if not len(ticks):
        return
    if ticks[0] == ticks[-1] and (ticks == ticks[0]).all():
        yield int(ticks[0]), batch
        return
    order = np.argsort(ticks, kind="stable")
    ordered, ticks = batch.take(pa.array(order)), ticks[order]
    starts = np.flatnonzero(np.diff(ticks, prepend=ticks[0] - 1))
    for start, end in zip(starts, [*starts[1:], len(ticks)], strict=True):
        yield int(ticks[start]), ordered.slice(start, end - start)


@dataclass
class _Clock:
    """How far a shard is: the last tick that was folded, and the ticks that are not over, with the pieces that each has."""

    done: int
    pieces: dict[int, int]

    @classmethod
    def read(cls, cell: Any) -> _Clock:
        kept = cell.read()
        if kept is None:
            return cls(BEGIN, {})
        return cls(int(fact(kept, "done")), dict(zip(kept["tick"].to_pylist(), kept["pieces"].to_pylist(), strict=True)))

    def written(self) -> RowBatch:
        columns = {"tick": pa.array(self.pieces.keys(), pa.int64()), "pieces": pa.array(self.pieces.values(), pa.int64())}
        return mark(RowBatch.from_pydict(columns), done=self.done)


class _Ring:
    """The bags of a shard. A slot also holds later ticks, `SLOTS` apart; the tick is written on every piece."""

    def __init__(self, fold: Fold, bags: tuple[Any, ...]):
        self.fold = fold
        self.bags = bags

    def add(self, tick: int, rows: RowBatch, pieces: int) -> int:
        """Adds rows to their tick and returns how many pieces it now has: many small ones are joined."""
        bag, name = self.bags[tick % SLOTS], fact(rows, "name")
        bag.add(mark(self.fold.condense(name, rows.replace_schema_metadata()), name=name, tick=tick))
        if pieces + 1 < MAX_PIECES or not self.fold.condenses:
            return pieces + 1
        joined = self.take(tick, pieces + 1)
        for table, whole in joined.items():
            bag.add(mark(self.fold.condense(table, whole), name=table, tick=tick))
        return len(joined)

    def take(self, tick: int, pieces: int) -> Tables:
        """Takes the rows of a tick out of the ring."""
        if not pieces:
            return {}
        bag = self.bags[tick % SLOTS]
        kept = list(bag.read())
        mine = [piece for piece in kept if int(fact(piece, "tick")) == tick]
        bag.clear()
        for piece in kept:
            if int(fact(piece, "tick")) != tick:
                bag.add(piece)
        return tables_of(mine)
