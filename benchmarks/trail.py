"""Five figures over the past of each event's user: JSON lines in, Parquet out. DuckDB does it with RANGE windows."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks import comparing, events

COLUMNS = {"id": "BIGINT", "ts": "TIMESTAMP", "user": "VARCHAR", "category": "VARCHAR", "amount": "DOUBLE"}


def tiebeam(source: str, target: str) -> None:
    import apache_beam as beam

    from tiebeam.io.jsonl import ReadFromJsonl
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.transforms.trail import Count, Distinct, Max, Past, SinceLast, Sum, Trail

    trail = Trail(
        "user",
        times=Past("1m", Count()),
        spent=Past("5m", Sum("amount")),
        most=Past("5m", Max("amount")),
        kinds=Past("5m", Distinct("category")),
        since=Past("5m", SinceLast()),
    )
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | ReadFromJsonl(source, event_time="ts", columns=tuple(COLUMNS))
        rows | trail | WriteToParquet(target)


def duckdb(source: str, target: str) -> None:
    import duckdb

    # Times are of milliseconds: Trail leaves out what is exactly `over` ago, and the row itself, each one millisecond away.
    past = "PARTITION BY \"user\" ORDER BY ts RANGE BETWEEN INTERVAL '{} milliseconds' PRECEDING AND INTERVAL '1 millisecond' PRECEDING"
    duckdb.sql(
        "COPY (SELECT *, count(*) OVER minute AS times, sum(amount) OVER five AS spent, max(amount) OVER five AS most, "
        "count(DISTINCT category) OVER five AS kinds, epoch_ms(ts - max(ts) OVER five) / 1000.0 AS since "
        f"FROM read_json('{source}', format = 'newline_delimited', columns = {COLUMNS}) "
        f"WINDOW minute AS ({past.format(59_999)}), five AS ({past.format(299_999)})) TO '{target}/trail.parquet'"
    )


CONTENDERS: dict[str, Callable[[str, str], None]] = {f.__name__: f for f in (tiebeam, duckdb)}
# Of a user's events in the same millisecond, Trail lets the later see the earlier; a RANGE window has no order for them.
CONTENT = (
    "SELECT id, times, round(spent, 2), most, kinds, round(since, 3) FROM read_parquet('{}/**/*.parquet') "
    'QUALIFY count(*) OVER (PARTITION BY "user", ts) = 1'
)


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size."""
    for size in sizes:
        costs = comparing.costs("trail", CONTENDERS, size, times, CONTENT, {})
        title = f"Five figures over the past of each user, {size:,} JSON events of {events.LINE_BYTES} bytes to Parquet"
        comparing.table(title, costs, size * events.LINE_BYTES, f"trail_{size}" if save else None)


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](*sys.argv[2:])
