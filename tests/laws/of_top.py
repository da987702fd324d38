"""Cases of Top. The oracle is DuckDB's `row_number` over the rows of each key and window."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from laws.cases import Case
from support.events import clicks
from tiebeam.transforms.top import Top

WINDOW = "time_bucket(INTERVAL '{} minutes', row_time, TIMESTAMPTZ '1970-01-01 00:00:00+00')"
TIES = "row_time, len(row_position), row_position"


def ranked(batches, n, order, *keys, minutes=0):
    rows = pa.Table.from_batches(batches)
    window = WINDOW.format(minutes)
    parts = ", ".join([*keys, window] if minutes else keys)
    told = f"*, {window} AS window_start" if minutes else "*"
    rank = f"row_number() OVER ({f'PARTITION BY {parts}' if parts else ''} ORDER BY {order}, {TIES})"
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("rows", rows)
        return con.sql(f"SELECT {told}, {rank} AS rank FROM rows QUALIFY rank <= {n}").to_arrow_table().to_pylist()


def rows_of(chance, n):
    return [clicks(chance, n)]


CASES = [
    Case(
        "top of windows",
        lambda: Top(2, "amount", "user", window="2m", tick="30s", shards=3),
        rows_of,
        lambda b: ranked(b, 2, "amount DESC NULLS LAST", "user", minutes=2),
    ),
    Case(
        "top by several columns",
        lambda: Top(3, ["device asc", "price desc"], ["user", "kind"], window="3m", tick="1m", shards=2),
        rows_of,
        lambda b: ranked(b, 3, "device ASC NULLS LAST, price DESC NULLS LAST", "user", "kind", minutes=3),
    ),
    Case(
        "top without keys",
        lambda: Top(3, "price", window="2m", tick="30s"),
        rows_of,
        lambda b: ranked(b, 3, "price DESC NULLS LAST", minutes=2),
    ),
    # Without a window a better row may come at any time: only an input that ends can be told so.
    Case(
        "top of all",
        lambda: Top(2, "amount asc", "device"),
        rows_of,
        lambda b: ranked(b, 2, "amount ASC NULLS LAST", "device"),
        streams=False,
    ),
]
