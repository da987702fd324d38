"""Memory of a keyed transform on one machine, as rows become many: rows made in the job, folded by key, and counted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics, MetricsFilter

from benchmarks.measuring import measure, python, say, show
from tiebeam.rows import MAX_BATCH_ROWS, RESERVED, ROW_TIME, RowBatch
from tiebeam.transforms._fold import Fold, Folded, Tables
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms.sessionize import Sessionize

ROWS_PER_KEY = 40
MINUTE = 60_000_000


class CountFold(Fold):
    """Counts the rows of each key: the least that a fold can do, so that what is measured is the way to it."""

    keys: ClassVar = {"rows": ("user",)}

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        counted = pa.table(rows["rows"]).group_by("user", use_threads=False).aggregate([("amount", "count")])
        counts = counted.rename_columns(["user", "session_rows"])
        return Folded(counts.combine_chunks().to_batches())


TRANSFORMS = {
    "count": lambda: Keyed(CountFold(), tick=MINUTE),
    "sessions": lambda: Sessionize(by="user", gap="30m"),
}


def made(chunk: int, size: int) -> Iterator[RowBatch]:
    """The rows of a chunk: users at random, one row a millisecond."""
    first = chunk * MAX_BATCH_ROWS
    n = min(MAX_BATCH_ROWS, size - first)
    random = np.random.default_rng(chunk)
    users = random.integers(0, max(1, size // ROWS_PER_KEY), n)
    names = pa.array(users).cast(pa.string())
    times = pa.array(np.arange(first, first + n) * 1000).cast(RESERVED[ROW_TIME])
    yield RowBatch.from_pydict({"user": names, "amount": random.random(n), ROW_TIME: times})


def counted(batch: RowBatch) -> None:
    Metrics.counter("keyed_memory", "rows").inc(int(batch.column("session_rows").to_numpy().sum()))


def run(transform: str, size: int) -> None:
    """Folds so many rows, and ends the process in failure unless all of them were counted."""
    chunks = range(-(-size // MAX_BATCH_ROWS))
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create(chunks, reshuffle=False) | beam.FlatMap(made, size).with_output_types(RowBatch)
        _ = rows | TRANSFORMS[transform]() | beam.Map(counted)
    (found,) = p.result.metrics().query(MetricsFilter().with_name("rows"))["counters"]
    if found.result != size:
        raise SystemExit(f"{found.result:,} rows were counted, not {size:,}")


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table: seconds per million rows and peak memory at each size, and how memory grows from size to size."""
    for name in TRANSFORMS:
        rows, before = [], None
        for size in sizes:
            say(f"keyed_memory, {name}, {size:,} rows")
            cost = measure(python("benchmarks.keyed_memory", name, size), times)
            grown = f"{cost.peak_mb / before:.2f}" if before else ""
            rows.append([f"{size:,} rows", f"{cost.secs:.2f}", f"{cost.secs / size * 1e6:.2f}", f"{cost.peak_mb:.0f}", grown])
            before = cost.peak_mb
        title = f"Keyed transform, {name}, {ROWS_PER_KEY} rows per key, rows made in the job"
        show(title, ["", "seconds", "per million", "peak MB", "of the size before"], rows, f"keyed_memory_{name}" if save else None)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
