"""RateLimit beyond its laws (tests/laws): what becomes of rows beyond the limit, what it refuses, and what it keeps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from support import folding, matrix
from support.events import MINUTE, TIME, clicks
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._fold import mark, tables_of
from tiebeam.transforms.rate_limit import RateLimit


def rows_of(keys, micros, **more) -> RowBatch:
    return RowBatch.from_pydict({"user": keys, ROW_TIME: pa.array(micros, pa.int64()).cast(TIME), **more})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(rows=0), "rows.*0 is not a whole number"),
        (dict(rows=True), "True is not a whole number"),
        (dict(per="soon"), "per.*not a length"),
        (dict(over="drop"), "one of reject, output, mark"),
        (dict(rows=0.5, per="x", over="y"), "(?s)'x'.*0.5.*'y'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, said):
    with pytest.raises(ConfigError, match=said):
        RateLimit("user", **options)


def test_rows_that_are_marked_already_stop_the_job():
    with pytest.raises(ConfigError, match="a column 'rate_limited' already"):
        matrix.in_batch(RateLimit("user"), [rows_of(["a"], [0], rate_limited=[True])])


SIX = rows_of([*"aaaba", None], [-1, 0, 1, 1, MINUTE, 5], n=list(range(6)))


def test_rows_beyond_the_limit_are_dead_letters():
    rows, letters = matrix.in_batch(RateLimit("user", rows=1, per="1m"), [SIX])
    assert sorted(row["n"] for row in rows) == [0, 1, 3, 4, 5]
    assert [(letter["reason"], letter["detail"]) for letter in letters] == [("rate_limited", "beyond 1 rows per 60 s")]
    (original,) = pa.ipc.open_stream(letters[0]["original"]).read_all().to_pylist()
    assert original == SIX.to_pylist()[2]


def test_rows_beyond_the_limit_leave_whole_by_their_output():
    rows, over = matrix.in_batch(RateLimit("user", rows=1, per="1m", over="output"), [SIX])
    assert sorted(row["n"] for row in rows) == [0, 1, 3, 4, 5]
    assert over == [SIX.to_pylist()[2]]


def test_late_rows_and_rows_beyond_the_limit_each_have_their_output(prism):
    limit = RateLimit("user", rows=1, per="1m", over="output", late="output")
    events = (rows_of(["a", "a"], [1, 2]), 300.0, rows_of(["a"], [3]))

    def late_only(given):
        out = given | limit
        return out.rows.over, out.late

    found = matrix.run({"trial": matrix.Trial(late_only, [])}, matrix.scripted(*events), prism.flags())["trial"]
    assert ([row[ROW_TIME].microsecond for row in found.rows], [row[ROW_TIME].microsecond for row in found.letters]) == ([2], [3])


def test_rows_stay_as_they_are():
    rows = clicks(np.random.default_rng(1), 200)
    (out,) = RateLimit("user", rows=2).fold.fold({}, {"rows": rows}, 1 << 62).rows
    assert out.drop_columns(["rate_limited"]).schema == rows.schema
    assert out.num_rows == rows.num_rows


@pytest.mark.parametrize("keys", [1, 200_000])
def test_one_key_and_many(keys):
    n = 200_000
    rows = rows_of(pa.array(np.arange(n) % keys), np.arange(n))
    told = folding.at_once(RateLimit("user", rows=3).fold, [rows])
    assert sum(not row["rate_limited"] for row in told) == min(3 * keys, n)


def test_only_open_windows_are_remembered():
    fold = RateLimit("user", rows=1, per="10m").fold
    state = {}
    for tick in range(55):
        rows = rows_of([f"u{tick}", "always", "always"], [tick * MINUTE + 1] * 3)
        folded = fold.fold(state, tables_of([mark(rows, name="rows")]), (tick + 1) * MINUTE)
        state = folding.through_coder(folded.state)
    assert state["seen"].num_rows == 5 + 1
