"""Derive: expressions that look at one row; what cannot be computed costs that row only."""

import pickle
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.applied import applied, cuts_of
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_CHANGE, ROW_POSITION, RowBatch
from tiebeam.transforms._expressions import Expressions
from tiebeam.transforms.derive import Derive

REFUSED = {
    "sum(a)": "more than one row",
    "max(a) OVER ()": "more than one row",
    "row_number() OVER (ORDER BY a)": "more than one row",
    "(SELECT 1)": "more than one row",
    "a IN (SELECT 1)": "more than one row",
    "EXISTS (FROM range(3))": "more than one row",
    "count(*)": "more than one row",
    "unnest([a])": "more than one row",
    "weighted_avg(a, a)": "not made of its arguments alone",
    "now()": "not made of its arguments alone",
    "random()": "not made of its arguments alone",
    "uuid()": "not made of its arguments alone",
    "ago(INTERVAL 1 DAY)": "not made of its arguments alone",
    "age(a)": "reads the clock",
    "current_localtimestamp()": "reads the clock",
    "getvariable('x')": "not made of its arguments alone",
    "*": "have not named",
    "COLUMNS('a')": "have not named",
    "?": "have no value",
    "a, b": "more than one expression",
    "a AS b": "more than one expression",
    "a FROM t": "more than one expression",
    "a WHERE b": "more than one expression",
    "a UNION SELECT 1": "more than one expression",
    "a; DROP TABLE t": "",
    "a) FROM t --": "syntax error",
    "a +": "syntax error",
    "": "",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_would_see_more_than_its_row_is_refused_at_once(text):
    with pytest.raises(ConfigError) as e:
        Derive(x=text)
    assert REFUSED[text] in str(e.value)
    assert f"Derive: x = {text!r}" in str(e.value)


BATCH = RowBatch.from_pydict(
    {
        "a": [7, None, -3],
        "s": ["x", "Y", None],
        "d": pa.array([Decimal("1.10")] * 3, pa.decimal128(10, 2)),
        "t": pa.array([datetime(1969, 12, 31, 23, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
        "l": [[1, 2], [], None],
        "o": [{"p": 1}, {"p": None}, None],
        "k": pa.array(["u", "v", "u"]).dictionary_encode(),
        "Total sum": [1, 2, 3],
    }
)

COMPUTED = {
    "a * 2": [14, None, -6],
    "a / 2": [3.5, None, -1.5],
    "a // 2": [3, None, -1],
    "d * 0.5": [Decimal("0.550")] * 3,
    "upper(s) || '!'": ["X!", "Y!", None],
    "CASE WHEN a > 0 THEN 'up' ELSE 'down' END": ["up", "down", "down"],
    "coalesce(a, 0) = 7 AND s LIKE 'x%'": [True, False, False],
    "date_trunc('day', t)": [datetime(1969, 12, 31, tzinfo=UTC)] * 3,
    "hour(t)": [23, 23, 23],
    "list_transform(l, lambda n: n + 1)": [[2, 3], [], None],
    "o.p": [1, None, None],
    "k || k": ["uu", "vv", "uu"],
    '"total SUM" + 1 -- names know no case': [2, 3, 4],
    "TRY_CAST(s AS INTEGER)": [None, None, None],
    "'constant'": ["constant"] * 3,
    "NULL": [None] * 3,
}


@pytest.mark.parametrize("text", COMPUTED)
def test_what_is_computed(text):
    rows, letters = applied([BATCH], Derive({"made here": text}))
    assert [r["made here"] for r in rows] == COMPUTED[text]
    assert letters == []


def test_columns_are_replaced_in_place_and_added_at_the_end_and_see_the_incoming_columns():
    derive = Derive({"s": "a"}, b="s", a="a + 1")
    rows, _ = applied([RowBatch.from_pydict({"a": [1], "s": ["x"]})], derive)
    assert [list(r.items()) for r in rows] == [[("a", 2), ("s", 1), ("b", "x")]]
    assert derive.output_schema(pa.schema([("a", pa.int64()), ("s", pa.string())])) == pa.schema(
        [("a", pa.int64()), ("s", pa.int64()), ("b", pa.string())]
    )


@pytest.mark.parametrize(
    "text, failing",
    [
        ("10 // a", 0),
        ("10 / a", 0),
        ("10 % a", 0),
        ("CAST('1' || s AS INTEGER)", 1),
        ("a * 9223372036854775807", 2),
        ("ln(a)", 0),
        ("CAST(a AS UTINYINT)", 3),
    ],
)
def test_a_row_that_cannot_be_computed_is_a_dead_letter_and_the_others_go_on(text, failing):
    batch = RowBatch.from_pydict({"a": [0, 1, 2, 300], "s": ["1", "x", None, "2"], ROW_POSITION: list("abcd")})
    rows, letters = applied([batch], Derive(x=text, y="a + 1"))
    bad = {w[ROW_POSITION] for w in letters}
    assert "abcd"[failing] in bad
    assert {r[ROW_POSITION] for r in rows} | bad == set("abcd")
    assert not {r[ROW_POSITION] for r in rows} & bad
    assert all(r["y"] == r["a"] + 1 for r in rows)
    assert {w["reason"] for w in letters} == {"expression_failed"}
    assert all(text in w["detail"] for w in letters)
    original = pa.ipc.open_stream(letters[0]["original"]).read_next_batch()
    assert original.schema == batch.schema


def test_a_value_that_is_null_is_no_failure():
    batch = RowBatch.from_pydict({"a": [None, 0, 5]})
    rows, letters = applied([batch], Derive(x="10 // a"))
    assert [r["x"] for r in rows] == [None, 2]
    assert [w["detail"] for w in letters] == ["x: 10 // a cannot be computed for a = '0'"]


@pytest.mark.parametrize(
    "texts, told",
    [
        ({"x": "nosuch + 1"}, "there is no column nosuch"),
        ({"x": "current_date"}, "there is no column current_date"),
        ({"x": "nofunc(a)"}, "nofunc does not exist"),
        ({"x": "s + 1"}, r"No function matches .*\+\(VARCHAR"),
        ({"x": "a + nope", "y": "l + o"}, "(?s)x = .*y = "),
        ({"row_change": "1"}, "row_change is text"),
    ],
)
def test_what_does_not_fit_the_columns_is_a_configuration_error(texts, told):
    with pytest.raises(ConfigError, match=told):
        Derive(texts).output_schema(BATCH.schema)
    with pytest.raises(Exception, match=told):
        applied([BATCH], Derive(texts))


def test_names_that_differ_in_case_only_are_refused_where_they_are_used():
    batch = RowBatch.from_pydict({"a": [1], "A": [2], "b": [3]})
    assert applied([batch], Derive(x="b"))[0][0]["x"] == 3
    with pytest.raises(ConfigError, match="differ in it only: a, A"):
        Derive(x="a").output_schema(batch.schema)


def test_columns_that_sql_cannot_read_pass_when_they_are_not_used():
    batch = RowBatch.from_arrays([pa.array([1]), pa.nulls(1, pa.decimal256(60, 1))], names=["a", "huge"])
    assert applied([batch], Derive(x="a"))[0] == [{"a": 1, "huge": None, "x": 1}]
    with pytest.raises(ConfigError, match="Derive: x = 'huge'"):
        Derive(x="huge").output_schema(batch.schema)


@pytest.mark.parametrize("name", ["row_time", "row_position"])
def test_what_the_source_sets_is_not_derived(name):
    with pytest.raises(ConfigError, match=f"{name} is set by the source"):
        Derive({name: "1"})
    assert applied([RowBatch.from_pydict({"a": [1]})], Derive({ROW_CHANGE: "'insert'"}))[0] == [{"a": 1, ROW_CHANGE: "insert"}]


def test_nothing_to_derive_is_refused():
    with pytest.raises(ConfigError, match="nothing to derive"):
        Derive()


def test_expressions_reach_neither_files_nor_the_network():
    engine = Expressions("x", {"a": "1"})._engine
    with pytest.raises(Exception, match="disabled by configuration"):
        engine.sql("FROM read_text('/etc/hostname')").fetchall()


def test_expressions_travel_without_their_engine():
    expressions = pickle.loads(pickle.dumps(Expressions("x", {"x": "a + 1"})))
    assert expressions.compute(BATCH)[0]["x"].to_pylist() == [8, None, -2]


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(-2, 2)), st.sampled_from([None, "1", "x"])), min_size=1, max_size=10), st.data())
def test_results_depend_neither_on_cuts_nor_on_order(rows, data):
    derive = {"x": "10 // a", "y": "CAST(s AS INTEGER) + coalesce(a, 0)"}
    schema = pa.schema([("a", pa.int64()), ("s", pa.string())])

    def outcome(batches):
        out, letters = applied(batches, Derive(derive))
        return sorted(map(repr, out)), sorted(w["detail"] for w in letters)

    whole = RowBatch.from_pylist([{"a": a, "s": s} for a, s in rows], schema=schema)
    shuffled = whole.take(pa.array(data.draw(st.permutations(range(len(rows))))))
    assert outcome(cuts_of(shuffled, data)) == outcome([whole])
