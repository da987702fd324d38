"""Sessions of users with their rows and revenue: JSON lines in, Parquet out. Each contender written as its own users would."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import comparing, events

MOST_FOR_BEAM = 1_000_000
GAP_SECS = 300


def tiebeam(source: str, target: str) -> None:
    import apache_beam as beam

    from tiebeam.io.jsonl import ReadFromJsonl
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.transforms.aggregate import Sum
    from tiebeam.transforms.sessionize import Sessionize

    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | ReadFromJsonl(source, event_time="ts", columns=("ts", "user", "amount"))
        rows | Sessionize(by="user", gap=GAP_SECS, total=Sum("amount")) | WriteToParquet(target)


def beam_rows(source: str, target: str) -> None:
    import datetime
    import json

    import apache_beam as beam
    import pyarrow as pa
    from apache_beam.transforms.window import Sessions, TimestampedValue

    def timed(event):
        at = datetime.datetime.fromisoformat(event["ts"])
        return TimestampedValue((event["user"], (1, event["amount"])), at.timestamp())

    def added(values):
        counts, amounts = zip(*values, strict=True)
        return sum(counts), sum(amounts)

    def named(pair, window=beam.DoFn.WindowParam):
        user, (rows, total) = pair
        end = window.end - GAP_SECS
        return {
            "user": user, "session_start": window.start.to_utc_datetime(), "session_end": end.to_utc_datetime(),
            "session_rows": rows, "total": total,
        }  # fmt: skip

    times = [("session_start", pa.timestamp("us")), ("session_end", pa.timestamp("us"))]
    schema = pa.schema([("user", pa.string()), *times, ("session_rows", pa.int64()), ("total", pa.float64())])
    with beam.Pipeline(runner="FnApiRunner") as p:
        lines = p | beam.io.ReadFromText(source)
        found = lines | beam.Map(json.loads) | beam.Map(timed) | beam.WindowInto(Sessions(GAP_SECS)) | beam.CombinePerKey(added)
        found | beam.Map(named) | beam.io.WriteToParquet(f"{target}/sessions", schema, file_name_suffix=".parquet")


def duckdb(source: str, target: str) -> None:
    import duckdb

    columns = {"ts": "TIMESTAMP", "user": "VARCHAR", "amount": "DOUBLE"}
    duckdb.sql(
        f"COPY (WITH rows AS (FROM read_json('{source}', format = 'newline_delimited', columns = {columns})), "
        'begun AS (SELECT *, coalesce(ts - lag(ts) OVER (PARTITION BY "user" ORDER BY ts) '
        f">= INTERVAL {GAP_SECS} SECOND, true) AS begins FROM rows), "
        'numbered AS (SELECT *, sum(begins::INT) OVER (PARTITION BY "user" ORDER BY ts ROWS UNBOUNDED PRECEDING) AS number FROM begun) '
        'SELECT "user", min(ts) AS session_start, max(ts) AS session_end, count(*) AS session_rows, sum(amount) AS total '
        f"FROM numbered GROUP BY \"user\", number) TO '{target}/sessions.parquet'"
    )


def spark(source: str, target: str) -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    settings = {"spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC", "spark.driver.bindAddress": "127.0.0.1"}
    session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    rows = session.read.schema("ts TIMESTAMP, user STRING, amount DOUBLE").json(source)
    told = rows.groupBy("user", f.session_window("ts", f"{GAP_SECS} seconds").alias("window")).agg(
        f.min("ts").alias("session_start"),
        f.max("ts").alias("session_end"),
        f.count("*").alias("session_rows"),
        f.sum("amount").alias("total"),
    )
    told.drop("window").write.mode("overwrite").parquet(target)


CONTENDERS: dict[str, Callable[[str, str], None]] = {f.__name__: f for f in (tiebeam, duckdb, spark, beam_rows)}
CONTENT = (
    'SELECT "user", epoch_ms(session_start::TIMESTAMPTZ), epoch_ms(session_end::TIMESTAMPTZ), session_rows, round(total, 2) '
    "FROM read_parquet('{}/**/*.parquet')"
)


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size."""
    for size in sizes:
        costs = comparing.costs("sessions", CONTENDERS, size, times, CONTENT, {"beam_rows": MOST_FOR_BEAM})
        title = f"Sessions per user, gap {GAP_SECS} s, {size:,} JSON events of {events.LINE_BYTES} bytes to Parquet"
        begun = comparing.begun("sessions", costs, size)
        comparing.table(title, costs, size * events.LINE_BYTES, f"sessions_{size}" if save else None, begun)


if __name__ == "__main__":
    comparing.contend(CONTENDERS)
