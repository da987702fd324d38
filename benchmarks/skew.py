"""Skew: windowed sums where one key has half of all rows, beside the same with rows spread evenly."""

from __future__ import annotations

import sys

import apache_beam as beam
import numpy as np
import pyarrow as pa

from benchmarks.measuring import measure, python, say, show
from tiebeam.rows import MAX_BATCH_ROWS, RESERVED, ROW_TIME, RowBatch
from tiebeam.transforms.aggregate import Aggregate, Count, Sum

KEYS = 10_000


def made(chunk: int, skewed: bool) -> RowBatch:
    random = np.random.default_rng(chunk)
    keys = random.integers(0, KEYS, MAX_BATCH_ROWS)
    if skewed:
        keys = np.where(random.random(MAX_BATCH_ROWS) < 0.5, 0, keys)
    times = (chunk * MAX_BATCH_ROWS + np.arange(MAX_BATCH_ROWS)) * 1000
    columns = {"key": pa.array(keys), "amount": pa.array(random.random(MAX_BATCH_ROWS))}
    return RowBatch.from_pydict({**columns, ROW_TIME: pa.array(times).cast(RESERVED[ROW_TIME])})


def run(skewed: bool, size: int) -> None:
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create(range(-(-size // MAX_BATCH_ROWS)), reshuffle=False) | beam.Map(made, skewed).with_output_types(RowBatch)
        _ = rows | Aggregate("key", window="1m", n=Count(), total=Sum("amount"))


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table: seconds for both, and their ratio, at each size."""
    rows = []
    for size in sizes:
        say(f"skew, {size:,} rows")
        even, skewed = (measure(python("benchmarks.skew", how, size), times).secs for how in ("even", "skewed"))
        rows.append([f"{size:,} rows", f"{even:.2f}", f"{skewed:.2f}", f"{skewed / even:.2f}"])
    title = f"Aggregate per minute and key, {KEYS:,} keys, rows made in the job: spread evenly, and half of them of one key"
    show(title, ["", "even s", "skewed s", "ratio"], rows, "skew" if save else None)


if __name__ == "__main__":
    run(sys.argv[1] == "skewed", int(sys.argv[2]))
