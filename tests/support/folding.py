"""Drives a fold without a runner: at once, or tick by tick with rows cut and shuffled at random and state sent through its coder."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pyarrow as pa

from support.matrix import Inputs, Rows, canonical
from tiebeam.rows import RowBatch, RowBatchCoder
from tiebeam.transforms._fold import END, Fold, Tables, mark, micros_of, tables_of

CODER = RowBatchCoder()


def named(fold: Fold, inputs: Inputs) -> dict[str, list[RowBatch]]:
    return inputs if isinstance(inputs, dict) else {next(iter(fold.keys)): inputs}


def at_once(fold: Fold, inputs: Inputs) -> Rows:
    rows = tables_of(mark(batch, name=name) for name, batches in named(fold, inputs).items() for batch in batches if batch.num_rows)
    return collected(fold.fold({}, rows, END).rows)


def tick_by_tick(fold: Fold, inputs: Inputs, tick: int, seed: int) -> tuple[Rows, Tables]:
    """The rows, and what is remembered when the time is over."""
    chance = random.Random(seed)
    waiting: dict[int, list[RowBatch]] = defaultdict(list)
    for name, batches in named(fold, inputs).items():
        for batch in batches:
            ticks = micros_of(batch) // tick
            for t in np.unique(ticks):
                waiting[int(t)] += [mark(piece, name=name) for piece in pieces(fold, name, batch.filter(pa.array(ticks == t)), chance)]
    state: Tables = {}
    found: Rows = []
    while waiting:
        now = min(waiting)
        parts = waiting.pop(now)
        chance.shuffle(parts)
        folded = fold.fold(through_coder(state), tables_of(parts), (now + 1) * tick)
        found += collected(folded.rows)
        state = folded.state
        if folded.due is not None:
            waiting.setdefault(max((folded.due - 1) // tick, now + 1), [])
    return canonical(found), state


def pieces(fold: Fold, name: str, batch: RowBatch, chance: random.Random) -> list[RowBatch]:
    order = list(range(batch.num_rows))
    chance.shuffle(order)
    cut = []
    while order:
        size = chance.randint(1, len(order))
        cut.append(fold.condense(name, batch.take(pa.array(order[:size]))))
        order = order[size:]
    return cut


def through_coder(state: Tables) -> Tables:
    assert all(rows.num_rows for rows in state.values()), "a table without rows is remembered"
    return {name: CODER.decode(CODER.encode(rows)) for name, rows in state.items()}


def collected(results) -> Rows:
    return canonical([row for result in results for row in result.to_pylist()])
