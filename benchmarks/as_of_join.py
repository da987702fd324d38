"""As-of join: each trade with the last quote of its symbol not after it. Parquet in, Parquet out, beside DuckDB's ASOF JOIN."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import comparing
from benchmarks.measuring import WORK, measure, python, say, warm
from tiebeam.rows import MAX_BATCH_ROWS

SYMBOLS = 2_000
QUOTES_PER_TRADE = 0.125
TIME = pa.timestamp("us", tz="UTC")


def written(size: int) -> Path:
    """A folder of so many trades, and an eighth as many quotes; times within a second of their order."""
    folder = WORK / f"trades_{size}"
    for name, n in (("trades", size), ("quotes", int(size * QUOTES_PER_TRADE))):
        path = folder / f"{name}.parquet"
        if path.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(len(name) + n)
        draft = path.with_suffix(".draft")
        with pq.ParquetWriter(draft, _rows(random, name, 0, 1, 1.0).schema) as writer:
            for first in range(0, n, MAX_BATCH_ROWS):
                writer.write_table(_rows(random, name, first, min(MAX_BATCH_ROWS, n - first), size / n))
        draft.rename(path)
    return folder


def _rows(random: np.random.Generator, name: str, first: int, n: int, every: float) -> pa.Table:
    micros = ((first + np.arange(n)) * every * 1000).astype(np.int64) + random.integers(0, 1_000_000, n)
    symbols = pa.array([f"SYM{i:04}" for i in range(SYMBOLS)]).take(pa.array(random.integers(0, SYMBOLS, n)))
    value = {"price": random.random(n).round(4)} if name == "quotes" else {"shares": random.integers(1, 1000, n)}
    return pa.table({"symbol": symbols, "ts": pa.array(micros).cast(TIME), **value})


def tiebeam(source: str, target: str) -> None:
    import apache_beam as beam

    from tiebeam.io.parquet import ReadFromParquet, WriteToParquet
    from tiebeam.transforms.join import Join

    with beam.Pipeline(runner="FnApiRunner") as p:
        left, right = (
            p | f"Read {name}" >> ReadFromParquet(f"{source}/{name}.parquet", event_time="ts", positions=False)
            for name in ("trades", "quotes")
        )
        {"left": left, "right": right} | Join("symbol", as_of=True) | WriteToParquet(target)


def duckdb(source: str, target: str) -> None:
    import duckdb

    duckdb.sql(
        f"COPY (SELECT t.*, q.ts AS ts_right, q.price FROM '{source}/trades.parquet' t ASOF JOIN '{source}/quotes.parquet' q "
        f"ON t.symbol = q.symbol AND q.ts <= t.ts) TO '{target}/joined.parquet'"
    )


CONTENDERS: dict[str, Callable[[str, str], None]] = {f.__name__: f for f in (tiebeam, duckdb)}
CONTENT = "SELECT symbol, epoch_us(ts), shares, epoch_us(ts_right) FROM read_parquet('{}/**/*.parquet')"  # of equal quotes any will do


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size."""
    for size in sizes:
        folder = written(size)
        for path in folder.glob("*.parquet"):
            warm(path)
        costs = {}
        for name in ("duckdb", "tiebeam"):
            say(f"as_of_join, {size:,} trades: {name}")
            target = WORK / "as_of_join" / name
            command = python("benchmarks.as_of_join", name, folder, target)
            costs[name] = measure(command, times, lambda target=target: comparing.empty(target))
        comparing.same(*(CONTENT.format(WORK / "as_of_join" / name) for name in ("duckdb", "tiebeam")), "as_of_join: tiebeam")
        title = f"As-of join of {size:,} trades with {int(size * QUOTES_PER_TRADE):,} quotes of {SYMBOLS:,} symbols, Parquet to Parquet"
        bytes_read = sum(path.stat().st_size for path in folder.glob("*.parquet"))
        comparing.table(title, {name: costs[name] for name in CONTENDERS}, bytes_read, f"as_of_join_{size}" if save else None)


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](*sys.argv[2:])
