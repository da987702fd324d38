"""Rows that hurt: equal times, times on the border of ticks and windows, before 1970, null keys and values, keys of one row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch

SECOND = 1_000_000
MINUTE = 60 * SECOND
TIME = pa.timestamp("us", tz="UTC")
KINDS = ("view", "cart", "buy", "leave")


def clicks(chance: np.random.Generator, n: int, keys: int = 4, span: int = 20 * MINUTE) -> RowBatch:
    """What users did: user, device (a dictionary), kind, amount, price, row_time and row_position (unique)."""
    times = chance.integers(-span, span, n)
    on_border = chance.random(n) < 0.4
    times = np.where(on_border, times // (10 * SECOND) * (10 * SECOND), times)
    users = chance.integers(0, keys, n)
    rare = chance.random(n) < 0.1
    names = [None if u == 0 else f"rare {i}" if r else f"user {u}" for i, (u, r) in enumerate(zip(users, rare, strict=True))]
    amounts = chance.integers(-5, 6, n)
    return RowBatch.from_pydict({
        "user": pa.array(names, pa.string()),
        "device": pa.array([["phone", "desk", None][d] for d in chance.integers(0, 3, n)], pa.string()).dictionary_encode(),
        "kind": pa.array([KINDS[k] for k in chance.choice(4, n, p=[0.4, 0.25, 0.25, 0.1])], pa.string()),
        "amount": pa.array([None if a == 5 else int(a) for a in amounts], pa.int64()),
        "price": pa.array(chance.choice([0.1, 0.2, 0.3, -0.7, 1e16], n)),
        ROW_TIME: pa.array(times, pa.int64()).cast(TIME),
        ROW_POSITION: pa.array([f"clicks:{i}" for i in chance.permutation(n)]),
    })  # fmt: skip


def place(row: dict) -> tuple:
    """What the order of rows within a key is: time, then position."""
    return row[ROW_TIME], len(row[ROW_POSITION]), row[ROW_POSITION]


def by_key(rows: list[dict], *keys: str) -> list[list[dict]]:
    """The rows of each key, in their order."""
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=place):
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())
