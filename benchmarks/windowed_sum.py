"""Sum of amounts per minute, category and kind: JSON lines in, Parquet out. Each contender written as its own users would."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks import comparing, events
from benchmarks.measuring import show

MOST_FOR_BEAM = 1_000_000

COLUMNS = {"ts": "TIMESTAMP", "category": "VARCHAR", "kind": "VARCHAR", "amount": "DOUBLE"}


def tiebeam(source: str, target: str) -> None:
    import apache_beam as beam

    from tiebeam.io.jsonl import ReadFromJsonl
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.transforms.aggregate import Aggregate, Sum

    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | ReadFromJsonl(source, event_time="ts", columns=("ts", "category", "kind", "amount"))
        rows | Aggregate(by=("category", "kind"), window="1m", total=Sum("amount")) | WriteToParquet(target)


def beam_rows(source: str, target: str) -> None:
    import datetime
    import json

    import apache_beam as beam
    import pyarrow as pa
    from apache_beam.transforms.window import FixedWindows, TimestampedValue

    def timed(event):
        at = datetime.datetime.fromisoformat(event["ts"]).timestamp()
        return TimestampedValue(((event["category"], event["kind"]), event["amount"]), at)

    def named(pair, window=beam.DoFn.WindowParam):
        (category, kind), total = pair
        return {"window_start": window.start.to_utc_datetime(), "category": category, "kind": kind, "total": total}

    schema = pa.schema([("window_start", pa.timestamp("us")), ("category", pa.string()), ("kind", pa.string()), ("total", pa.float64())])
    with beam.Pipeline(runner="FnApiRunner") as p:
        lines = p | beam.io.ReadFromText(source)
        sums = lines | beam.Map(json.loads) | beam.Map(timed) | beam.WindowInto(FixedWindows(60)) | beam.CombinePerKey(sum)
        sums | beam.Map(named) | beam.io.WriteToParquet(f"{target}/sums", schema, file_name_suffix=".parquet")


def duckdb(source: str, target: str) -> None:
    import duckdb

    duckdb.sql(
        "COPY (SELECT date_trunc('minute', ts) AS window_start, category, kind, sum(amount) AS total "
        f"FROM read_json('{source}', format = 'newline_delimited', columns = {COLUMNS}) GROUP BY ALL) TO '{target}/sums.parquet'"
    )


def polars(source: str, target: str) -> None:
    import polars as pl

    schema = {"ts": pl.String, "category": pl.String, "kind": pl.String, "amount": pl.Float64}
    at = pl.col("ts").str.to_datetime("%Y-%m-%dT%H:%M:%S%.3fZ", time_zone="UTC")
    groups = pl.scan_ndjson(source, schema=schema).group_by(at.dt.truncate("1m").alias("window_start"), "category", "kind")
    groups.agg(pl.col("amount").sum().alias("total")).sink_parquet(f"{target}/sums.parquet")


def spark(source: str, target: str) -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    session = SparkSession.builder.master("local[2]").config("spark.sql.session.timeZone", "UTC").getOrCreate()
    rows = session.read.schema("ts TIMESTAMP, category STRING, kind STRING, amount DOUBLE").json(source)
    sums = rows.groupBy(f.date_trunc("minute", "ts").alias("window_start"), "category", "kind").agg(f.sum("amount").alias("total"))
    sums.write.mode("overwrite").parquet(target)
    session.stop()


CONTENDERS: dict[str, Callable[[str, str], None]] = {f.__name__: f for f in (tiebeam, duckdb, polars, spark, beam_rows)}
CONTENT = "SELECT epoch_ms(window_start::TIMESTAMPTZ), category, kind, round(total, 2) FROM read_parquet('{}/**/*.parquet')"


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size, and how much more memory the largest takes than 8 M events."""
    peaks: dict[int, float] = {}
    for size in sizes:
        costs = comparing.costs("windowed_sum", CONTENDERS, size, times, CONTENT, {"beam_rows": MOST_FOR_BEAM})
        peaks[size] = costs["tiebeam"].peak_mb
        title = f"Sum per minute and two keys, {size:,} JSON events of {events.LINE_BYTES} bytes to Parquet"
        comparing.table(title, costs, size * events.LINE_BYTES, f"windowed_sum_{size}" if save else None)
    if len(sizes) > 1:
        small, large = sizes[-2:]
        title = f"Peak memory of tiebeam, {large:,} events against {small:,}"
        rows = [["peak MB", f"{peaks[small]:.0f}", f"{peaks[large]:.0f}", f"{peaks[large] / peaks[small]:.2f}"]]
        show(title, ["", f"{small:,}", f"{large:,}", "ratio"], rows, "windowed_sum_memory" if save else None)


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](*sys.argv[2:])
