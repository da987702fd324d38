"""Deduplicate beyond its laws (tests/laws): what it refuses, and what it keeps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from support import folding, matrix
from support.events import MINUTE, SECOND, TIME, clicks
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._fold import mark, tables_of
from tiebeam.transforms.deduplicate import Deduplicate


def rows_of(keys, micros, **more) -> RowBatch:
    return RowBatch.from_pydict({"user": keys, ROW_TIME: pa.array(micros, pa.int64()).cast(TIME), **more})


@pytest.mark.parametrize(
    ("options", "said"),
    [(dict(within="soon"), "within.*not a length"), (dict(keep="any"), "first, last"), (dict(by=()), "names no key")],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, said):
    with pytest.raises(ConfigError, match=said):
        Deduplicate(**options)


def test_a_stream_needs_a_horizon(prism):
    with pytest.raises(ConfigError, match='within="1h"'):
        matrix.in_ticks(Deduplicate("user"), [rows_of(["a"], [0])], prism.flags())


def test_the_horizon_is_counted_from_the_first_and_excluded():
    rows = rows_of(["a"] * 4, [0, 40 * SECOND, 80 * SECOND, MINUTE])
    assert [row[ROW_TIME].timestamp() for row in matrix.in_batch(Deduplicate("user", within="1m"), [rows]).rows] == [0, 60]
    last = matrix.in_batch(Deduplicate("user", within="1m", keep="last"), [rows]).rows
    assert [row[ROW_TIME].timestamp() for row in last] == [40, 80]


@pytest.mark.parametrize("keep", ["first", "last"])
def test_rows_stay_as_they_are(keep):
    rows = clicks(np.random.default_rng(1), 200)
    folded = Deduplicate("user", within="1m", keep=keep).fold.fold({}, {"rows": rows}, 1 << 62)
    assert {out.schema for out in folded.rows} == {rows.schema}


@pytest.mark.parametrize("keys", [1, 200_000])
def test_one_key_and_many(keys):
    n = 200_000
    rows = rows_of(pa.array(np.arange(n) % keys), np.arange(n) * SECOND)
    assert len(folding.at_once(Deduplicate("user", within="10s").fold, [rows])) == max(keys, n // 10)


@pytest.mark.parametrize("keep", ["first", "last"])
def test_what_is_over_is_forgotten(keep):
    fold = Deduplicate("user", within="1m", keep=keep).fold
    state = {}
    for tick in range(50):
        rows = rows_of([f"u{tick}", "always"], [tick * MINUTE + 1] * 2)
        folded = fold.fold(state, tables_of([mark(rows, name="rows")]), (tick + 1) * MINUTE)
        state = folding.through_coder(folded.state)
    assert state["open"].num_rows == 2
