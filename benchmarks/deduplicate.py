"""The first event of each user: JSON lines in, Parquet out. Each contender written as its own users would."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks import comparing, events

COLUMNS = {"id": "BIGINT", "ts": "TIMESTAMP", "user": "VARCHAR", "amount": "DOUBLE"}


def tiebeam(source: str, target: str) -> None:
    import apache_beam as beam

    from tiebeam.io.jsonl import ReadFromJsonl
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.transforms.deduplicate import Deduplicate

    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | ReadFromJsonl(source, event_time="ts", columns=tuple(COLUMNS))
        rows | Deduplicate(by="user") | WriteToParquet(target)


def duckdb(source: str, target: str) -> None:
    import duckdb

    rows = f"read_json('{source}', format = 'newline_delimited', columns = {COLUMNS})"
    first = f'FROM {rows} QUALIFY row_number() OVER (PARTITION BY "user" ORDER BY ts, id) = 1'
    duckdb.sql(f"COPY ({first}) TO '{target}/first.parquet'")


CONTENDERS: dict[str, Callable[[str, str], None]] = {f.__name__: f for f in (tiebeam, duckdb)}
CONTENT = "SELECT id, epoch_ms(ts::TIMESTAMPTZ), \"user\", amount FROM read_parquet('{}/**/*.parquet')"


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size."""
    for size in sizes:
        costs = comparing.costs("deduplicate", CONTENDERS, size, times, CONTENT, {})
        title = f"First event of each user, {size:,} JSON events of {events.LINE_BYTES} bytes to Parquet"
        comparing.table(title, costs, size * events.LINE_BYTES, f"deduplicate_{size}" if save else None)


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](*sys.argv[2:])
