"""JSON lines to Parquet, every column, zstd: what each contender needs for it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks import comparing, events

MOST_FOR_BEAM = 1_000_000

TYPES = {"id": "BIGINT", "ts": "VARCHAR", "user": "VARCHAR", "amount": "DOUBLE"}
TYPES |= dict.fromkeys(("note", "category", "kind", "pad"), "VARCHAR")


def tiebeam(source: str, target: str) -> None:
    import apache_beam as beam

    from tiebeam.io.jsonl import ReadFromJsonl
    from tiebeam.io.parquet import WriteToParquet

    with beam.Pipeline(runner="FnApiRunner") as p:
        p | ReadFromJsonl(source, positions=False) | WriteToParquet(target)


def tiebeam_with_positions(source: str, target: str) -> None:
    import apache_beam as beam

    from tiebeam.io.jsonl import ReadFromJsonl
    from tiebeam.io.parquet import WriteToParquet

    with beam.Pipeline(runner="FnApiRunner") as p:
        p | ReadFromJsonl(source) | WriteToParquet(target)


def beam_rows(source: str, target: str) -> None:
    import json

    import apache_beam as beam
    import pyarrow as pa

    kinds = {"BIGINT": pa.int64(), "VARCHAR": pa.string(), "DOUBLE": pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in TYPES.items()])
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.io.ReadFromText(source) | beam.Map(json.loads)
        rows | beam.io.WriteToParquet(f"{target}/events", schema, codec="zstd", file_name_suffix=".parquet")


def duckdb(source: str, target: str) -> None:
    import duckdb

    found = f"read_json('{source}', format = 'newline_delimited', columns = {TYPES})"
    duckdb.sql(f"COPY (FROM {found}) TO '{target}/events.parquet' (COMPRESSION zstd)")


def polars(source: str, target: str) -> None:
    import polars as pl

    kinds = {"BIGINT": pl.Int64, "VARCHAR": pl.String, "DOUBLE": pl.Float64}
    schema = {name: kinds[kind] for name, kind in TYPES.items()}
    pl.scan_ndjson(source, schema=schema).sink_parquet(f"{target}/events.parquet", compression="zstd")


def spark(source: str, target: str) -> None:
    from pyspark.sql import SparkSession

    kinds = {"BIGINT": "BIGINT", "VARCHAR": "STRING", "DOUBLE": "DOUBLE"}
    session = SparkSession.builder.master("local[2]").getOrCreate()
    rows = session.read.schema(", ".join(f"{name} {kinds[kind]}" for name, kind in TYPES.items())).json(source)
    rows.write.mode("overwrite").option("compression", "zstd").parquet(target)
    session.stop()


CONTENDERS: dict[str, Callable[[str, str], None]] = {
    f.__name__: f for f in (tiebeam, tiebeam_with_positions, duckdb, polars, spark, beam_rows)
}
CONTENT = f"SELECT count(*), sum(hash({', '.join(TYPES)})::HUGEINT) FROM read_parquet('{{}}/**/*.parquet', hive_partitioning = false)"


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size."""
    for size in sizes:
        costs = comparing.costs("json_to_parquet", CONTENDERS, size, times, CONTENT, {"beam_rows": MOST_FOR_BEAM})
        title = f"JSON to Parquet, {size:,} events of {events.LINE_BYTES} bytes, every column"
        comparing.table(title, costs, size * events.LINE_BYTES, f"json_to_parquet_{size}" if save else None)


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](*sys.argv[2:])
