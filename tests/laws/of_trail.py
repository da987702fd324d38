"""Cases of Trail. The oracle looks, for each row, at all rows of its key, and takes those that are its past."""

from __future__ import annotations

import math
import statistics
from datetime import timedelta

from laws.cases import Case
from support.events import by_key, clicks
from tiebeam.rows import ROW_TIME
from tiebeam.transforms.trail import (
    Count,
    Distinct,
    First,
    Last,
    Max,
    Mean,
    Min,
    Past,
    RatioToMean,
    SinceLast,
    Sum,
    Trail,
)  # fmt: skip


def trails(batches, keys, figures):
    rows = [row for batch in batches for row in batch.to_pylist()]
    found = []
    for group in by_key(rows, *keys):
        for i, row in enumerate(group):
            told = dict(row)
            for name, (over, itself, compute, *rows) in figures.items():
                past = [r for r in group[: i + itself] if row[ROW_TIME] - r[ROW_TIME] < timedelta(minutes=over)]
                past = past[-rows[0] :] if rows else past
                told[name] = compute(past, row)
            found.append(told)
    return found


def of(column, compute, least=1):
    """A figure of the values of a column that are not null; null where there are fewer than `least`."""

    def figure(past, row):
        values = [r[column] for r in past if r[column] is not None]
        return compute(values) if len(values) >= least else None

    return figure


def since(past, row):
    return (row[ROW_TIME] - past[-1][ROW_TIME]).total_seconds() if past else None


def ratio(past, row):
    mean = of("amount", statistics.fmean)(past, row)
    return row["amount"] / mean if mean and row["amount"] is not None else None


def count(past, row):
    return len(past)


SETTING = dict(tick="30s", shards=3)
SUMS = dict(
    times=Past("5m", Count()),
    seen=Past("5m", Count("amount")),
    total=Past("5m", Sum("amount")),
    exact=Past("2m", Sum("price")),
    mean=Past("5m", Mean("amount"), itself=True),
)
ORACLE_OF_SUMS = dict(
    times=(5, 0, count),
    seen=(5, 0, of("amount", len, 0)),
    total=(5, 0, of("amount", sum)),
    exact=(2, 0, of("price", math.fsum)),
    mean=(5, 1, of("amount", lambda values: math.fsum(values) / len(values))),
)
PICKS = dict(
    least=Past("5m", Min("amount")),
    most=Past("1m", Max("kind"), itself=True),
    first=Past("5m", First("kind")),
    last=Past("5m", Last("amount")),
    kinds=Past("5m", Distinct("amount")),
    devices=Past("1m", Distinct("device"), itself=True),
    since=Past("5m", SinceLast()),
    ratio=Past("5m", RatioToMean("amount")),
)
ORACLE_OF_PICKS = dict(
    least=(5, 0, of("amount", min)),
    most=(1, 1, of("kind", max)),
    first=(5, 0, of("kind", lambda values: values[0])),
    last=(5, 0, of("amount", lambda values: values[-1])),
    kinds=(5, 0, of("amount", lambda values: len(set(values)), 0)),
    devices=(1, 1, of("device", lambda values: len(set(values)), 0)),
    since=(5, 0, since),
    ratio=(5, 0, ratio),
)


CASES = [
    Case(
        "trail, sums",
        lambda: Trail("user", **SETTING, **SUMS),
        lambda c, n: [clicks(c, n)],
        lambda b: trails(b, ["user"], ORACLE_OF_SUMS),
    ),
    Case(
        "trail, picks",
        lambda: Trail("user", **SETTING, **PICKS),
        lambda c, n: [clicks(c, n)],
        lambda b: trails(b, ["user"], ORACLE_OF_PICKS),
    ),
    Case(
        "trail of two keys",
        lambda: Trail(["user", "device"], times=Past("10m", Count(), rows=3), since=Past("10m", SinceLast()), **SETTING),
        lambda c, n: [clicks(c, n)],
        lambda b: trails(b, ["user", "device"], dict(times=(10, 0, count, 3), since=(10, 0, since))),
    ),
]
