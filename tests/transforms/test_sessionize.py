"""Sessionize beyond its laws (tests/laws): what it refuses, and what it keeps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from support import folding, matrix
from support.events import MINUTE, SECOND, TIME, clicks
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._fold import mark, tables_of
from tiebeam.transforms.aggregate import Sum
from tiebeam.transforms.sessionize import Sessionize


def rows_of(keys, micros, **more) -> RowBatch:
    return RowBatch.from_pydict({"user": keys, ROW_TIME: pa.array(micros, pa.int64()).cast(TIME), **more})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(by="user", gap="soon"), "gap.*'soon' is not a length of time"),
        (dict(by="user", longest=-1), "longest"),
        (dict(by="user", emit="all"), "one of sessions, rows"),
        (dict(by="user", emit="rows", total=Sum("x")), "before their session is over"),
        (dict(by="user", session_id=Sum("x")), "a column of the result already"),
        (dict(by="session_rows"), "a column of the result"),
        (dict(by="user", gap="x", tick="y"), "(?s)gap.*tick"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, said):
    with pytest.raises(ConfigError, match=said):
        Sessionize(**options)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (Sessionize("nobody"), "no column 'nobody'"),
        (Sessionize("user", total=Sum("missing")), "no column 'missing'"),
        (Sessionize("user", total=Sum("kind")), "needs numbers"),
        (Sessionize("kind", emit="rows"), "a column 'session_row' already"),
    ],
)
def test_rows_that_do_not_fit_stop_the_job(transform, said):
    rows = rows_of(["a"], [0], kind=["view"], session_row=[1])
    with pytest.raises(ConfigError, match=said):
        matrix.in_batch(transform, [rows])


def test_a_row_exactly_a_gap_later_begins_a_session():
    rows = rows_of(["a"] * 4, [0, MINUTE - 1, 2 * MINUTE - 1, 3 * MINUTE])
    told = matrix.in_batch(Sessionize("user", gap="1m"), [rows]).rows
    assert sorted(row["session_rows"] for row in told) == [1, 1, 2]


def test_types_of_the_rows_stay():
    rows = clicks(np.random.default_rng(1), 50)
    folded = Sessionize(["user", "device"], emit="rows", shards=1).fold.fold({}, {"rows": rows}, 1 << 62)
    (out,) = folded.rows
    assert out.schema.names[: rows.num_columns] == rows.schema.names
    assert [field.type for field in out.schema][: rows.num_columns] == [field.type for field in rows.schema]
    told = matrix.in_batch(Sessionize("device"), [rows]).rows
    assert {row["device"] for row in told} == {"phone", "desk", None}


@pytest.mark.parametrize("keys", [1, 200_000])
def test_one_key_and_many(keys):
    n = 200_000
    rows = rows_of(pa.array(np.arange(n) % keys), np.arange(n) * SECOND)
    told = folding.at_once(Sessionize("user", gap="2s", shards=1).fold, [rows])
    assert (len(told), sum(row["session_rows"] for row in told)) == (keys, n)


def test_extreme_values_and_times():
    low, high = -(1 << 63), (1 << 63) - 1
    rows = rows_of(pa.array([low, high, low, high]), [-9_000_000_000_000_000, 9_000_000_000_000_000] * 2, n=pa.array([low, high, 0, 0]))
    told = folding.at_once(Sessionize("user", gap="1d", longest="30d", total=Sum("n")).fold, [rows])
    assert sorted((row["user"], row["session_rows"], row["total"]) for row in told) == [(low, 2, low), (high, 2, high)]


def test_only_open_sessions_are_remembered():
    fold = Sessionize("user", gap="1m", total=Sum("n")).fold
    state = {}
    for tick in range(50):
        rows = rows_of([f"u{tick}", "always"], [tick * MINUTE + 1] * 2, n=[tick, 1])
        folded = fold.fold(state, tables_of([mark(rows, name="rows")]), (tick + 1) * MINUTE)
        list(folded.rows)
        state = folding.through_coder(folded.state)
    assert state["open"].num_rows == 2
    assert state["part "].num_rows == 2


def test_the_name_of_a_session_never_changes():
    (told,) = matrix.in_batch(Sessionize("user"), [rows_of(["ann"], [1_700_000_000_000_000])]).rows
    assert told["session_id"] == "469a0d5fceda269ab3610c88ab7b0604"
