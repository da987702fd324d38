"""Trail beyond its laws (tests/laws): what it refuses, odd numbers, and what it keeps."""

from __future__ import annotations

import math
import statistics

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from support import folding, matrix
from support.events import MINUTE, SECOND, TIME, clicks
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._fold import mark, tables_of
from tiebeam.transforms._sketches import ApproxDistinct
from tiebeam.transforms.trail import Count, Distinct, Last, Max, Min, Past, RatioToMean, SinceLast, StdDev, Sum, Trail


def rows_of(keys, micros, **more) -> RowBatch:
    return RowBatch.from_pydict({"user": keys, ROW_TIME: pa.array(micros, pa.int64()).cast(TIME), **more})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to compute"),
        (dict(n=Past("soon", Count())), "n, over.*not a length"),
        (dict(n=Count()), "no figure of the past"),
        (dict(n=Past("1h", "count")), "'count' is no figure"),
        (dict(n=Past("1h", ApproxDistinct("x"))), "cannot look back"),
        (dict(n=Past("1h", Sum(3))), "name of a column"),
        (dict(n=Past("1h", Count(), rows=0)), "number of rows from 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, said):
    with pytest.raises(ConfigError, match=said):
        Trail("user", **options)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (dict(n=Past("1h", Sum("missing"))), "no column 'missing'"),
        (dict(n=Past("1h", Sum("kind"))), "needs numbers"),
        (dict(kind=Past("1h", Count())), "a column 'kind' already"),
    ],
)
def test_rows_that_do_not_fit_stop_the_job(figures, said):
    with pytest.raises(ConfigError, match=said):
        matrix.in_batch(Trail("user", **figures), [rows_of(["a"], [0], kind=["view"])])


def figures_of(values, over=3, **figures):
    """One row a second of one key; the figures of each in turn."""
    rows = rows_of(["a"] * len(values), np.arange(len(values)) * SECOND, x=values)
    told = folding.at_once(Trail("user", **figures).fold, [rows])
    return [[row[name] for row in sorted(told, key=lambda row: row[ROW_TIME])] for name in figures]


def test_infinities_and_nan_leave_the_past_again():
    values = pa.array([1.0, math.inf, 2.0, -math.inf, math.nan, 3.0, 4.0, 5.0, 6.0])
    total, most, least = figures_of(values, total=Past("3s", Sum("x")), most=Past("3s", Max("x")), least=Past("3s", Min("x")))
    assert [repr(value) for value in total] == ["None", "1.0", "inf", "inf", "-inf", "nan", "nan", "7.0", "9.0"]
    assert [repr(value) for value in most] == ["None", "1.0", "inf", "inf", "2.0", "nan", "nan", "4.0", "5.0"]
    assert least[4] == -math.inf


def test_the_spread_of_the_past():
    (spread,) = figures_of(pa.array([1e9, 3, 4, 8, 100]), spread=Past("3s", StdDev("x")))
    assert spread[:2] == [None, None]
    assert spread[4] == pytest.approx(statistics.stdev([4, 8]), rel=1e-15)


def test_a_sum_does_not_remember_what_was_large():
    (total,) = figures_of(pa.array([1e300, 0.1, 0.2, 0.3, 0.4]), total=Past("3s", Sum("x")))
    assert total[4] == math.fsum([0.2, 0.3])


def test_extreme_integers():
    low, high = -(1 << 63), (1 << 63) - 1
    total, most, kinds = figures_of(
        pa.array([high, low, high, low]), total=Past("3s", Sum("x")), most=Past("3s", Max("x")), kinds=Past("9s", Distinct("x"))
    )
    assert (total, most, kinds) == ([None, high, -1, -1], [None, high, high, high], [0, 1, 2, 2])


def test_a_mean_of_zero_has_no_ratio():
    (ratio,) = figures_of(pa.array([-1, 1, 5, None]), ratio=Past("1h", RatioToMean("x")))
    assert ratio == [None, -1.0, None, None]


def test_the_past_ends_exactly_where_it_should():
    rows = rows_of(["a"] * 3, [0, MINUTE - 1, MINUTE])
    told = matrix.in_batch(Trail("user", n=Past("1m", Count()), since=Past("1m", SinceLast())), [rows]).rows
    assert sorted((row[ROW_TIME].timestamp(), row["n"], row["since"]) for row in told) == [
        (0, 0, None), (59.999999, 1, 59.999999), (60, 1, 0.000001),
    ]  # fmt: skip


PAST = """
    SELECT r."user", r.row_position, count(p.row_time) AS times, count(DISTINCT p.kind) AS kinds, sum(p.amount)::BIGINT AS total,
           max(p.kind) AS most, arg_max(p.amount, (p.row_time, length(p.row_position), p.row_position)) AS last,
           epoch_us(r.row_time - max(p.row_time)) / 1e6 AS since
    FROM rows r LEFT JOIN (SELECT * RENAME ("user" AS whose) FROM rows) p
      ON p.whose IS NOT DISTINCT FROM r."user" AND p.row_time > r.row_time - INTERVAL 2 MINUTE
     AND (p.row_time, length(p.row_position), p.row_position) < (r.row_time, length(r.row_position), r.row_position)
    GROUP BY r."user", r.row_position, r.row_time
"""


def test_duckdb_finds_the_same_past_row_by_row():
    rows = clicks(np.random.default_rng(3), 4_000)
    figures = dict(times=Count(), kinds=Distinct("kind"), total=Sum("amount"), most=Max("kind"), last=Last("amount"), since=SinceLast())
    (out,) = Trail("user", **{name: Past("2m", figure) for name, figure in figures.items()}).fold.fold({}, {"rows": rows}, 1 << 62).rows
    with duckdb.connect() as engine:
        engine.register("rows", pa.Table.from_batches([rows]))
        expected = engine.sql(PAST).to_arrow_table()
    assert matrix.canonical(out.select(expected.column_names).to_pylist()) == matrix.canonical(expected.to_pylist())


def test_rows_stay_as_they_are():
    rows = clicks(np.random.default_rng(1), 100)
    (out,) = Trail(["user", "device"], n=Past("1h", Distinct("device"))).fold.fold({}, {"rows": rows}, 1 << 62).rows
    assert out.select(rows.schema.names).schema == rows.schema


@pytest.mark.parametrize("keys", [1, 200_000])
def test_one_key_and_many(keys):
    n = 200_000
    rows = rows_of(pa.array(np.arange(n) % keys), np.arange(n) * SECOND, x=pa.array(np.arange(n) % 7))
    trail = Trail("user", n=Past("100s", Count()), most=Past("100s", Max("x")), kinds=Past("100s", Distinct("x")))
    (out,) = trail.fold.fold({}, {"rows": rows}, 1 << 62).rows
    expected = (99, 6, 7) if keys == 1 else (0, None, 0)
    assert tuple(out.column(c)[-1].as_py() for c in ("n", "most", "kinds")) == expected


def test_only_the_longest_past_is_remembered():
    fold = Trail("user", n=Past("1m", Count()), m=Past("2m", Sum("x"))).fold
    state = {}
    for tick in range(50):
        rows = rows_of([f"u{tick}", "always"], [tick * MINUTE + 1] * 2, x=[1, 2], more=["payload"] * 2)
        state = folding.through_coder(fold.fold(state, tables_of([mark(rows, name="rows")]), (tick + 1) * MINUTE).state)
    assert state["past"].num_rows == 4
    assert "more" not in state["past"].schema.names
