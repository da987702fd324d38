"""Detect beyond its laws (tests/laws): what it refuses, where sequences end, and what it keeps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from support import folding, matrix
from support.events import MINUTE, SECOND, TIME, clicks
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._fold import mark, tables_of
from tiebeam.transforms.detect import Detect, Step

A, B, C = (Step(letter, f"did = '{letter}'") for letter in "abc")


def rows_of(keys, did, micros=None, **more) -> RowBatch:
    micros = np.arange(len(did)) * SECOND if micros is None else micros
    return RowBatch.from_pydict({"user": keys, "did": list(did), ROW_TIME: pa.array(micros, pa.int64()).cast(TIME), **more})


def seconds_of(did, steps, **options):
    """The seconds of each match, of one key with a row a second."""
    options = dict(within="1h") | options
    found = folding.at_once(Detect("user", steps, **options).fold, [rows_of(["ann"] * len(did), did)])
    return sorted([row[f"{step.name}_time"].timestamp() if row[f"{step.name}_time"] else None for step in steps] for row in found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(sequence=[A]), "1 steps"),
        (dict(sequence=[A, "b"]), "'b' is no step"),
        (dict(sequence=[A, Step("a", "true")]), "'a_time' would be in the result twice"),
        (dict(sequence=[A, Step("without", "true")]), "cannot be named 'without'"),
        (dict(sequence=[A, Step("b", "did =")]), "syntax error"),
        (dict(sequence=[A, Step("b", "max(did) = 'b'")]), "sees more than one row"),
        (dict(within="soon"), "within.*not a length"),
        (dict(emit="all"), "one of matches, furthest"),
        (dict(keep="row_position"), "cannot be kept"),
        (dict(by="a_time"), "'a_time' would be in the result twice"),
        (dict(by="row_time"), "'row_time' would be in the result twice"),
        (dict(within="x", emit="y", without="1 +"), "(?s)within.*emit.*without"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, said):
    with pytest.raises(ConfigError, match=said):
        Detect(**dict(by="user", sequence=[A, B], within="1h") | options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(sequence=[A, Step("b", "missing > 1")]), "no column missing"),
        (dict(sequence=[A, Step("b", "did || 'x'")]), "not a truth value"),
        (dict(keep=["missing"], without="gone"), "(?s)no column 'missing'.*no column gone"),
    ],
)
def test_rows_that_do_not_fit_stop_the_job(options, said):
    with pytest.raises(ConfigError, match=said):
        matrix.in_batch(Detect(**dict(by="user", sequence=[A, B], within="1h") | options), [rows_of(["ann"], "a")])


def test_every_start_takes_the_next_row_that_fits():
    assert seconds_of("aabb", [A, B]) == [[0, 2], [1, 2]]
    assert seconds_of("axxbcb", [A, B, C]) == [[0, 3, 4]]
    assert seconds_of("ba", [A, B]) == []


def test_a_row_takes_one_step_of_a_sequence_only():
    same = [Step("one", "did = 'a'"), Step("two", "did = 'a'"), Step("three", "did = 'a'")]
    assert seconds_of("aaaa", same) == [[0, 1, 2], [1, 2, 3]]


def test_what_rules_out_takes_no_step():
    assert seconds_of("abacb", [A, B], without="did = 'c'") == [[0, 1]]
    assert seconds_of("aab", [A, B], without="did = 'b'") == []
    assert seconds_of("acb", [A, B], without="did = 'c'", emit="furthest") == [[0, None]]


def test_the_time_ends_exactly_where_it_should():
    assert seconds_of("axb", [A, B], within="2s") == []
    assert seconds_of("axb", [A, B], within=2.000001) == [[0, 2]]


def test_a_condition_that_cannot_be_computed_costs_its_row():
    steps = [A, Step("half", "10 / n = 5")]
    rows = rows_of(["ann"] * 4, "axxx", n=[1, 0, 2, 2], payload=["p"] * 4)
    found, letters = matrix.in_batch(Detect("user", steps, within="1h"), [rows])
    assert [row["half_time"].timestamp() for row in found] == [2]
    assert [(letter["reason"], letter["row_time"].timestamp()) for letter in letters] == [("expression_failed", 1)]
    assert pa.ipc.open_stream(letters[0]["original"]).read_next_batch().to_pylist() == rows.slice(1, 1).to_pylist()


def test_types_of_keys_and_columns_stay():
    rows = clicks(np.random.default_rng(1), 200)
    wide = RowBatch.from_pydict({**dict(zip(rows.schema.names, rows.columns, strict=True)), "list": pa.array([[1]] * 200)})
    steps = [Step("viewed", "kind = 'view'"), Step("bought", "kind = 'buy'")]
    (out,) = Detect("device", steps, within="1h", keep=["device", "list", "price"]).fold.fold({}, {"rows": wide}, 1 << 62).rows
    assert out.schema.field("device").type == wide.schema.field("device").type
    for name in ("device", "list", "price"):
        assert out.schema.field(f"bought_{name}").type == wide.schema.field(name).type


@pytest.mark.parametrize("keys", [1, 100_000])
def test_one_key_and_many(keys):
    n = 200_000
    did = pa.array(np.array(["a", "b"])[np.arange(n) // keys % 2])
    rows = RowBatch.from_pydict({"user": pa.array(np.arange(n) % keys), "did": did, ROW_TIME: pa.array(np.arange(n) * SECOND).cast(TIME)})
    (out,) = Detect("user", [A, B], within="2d").fold.fold({}, {"rows": rows}, 1 << 62).rows
    assert out.num_rows == n // 2
    assert set((out.column("b_time").cast(pa.int64()).to_numpy() - out.column("a_time").cast(pa.int64()).to_numpy()).tolist()) == {
        keys * SECOND
    }


def test_extreme_times():
    rows = rows_of(["ann"] * 2, "ab", [-9_000_000_000_000_000, 9_000_000_000_000_000])
    assert folding.at_once(Detect("user", [A, B], within="150000d").fold, [rows]) == []
    assert len(folding.at_once(Detect("user", [A, B], within="300000d").fold, [rows])) == 1


@pytest.mark.parametrize("emit", ["matches", "furthest"])
def test_only_open_sequences_are_remembered(emit):
    fold = Detect("user", [A, B], within="2m", emit=emit, without="did = 'c'").fold
    state = {}
    for tick in range(50):
        keys = [f"u{tick}", f"u{tick}", f"v{tick}", f"w{tick}"]
        rows = rows_of(keys, "abax", [tick * MINUTE + i for i in range(4)], payload=["p"] * 4)
        folded = fold.fold(state, tables_of([mark(rows, name="rows")]), (tick + 1) * MINUTE)
        state = folding.through_coder(folded.state)
    assert sorted(set(state["open"].column("user").to_pylist())) == (["v48", "v49"] if emit == "matches" else ["u49", "v48", "v49"])
    assert "payload" not in state["open"].schema.names
