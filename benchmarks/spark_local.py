"""Sessions by Spark itself, without Beam, on this machine: two cores (`local[2]`), from a Parquet file of events.

python -m benchmarks.spark_local EVENTS.parquet

Needs pyspark (`pip install -e .[bench]`) and Java. The events have a column `user` and a timestamp `ts`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from time import perf_counter

GAP_SECS = 300


@dataclass(frozen=True)
class Found:
    """What one pass over the events took and gave; the seconds are without the start of Spark."""

    seconds: float
    sessions: int
    rows: int


def sessions(path: str, user: str = "user", time: str = "ts", gap_secs: int = GAP_SECS) -> Found:
    """Counts the sessions of every user, ended by a gap, and their rows: Spark's own session windows over all events."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    settings = {"spark.ui.enabled": "false", "spark.driver.host": "localhost", "spark.driver.bindAddress": "127.0.0.1"}
    session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    try:
        start = perf_counter()
        events = session.read.parquet(path)
        told = events.groupBy(user, f.session_window(time, f"{gap_secs} seconds")).agg(f.count("*").alias("n"))
        (total,) = told.agg(f.count("*").alias("sessions"), f.coalesce(f.sum("n"), f.lit(0)).alias("rows")).collect()
        return Found(perf_counter() - start, total["sessions"], total["rows"])
    finally:
        session.stop()


if __name__ == "__main__":
    print(sessions(sys.argv[1]))
