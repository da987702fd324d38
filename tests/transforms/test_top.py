"""Top beyond its laws (tests/laws): what it refuses, and what it keeps."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from support import folding, matrix
from support.events import MINUTE, TIME, clicks
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._fold import mark, tables_of
from tiebeam.transforms.deduplicate import Deduplicate
from tiebeam.transforms.top import Top


def rows_of(values, micros=None, **more) -> RowBatch:
    times = pa.array(micros if micros is not None else [0] * len(values), pa.int64()).cast(TIME)
    return RowBatch.from_pydict({"value": values, ROW_TIME: times, **more})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(n=0, order_by="a"), "n.*0 is not a whole number"),
        (dict(n=True, order_by="a"), "True is not a whole number"),
        (dict(n=1, order_by=()), "names no column"),
        (dict(n=1, order_by="a", window="soon"), "window.*not a length"),
        (dict(n=1, order_by="a", window="1m", tick="7s"), "does not divide"),
        (dict(n=0, order_by=(), tick="x"), "(?s)'x'.*0 is not.*names no column"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, said):
    with pytest.raises(ConfigError, match=said):
        Top(**options)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (Top(1, "missing asc"), "no column 'missing'"),
        (Top(1, "value", "nobody"), "no column 'nobody'"),
        (Top(1, "many"), "flat columns"),
        (Top(1, "value"), "a column 'rank' already"),
        (Top(1, "value", window="1m"), "a column 'window_start' already"),
    ],
)
def test_rows_that_do_not_fit_stop_the_job(transform, said):
    with pytest.raises(ConfigError, match=said):
        matrix.in_batch(transform, [rows_of([1], many=[[1]], rank=[1], window_start=[1])])


def test_a_stream_needs_a_window(prism):
    with pytest.raises(ConfigError, match='window="1h"'):
        matrix.in_ticks(Top(1, "value"), [rows_of([1])], prism.flags())


@pytest.mark.parametrize(
    ("kind", "values", "largest_first"),
    [
        (pa.int64(), [-(1 << 63), (1 << 63) - 1, None], [1, 0, 2]),
        (pa.uint64(), [0, (1 << 64) - 1, None], [1, 0, 2]),
        (pa.float64(), [float("nan"), 1.0, float("inf"), None], [2, 1, 0, 3]),
        (pa.decimal256(60, 2), [Decimal("-1e50"), Decimal("1e50"), None], [1, 0, 2]),
        (pa.large_string(), ["a", "b", None], [1, 0, 2]),
        (pa.binary(), [b"\x00", b"\xff", None], [1, 0, 2]),
        (pa.bool_(), [False, True, None], [1, 0, 2]),
        (pa.null(), [None, None], [0, 1]),
    ],
)
def test_every_flat_type_ranks(kind, values, largest_first):
    rows = rows_of(pa.array(values, kind), np.arange(len(values)), at=list(range(len(values))))
    told = folding.at_once(Top(9, "value").fold, [rows])
    assert [row["at"] for row in sorted(told, key=lambda row: row["rank"])] == largest_first


def test_a_window_begins_with_its_border():
    rows = rows_of([5, 9, 8, 7], [-1, 0, MINUTE - 1, MINUTE])
    assert sorted(row["value"] for row in matrix.in_batch(Top(1, "value", window="1m"), [rows]).rows) == [5, 7, 9]


def test_rows_stay_as_they_are():
    rows = clicks(np.random.default_rng(1), 100)
    (out,) = Top(2, "price", "user", window="1m").fold.fold({}, {"rows": rows}, 1 << 62).rows
    assert out.schema.names == [*rows.schema.names, "window_start", "rank"]
    assert out.select(rows.schema.names).schema == rows.schema


@pytest.mark.parametrize("keys", [1, 200_000])
def test_one_key_and_many(keys):
    n = 200_000
    rows = rows_of(np.arange(n), key=np.arange(n) % keys)
    told = list(Top(1, "value", "key").fold.fold({}, {"rows": rows}, 1 << 62).rows)
    assert told[0].num_rows == keys


def test_only_what_leads_is_remembered():
    fold = Top(2, "value", window="1h", tick="1m").fold
    state = {}
    for tick in range(50):
        rows = rows_of(list(range(100)), [tick * MINUTE + 1] * 100)
        assert fold.condense("rows", rows).num_rows == 2
        state = folding.through_coder(fold.fold(state, tables_of([mark(rows, name="rows")]), (tick + 1) * MINUTE).state)
    assert state["rows"].num_rows == 2


def test_what_is_told_at_the_end_of_its_window_is_not_late_below(prism):
    rows = clicks(np.random.default_rng(2), 200)

    def chain(given):
        return given | "Top" >> Top(2, "price", "user", window="2m", tick="10s") | "Once" >> Deduplicate(within="1m", tick="10s")

    told = matrix.in_ticks(chain, [rows], prism.flags(), disorder=MINUTE // 3)
    assert told == (folding.at_once(Top(2, "price", "user", window="2m").fold, [rows]), [])
