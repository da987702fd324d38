"""The pipeline `ingest` from its command line, against DuckDB's own COPY: JSON lines to Parquet, CSV to a DuckDB table."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import comparing, events
from benchmarks.json_to_parquet import CONTENT, TYPES
from benchmarks.measuring import WORK, measure, python, say, show, warm


def json_to_parquet(source: str, target: str) -> None:
    import duckdb

    found = f"read_json('{source}', format = 'newline_delimited', columns = {TYPES})"
    duckdb.sql(f"COPY (FROM {found}) TO '{target}/events.parquet' (COMPRESSION zstd)")


def csv_to_duckdb(source: str, target: str) -> None:
    import duckdb

    with duckdb.connect(f"{target}/shop.duckdb") as con:
        con.execute(f"CREATE TABLE events ({', '.join(f'{name} {kind}' for name, kind in TYPES.items())})")
        con.execute(f"COPY events FROM '{source}' (HEADER)")


def csv_file(size: int) -> Path:
    import duckdb

    path = WORK / f"events_{size}.csv"
    if not path.exists():
        say(f"writing {path}")
        found = f"read_json('{comparing.events_file(size)}', format = 'newline_delimited', columns = {TYPES})"
        duckdb.sql(f"COPY (FROM {found}) TO '{path}' (HEADER)")
    return path


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints MB/s of both, for the largest size."""
    size = max(s for s in sizes if s <= 8_000_000) if min(sizes) <= 8_000_000 else min(sizes)
    rows = [_row("json_to_parquet", comparing.events_file(size), times), _row("csv_to_duckdb", csv_file(size), times)]
    title = f"ingest against DuckDB's COPY, {size:,} events of {events.LINE_BYTES} bytes as JSON"
    show(title, ["", "MB", "tiebeam s", "MB/s", "peak MB", "DuckDB s", "MB/s", "peak MB", "ratio"], rows, "ingest" if save else None)


def _row(what: str, source: Path, times: int) -> list[str]:
    warm(source)
    ours, theirs = WORK / "ingest" / "tiebeam", WORK / "ingest" / "duckdb"
    say(f"ingest, {what}: DuckDB")
    base = measure(python("benchmarks.ingest", what, source, theirs), times, before=lambda: comparing.empty(theirs))
    say(f"ingest, {what}: tiebeam")
    cost = measure(python("tiebeam", "run", "ingest", *_flags(what, source, ours)), times, before=lambda: comparing.empty(ours))
    _compare(what, theirs, ours)
    mb = source.stat().st_size / 1e6
    figures = [f"{mb:.0f}"]
    for c in (cost, base):
        figures += [f"{c.secs:.2f}", f"{mb / c.secs:.0f}", f"{c.peak_mb:.0f}"]
    return [what.replace("_", " "), *figures, f"{cost.secs / base.secs:.2f}"]


def _flags(what: str, source: Path, target: Path) -> list[str]:
    flags = [f"--source_path={source}", f"--dead_letters={target}/rejected", f"--run_id={what}"]
    if what == "json_to_parquet":
        return ["--source=jsonl", "--sink=parquet", f"--sink_path={target}/out", *flags]
    return ["--source=csv", "--sink=duckdb", f"--sink_path={target}/shop.duckdb", "--sink_table=events", *flags]


def _compare(what: str, expected: Path, given: Path) -> None:
    if what == "json_to_parquet":
        comparing.same(CONTENT.format(expected), CONTENT.format(given / "out"), "ingest to Parquet")
    else:
        comparing.same(*(_table(folder / "shop.duckdb") for folder in (expected, given)), "ingest to DuckDB")


def _table(path: Path) -> str:
    import duckdb

    with duckdb.connect(str(path), read_only=True) as con:
        rows, total = con.execute(f"SELECT count(*), sum(hash({', '.join(TYPES)})::HUGEINT) FROM events").fetchall()[0]
    return f"SELECT {rows} AS n, '{total}' AS content"


if __name__ == "__main__":
    {"json_to_parquet": json_to_parquet, "csv_to_duckdb": csv_to_duckdb}[sys.argv[1]](*sys.argv[2:])
