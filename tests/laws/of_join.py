"""Cases of Join. The oracle is SQL in DuckDB, written by the definition: every left row beside every right row."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from laws.cases import Case
from support.events import SECOND, TIME, clicks
from tiebeam.rows import RowBatch
from tiebeam.transforms.join import Join

LEFT = pa.schema([("user", pa.string()), ("kind", pa.string()), ("amount", pa.int64())])
RIGHT = pa.schema([("who", pa.string()), ("rate", pa.int64()), ("kind", pa.string())])
SPAN = 5 * 60 * SECOND


def tables(chance, n):
    """Clicks, and rates of the same users with a `kind` of their own."""
    left = clicks(chance, n, keys=5, span=SPAN).select(["user", "kind", "amount", "row_time", "row_position"])
    m = n // 2 + 1
    other = clicks(chance, m, keys=5, span=SPAN)
    right = RowBatch.from_pydict({
        "who": other["user"], "rate": pa.array(chance.integers(0, 100, m)), "kind": other["kind"],
        "row_time": other["row_time"], "row_position": pa.array([f"rates:{i}" for i in chance.permutation(m)]),
    })  # fmt: skip
    return {"left": [left], "right": [right]}


_BOTH = """
    l.user, l.kind, l.amount, l.row_time, {position} AS row_position,
    r.rate, r.kind AS kind_right, r.row_time AS row_time_right, r.row_position AS row_position_right
"""
_PAIR = "l.row_position || '+' || r.row_position"
_ALONE = "coalesce(l.user, r.who) AS user, l.kind, l.amount, coalesce(l.row_time, r.row_time) AS row_time"
_RATES = "r.rate, r.kind AS kind_right, r.row_time AS row_time_right"
_TIMED = "r.row_time - l.row_time BETWEEN INTERVAL '{}' AND INTERVAL '{}'"
LATEST = """
    r.row_time <= l.row_time {within} AND NOT EXISTS (
        FROM rates x WHERE x.who = l.user AND x.row_time <= l.row_time
        AND (x.row_time, len(x.row_position), x.row_position) > (r.row_time, len(r.row_position), r.row_position))
"""


def sql(query):
    def expected(inputs):
        with duckdb.connect() as con:
            con.register("clicks", pa.Table.from_batches(inputs["left"]) if inputs["left"] else _NONE["left"])
            con.register("rates", pa.Table.from_batches(inputs["right"]) if inputs["right"] else _NONE["right"])
            return con.sql(query).to_arrow_table().to_pylist()

    return expected


_NONE = {
    "left": pa.schema([*LEFT, ("row_time", TIME), ("row_position", pa.string())]).empty_table(),
    "right": pa.schema([*RIGHT, ("row_time", TIME), ("row_position", pa.string())]).empty_table(),
}


def outer(how, condition):
    position = f"coalesce({_PAIR}, l.row_position, r.row_position)"
    return f"SELECT {_ALONE}, {position} AS row_position, {_RATES} FROM clicks l {how} JOIN rates r ON l.user = r.who AND {condition}"


def inner(condition, position=_PAIR):
    return f"SELECT {_BOTH.format(position=position)} FROM clicks l JOIN rates r ON l.user = r.who AND {condition}"


def anti(condition):
    return f"FROM clicks l WHERE NOT EXISTS (FROM rates r WHERE l.user = r.who AND {condition})"


def untimed(query):
    """Whole tables have no times to tell: the right one's is an ordinary column, and is not asked for."""
    return query.replace(", r.row_time AS row_time_right", "")


def case(name, query, streams=True, forgets=True, **how):
    make = lambda: Join(on={"user": "who"}, tick="30s", shards=3, **how)  # noqa: E731
    return Case(f"join {name}", make, tables, sql(query), streams=streams, forgets=forgets)


NEAR, AHEAD = _TIMED.format("-30 seconds", "60 seconds"), _TIMED.format("10 seconds", "40 seconds")
LAST, RECENT = LATEST.format(within=""), LATEST.format(within="AND l.row_time - r.row_time <= INTERVAL 45 SECONDS")
NAMED = dict(right_columns=RIGHT)

CASES = [
    case("between", inner(NEAR), between=("-30s", "1m")),
    case("between, left", outer("LEFT", NEAR), how="left", between=("-30s", "1m"), **NAMED),
    case("between, full", outer("FULL", NEAR), how="full", between=("-30s", "1m"), left_columns=LEFT, **NAMED),
    case("between, anti", anti(NEAR), how="anti", between=("-30s", "1m")),
    case("ahead, full", outer("FULL", AHEAD), how="full", between=("10s", "40s"), left_columns=LEFT, **NAMED),
    # As of without a limit, the last right row of each key counts for ever.
    case("as of", inner(LAST, "l.row_position"), as_of=True, forgets=False),
    case("as of, left", outer("LEFT", RECENT).replace(_PAIR, "l.row_position"), how="left", as_of=True, within="45s", **NAMED),
    case("as of, anti", anti(RECENT), how="anti", as_of=True, within=45),
    # Whole tables: a match may come at any time, so both must end.
    case("of tables, full", untimed(outer("FULL", "true")), streams=False, how="full", left_columns=LEFT, **NAMED),
    case("of tables, anti", anti("true"), streams=False, how="anti"),
]
