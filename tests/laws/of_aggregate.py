"""Cases of Aggregate in windows. The oracle puts each row into the windows that have it, one by one, and computes from lists."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from laws.cases import Case
from support.events import by_key, clicks, place
from tiebeam.rows import ROW_TIME
from tiebeam.transforms.aggregate import (
    Aggregate,
    ApproxDistinct,
    Calendar,
    Count,
    First,
    Fixed,
    Last,
    Max,
    Mean,
    Min,
    Sessions,
    Sliding,
    Sum,
    TopK,
)  # fmt: skip

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Spans = Iterable[tuple[datetime, datetime]]


def fixed(size: float, offset: float = 0) -> Callable[[datetime], Spans]:
    return sliding(size, size, offset)


def sliding(size: float, period: float, offset: float = 0) -> Callable[[datetime], Spans]:
    """Every window of so many seconds that begins at a multiple of `period` and has the time."""

    def spans(at: datetime) -> Spans:
        nearest = math.floor((at - EPOCH).total_seconds() / period)
        for nth in range(nearest - math.ceil(size / period) - 1, nearest + 2):
            start = EPOCH + timedelta(seconds=nth * period + offset)
            if start <= at < start + timedelta(seconds=size):
                yield start, start + timedelta(seconds=size)

    return spans


def months(at: datetime) -> Spans:
    at = at.astimezone(UTC)
    first = datetime(at.year, at.month, 1, tzinfo=UTC)
    yield first, datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)


def windows(spans, keys, figures):
    def expected(batches):
        groups = defaultdict(list)
        for row in sorted((row for batch in batches for row in batch.to_pylist()), key=place):
            for span in spans(row[ROW_TIME]):
                groups[(*span, *(row[key] for key in keys))].append(row)
        return [told(group[:2], dict(zip(keys, group[2:], strict=True)), rows, figures) for group, rows in groups.items()]

    return expected


def told(span, keys, rows, figures):
    start, end = span
    computed = {name: compute(rows) for name, compute in figures.items()}
    return {"window_start": start, "window_end": end, **keys, **computed, ROW_TIME: end - timedelta(microseconds=1)}


def sessions(batches):
    gap, found = timedelta(minutes=2), []
    for group in by_key([row for batch in batches for row in batch.to_pylist()], "user"):
        runs = [[group[0]]]
        for before, row in pairwise(group):
            runs.append([row]) if row[ROW_TIME] - before[ROW_TIME] >= gap else runs[-1].append(row)
        found += [told((run[0][ROW_TIME], run[-1][ROW_TIME] + gap), {"user": group[0]["user"]}, run, FIGURES) for run in runs]
    return found


def of(column, compute, none=None):
    def figure(rows):
        values = [row[column] for row in rows if row[column] is not None]
        return compute(values) if values else none

    return figure


def best(rows):
    weights = Counter(row["kind"] for row in rows)
    return [{"value": kind, "weight": n} for kind, n in sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:2]]


COUNT = dict(n=Count())
COUNTED = dict(n=len)
REDUCERS = dict(
    n=Count(), seen=Count("amount"), total=Sum("amount"), exact=Sum("price"), mean=Mean("amount"), least=Min("amount"), most=Max("kind"),
    first=First("kind"), last=Last("amount"),
)  # fmt: skip
FIGURES = dict(
    n=len,
    seen=of("amount", len, 0),
    total=of("amount", sum),
    exact=of("price", math.fsum),
    mean=of("amount", lambda values: math.fsum(values) / len(values)),
    least=of("amount", min),
    most=of("kind", max),
    first=of("kind", lambda values: values[0]),
    last=of("amount", lambda values: values[-1]),
)
FINE = dict(kinds=ApproxDistinct("kind"), best=TopK(2, "kind"), n=Count())
FINELY = dict(kinds=of("kind", lambda values: len(set(values))), best=best, n=len)


def case(name, window, expected, by=("user",), reducers=REDUCERS, tick="30s"):
    def make():
        return Aggregate(by=by, window=window, shards=3, tick=tick, **reducers)

    return Case(f"windows, {name}", make, lambda c, n: [clicks(c, n)], expected)


CASES = [
    case("fixed", "2m", windows(fixed(120), ["user"], FIGURES)),
    case("fixed and moved", Fixed("2m", "30s"), windows(fixed(120, 30), ["user"], COUNTED), reducers=COUNT),
    case("without keys", "1m", windows(fixed(60), [], FIGURES), by=()),
    case("of two keys", "5m", windows(fixed(300), ["user", "device"], COUNTED), by=("user", "device"), reducers=COUNT),
    case("sliding", Sliding("3m", "1m"), windows(sliding(180, 60), ["user"], FIGURES)),
    case("sliding by part of a pane", Sliding("50s", "30s"), windows(sliding(50, 30), ["user"], COUNTED), reducers=COUNT),
    case("with time between them", Sliding("5m", "8m"), windows(sliding(300, 480), ["user"], COUNTED), reducers=COUNT, tick="35s"),
    case("sessions", Sessions("2m"), sessions),
    case("months", Calendar("month"), windows(months, ["user"], FIGURES), tick="3m"),
    case("fine reducers", Sliding("2m", "1m"), windows(sliding(120, 60), ["user"], FINELY), reducers=FINE),
]
