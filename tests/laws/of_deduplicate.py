"""Cases of Deduplicate. The oracle walks along the rows of each key, one by one, as the definition does."""

from __future__ import annotations

from datetime import timedelta

import duckdb
import pyarrow as pa

from laws.cases import Case
from support.events import by_key, clicks
from tiebeam.rows import ROW_TIME
from tiebeam.transforms.deduplicate import Deduplicate

WITHIN = timedelta(minutes=2)


def kept(batches, keep, *keys):
    rows = [row for batch in batches for row in batch.to_pylist()]
    found = []
    for group in by_key(rows, *keys):
        since = None
        for row in group:
            if since is None or row[ROW_TIME] - since >= WITHIN:
                since = row[ROW_TIME]
                found.append(row)
            elif keep == "last":
                found[-1] = row
    return found


def one_per_key(batches, direction):
    rows = pa.Table.from_batches(batches)
    order = f"row_time {direction}, len(row_position) {direction}, row_position {direction}"
    with duckdb.connect() as con:
        con.register("rows", rows)
        first = con.sql(f"SELECT * FROM rows QUALIFY row_number() OVER (PARTITION BY user, kind ORDER BY {order}) = 1")
        return first.to_arrow_table().to_pylist()


def twice(chance, n):
    """Every row is delivered once or twice."""
    rows = clicks(chance, n)
    return [rows, rows.take(pa.array(chance.permutation(n)[: n // 2 + 1]))]


def once(batches):
    return list({row["row_position"]: row for batch in batches for row in batch.to_pylist()}.values())


SETTING = dict(within="2m", tick="30s", shards=3)

CASES = [
    Case("first of duplicates", lambda: Deduplicate("user", **SETTING), lambda c, n: [clicks(c, n)], lambda b: kept(b, "first", "user")),
    Case(
        "last of duplicates",
        lambda: Deduplicate(["user", "device"], keep="last", **SETTING),
        lambda c, n: [clicks(c, n)],
        lambda b: kept(b, "last", "user", "device"),
    ),
    Case("delivered twice", lambda: Deduplicate(within="10m", tick="1m"), twice, once),
    # Without `within` a duplicate may come at any time: only an input that ends can be told so.
    Case(
        "first of all",
        lambda: Deduplicate(["user", "kind"]),
        lambda c, n: [clicks(c, n)],
        lambda b: one_per_key(b, "ASC"),
        streams=False,
    ),
    Case(
        "last of all",
        lambda: Deduplicate(["user", "kind"], keep="last"),
        lambda c, n: [clicks(c, n)],
        lambda b: one_per_key(b, "DESC"),
        streams=False,
    ),
]
