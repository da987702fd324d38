"""Conform: casts that lose nothing, rules as masks, policies, keys; the same whatever the cuts and the order."""

import doctest
import math
import operator
from datetime import UTC, date, datetime, time
from decimal import Decimal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from apache_beam.transforms import window
from hypothesis import given, settings
from hypothesis import strategies as st

from support.applied import applied as run
from support.applied import cuts_of
from support.pickling import pickled_edges
from tiebeam.errors import ConfigError, ContractError
from tiebeam.rows import ROW_CHANGE, ROW_POSITION, ROW_TIME, RowBatch
from tiebeam.transforms import _rules
from tiebeam.transforms import conform as conform_module
from tiebeam.transforms._casts import cast_exactly, holds_all
from tiebeam.transforms._properties import Column
from tiebeam.transforms._shape import conform
from tiebeam.transforms._written import strptime_of
from tiebeam.transforms.conform import Conform, Contract

D = Decimal
LOST = object()
TEXT, BERLIN, UTC_US, NAIVE = pa.string(), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC"), pa.timestamp("us")
I64, U64, F64, MONEY = pa.int64(), pa.uint64(), pa.float64(), pa.decimal128(10, 2)

CASTS = [
    (TEXT, I64, {"12": 12, "-0": 0, " 12": LOST, "+1": LOST, "0x1F": LOST, "": LOST, "1.0": LOST, "1_0": LOST, "\u0661": LOST}),
    (TEXT, I64, {str(2**63 - 1): 2**63 - 1, str(-(2**63)): -(2**63), str(2**63): LOST}),
    (TEXT, U64, {str(2**64 - 1): 2**64 - 1, "-1": LOST, str(2**64): LOST}),
    (TEXT, pa.int8(), {"127": 127, "128": LOST}),
    (TEXT, F64, {"1.5": 1.5, "0.1": 0.1, "1e400": LOST, "1e-400": LOST, "0e9": 0.0, "inf": math.inf, "1,5": LOST, "x": LOST}),
    (TEXT, F64, {str(2**53): 2.0**53, str(2**53 + 1): LOST, "3.141592653589793238": math.pi}),
    (TEXT, pa.float32(), {"1.5": 1.5, "1e39": LOST, "16777217": LOST}),
    (TEXT, MONEY, {"12.34": D("12.34"), "12.345": LOST, "1e2": D("100.00"), "99999999.99": D("99999999.99"), "1e8": LOST, "nan": LOST}),
    (TEXT, pa.bool_(), {"true": True, "FALSE": False, "1": True, "0": False, "yes": LOST, "": LOST}),
    (TEXT, pa.date32(), {"1969-12-31": date(1969, 12, 31), "2020-2-1": LOST, "2020-02-30": LOST}),
    (TEXT, pa.date32(), {"9999-12-31": date(9999, 12, 31), "0000-01-01": LOST, "2020-01-01T00:00": LOST}),
    (TEXT, pa.time64("us"), {"12:34": time(12, 34), "12:34:56.000001": time(12, 34, 56, 1), "25:00": LOST, "12:34:56.0000001": LOST}),
    (TEXT, NAIVE, {"1969-12-31T23:59:59": datetime(1969, 12, 31, 23, 59, 59), "2020-01-01T00:00:00Z": LOST, "2020-01-01T24:00:00": LOST}),
    (TEXT, UTC_US, {"2020-01-01T01:00:00+01:00": datetime(2020, 1, 1, tzinfo=UTC), "2020-01-01": datetime(2020, 1, 1, tzinfo=UTC)}),
    (TEXT, UTC_US, {"2020-01-01T00:00:00.0000001Z": LOST, "yesterday": LOST, "2020-01-01T00:00:00Z": datetime(2020, 1, 1, tzinfo=UTC)}),
    (TEXT, pa.binary(), {"é": "é".encode()}),
    (pa.binary(), TEXT, {b"a": "a", b"\xff": LOST}),
    (I64, pa.int8(), {127: 127, -128: -128, 128: LOST, -129: LOST}),
    (I64, U64, {0: 0, -1: LOST, 2**63 - 1: 2**63 - 1}),
    (U64, I64, {2**63 - 1: 2**63 - 1, 2**63: LOST, 2**64 - 1: LOST}),
    (I64, F64, {2**53: 2.0**53, 2**53 + 1: LOST, 2**62: 2.0**62, 2**63 - 1: LOST, -(2**63): -(2.0**63), -(2**53) - 1: LOST}),
    (U64, F64, {2**63: 2.0**63, 2**64 - 1: LOST}),
    (I64, pa.float32(), {2**24: 2.0**24, 2**24 + 1: LOST}),
    (I64, MONEY, {99_999_999: D("99999999.00"), 100_000_000: LOST, -5: D("-5.00")}),
    (I64, pa.bool_(), {0: False, 1: True, 2: LOST}),
    (I64, NAIVE, {0: LOST}),
    (I64, TEXT, {-5: "-5", 2**63 - 1: str(2**63 - 1)}),
    (F64, I64, {1.0: 1, 1.5: LOST, math.inf: LOST, 2.0**63: LOST, -(2.0**63): -(2**63), math.nan: LOST}),
    (F64, pa.int8(), {127.0: 127, 128.0: LOST}),
    (F64, U64, {2.0**63: 2**63, -1.0: LOST, 2.0**64: LOST}),
    (F64, pa.float32(), {0.5: 0.5, 0.1: LOST, 1e39: LOST, math.inf: math.inf}),
    (F64, MONEY, {12.34: D("12.34"), 12.345: LOST, 0.1 + 0.2: LOST, 1e7: D("10000000.00"), 1e8: LOST, math.nan: LOST, math.inf: LOST}),
    (F64, TEXT, {0.1: "0.1", 1e17: "1e+17"}),
    (F64, pa.bool_(), {1.0: LOST}),
    (MONEY, pa.decimal128(5, 1), {D("12.30"): D("12.3"), D("12.34"): LOST, D("9999.90"): D("9999.9"), D("10000.00"): LOST}),
    (pa.decimal256(60, 2), pa.decimal128(38, 2), {D("1.25"): D("1.25"), D(10) ** 36: LOST}),
    (MONEY, I64, {D("12.00"): 12, D("12.01"): LOST}),
    (pa.decimal128(38, 0), I64, {D(2**63 - 1): 2**63 - 1, D(2**63): LOST}),
    (pa.decimal128(20, 2), F64, {D("12.34"): 12.34, D("123456789012345678.12"): LOST}),
    (MONEY, TEXT, {D("1.50"): "1.50"}),
    (pa.bool_(), I64, {True: 1, False: 0}),
    (pa.bool_(), TEXT, {True: "true"}),
    (pa.date32(), NAIVE, {date(1969, 1, 1): datetime(1969, 1, 1)}),
    (pa.date32(), UTC_US, {date(1969, 1, 1): datetime(1969, 1, 1, tzinfo=UTC)}),
    (pa.date32(), pa.timestamp("ns"), {date(9999, 1, 1): LOST}),
    (NAIVE, pa.date32(), {datetime(1969, 1, 1): date(1969, 1, 1), datetime(1969, 1, 1, 0, 0, 0, 1): LOST}),
    (UTC_US, pa.date32(), {datetime(2020, 1, 1, tzinfo=UTC): LOST}),
    (NAIVE, pa.timestamp("s"), {datetime(1969, 1, 1): datetime(1969, 1, 1), datetime(1969, 1, 1, 0, 0, 0, 1): LOST}),
    (NAIVE, pa.timestamp("ns"), {datetime(2020, 1, 1): datetime(2020, 1, 1), datetime(9999, 1, 1): LOST}),
    (NAIVE, UTC_US, {datetime(2020, 1, 1): datetime(2020, 1, 1, tzinfo=UTC)}),
    (UTC_US, NAIVE, {datetime(2020, 1, 1, tzinfo=UTC): LOST}),
    (UTC_US, BERLIN, {datetime(2020, 1, 1, tzinfo=UTC): datetime(2020, 1, 1, tzinfo=UTC)}),
    (pa.time64("us"), pa.time32("s"), {time(1, 2, 3): time(1, 2, 3), time(1, 2, 3, 4): LOST}),
    (pa.duration("us"), I64, {5: LOST}),
    (pa.list_(I64), TEXT, {(1, 2): LOST}),
]


@pytest.mark.parametrize("source, to, cases", CASTS, ids=[f"{s} to {t} {i}" for i, (s, t, _) in enumerate(CASTS)])
def test_a_value_arrives_as_it_was_or_is_told_apart(source, to, cases):
    values = pa.array([*cases, None], source)
    for given_ in (values, pa.concat_arrays([pa.nulls(1, source), values]).slice(1)):
        made, bad = cast_exactly(given_, to)
        made.validate(full=True)
        assert made.type == to
        bad = np.zeros(len(values), bool) if bad is None else bad
        expected = [None if v is LOST else v for v in [*cases.values(), None]]
        assert made.to_pylist() == expected
        assert bad.tolist() == [v is LOST for v in [*cases.values(), None]]


def test_nan_stays_nan():
    made, bad = cast_exactly(pa.array([math.nan]), pa.float32())
    assert bad is None
    assert math.isnan(made[0].as_py())
    made, bad = cast_exactly(pa.array(["nan"]), F64)
    assert bad is None
    assert math.isnan(made[0].as_py())


def test_an_hour_that_was_never_or_twice_is_no_time():
    values = pa.array(["2021-03-28T02:30:00", "2021-10-31T02:30:00", "2021-10-31T02:30:00+02:00", "2021-06-01T12:00:00"])
    made, bad = cast_exactly(values, BERLIN, zone="Europe/Berlin")
    assert bad.tolist() == [True, True, False, False]
    moments = made.cast(UTC_US).to_pylist()
    assert moments[2:] == [datetime(2021, 10, 31, 0, 30, tzinfo=UTC), datetime(2021, 6, 1, 10, tzinfo=UTC)]


@pytest.mark.parametrize(
    "format, to, cases",
    [
        ("dd.MM.yyyy", pa.date32(), {"05.01.1969": date(1969, 1, 5), "5.1.1969": LOST, "31.02.2020": LOST, "05.01.1969 ": LOST}),
        ("yyyyMMdd", pa.date32(), {"20200105": date(2020, 1, 5), "2020105": LOST}),
        ("dd MMM yyyy", pa.date32(), {"05 Jan 2020": date(2020, 1, 5), "05 Foo 2020": LOST}),
        ("yyyy-MM-dd'T'HH:mm:ssXXX", UTC_US, {"2020-01-01T01:00:00+01:00": datetime(2020, 1, 1, tzinfo=UTC)}),
        ("yyyy-MM-dd'T'HH:mm:ssXXX", UTC_US, {"2020-01-01T00:00:00Z": datetime(2020, 1, 1, tzinfo=UTC), "2020-01-01T00:00:00": LOST}),
        ("yyyy-MM-dd HH:mm,SSS", NAIVE, {"2020-01-01 00:00,120": datetime(2020, 1, 1, 0, 0, 0, 120_000), "2020-01-01 00:00,12": LOST}),
        ("HH'h'mm", pa.time32("s"), {"10h30": time(10, 30), "24h00": LOST}),
        ("yyyyMMdd HHmmss.SSS", pa.timestamp("s"), {"20200101 000001.000": datetime(2020, 1, 1, 0, 0, 1), "20200101 000001.500": LOST}),
    ],
)
def test_times_in_a_declared_format(format, to, cases):
    made, bad = cast_exactly(pa.array([*cases, None]), to, strptime_of(format))
    bad = np.zeros(len(made), bool) if bad is None else bad
    assert made.to_pylist() == [None if v is LOST else v for v in [*cases.values(), None]]
    assert bad.tolist() == [v is LOST for v in [*cases.values(), None]]


SCALARS = [pa.int8(), pa.uint8(), pa.int64(), U64, pa.float16(), pa.float32(), F64, MONEY, pa.decimal128(30, 5), pa.bool_(), TEXT]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_what_fits_comes_back_and_a_wider_type_takes_all(data):
    """There and back: a value that was not refused is the same value after the way back."""
    source, to = data.draw(st.sampled_from(SCALARS)), data.draw(st.sampled_from(SCALARS))
    whole = [0, 1, -1, 2, 127, 128, 255, 256, 2**24 + 1, 2**53 + 1, -(2**63), 2**63 - 1, 2**64 - 1]
    pool = [*whole, 0.1, 0.5, 1.25, 1e10, 3.5e38, 12.34, "7", "1.50", "x", True]
    drawn = data.draw(st.lists(st.one_of(st.none(), st.sampled_from(pool)), min_size=1, max_size=6))
    kept = []
    for value in drawn:
        try:
            kept.append(pa.scalar(value, source))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
    values = pa.array([k.as_py() for k in kept], source)
    made, bad = cast_exactly(values, to)
    if holds_all(source, to):
        assert bad is None
    fits = values if bad is None else values.filter(pa.array(~bad))
    there = made if bad is None else made.filter(pa.array(~bad))
    assert there.null_count == fits.null_count
    if to != TEXT and source != TEXT:
        back, lost = cast_exactly(there, source)
        assert lost is None
        assert back.equals(fits)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), st.floats(), st.decimals(-(10**8), 10**8, places=3).map(float)), max_size=8), st.integers(0, 5))
def test_the_quick_way_to_decimals_is_the_way_by_text(numbers, scale):
    to, values = pa.decimal128(16, scale), pa.array(numbers, F64)
    quick, slow = cast_exactly(values, to), cast_exactly(values.cast(TEXT), to)
    assert quick[0].equals(slow[0])
    assert (quick[1] is None) == (slow[1] is None)
    assert slow[1] is None or quick[1].tolist() == slow[1].tolist()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=6), st.sampled_from([">=", ">", "<=", "<"]), st.integers(-5, 5))
def test_a_bound_is_judged_as_it_reads(numbers, sign, limit):
    reads = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}[sign]
    for type in (I64, F64, pa.decimal128(21, 2), NAIVE):
        rule = _rules.Bound(sign, pa.array([limit], I64).cast(type)[0])
        broken = rule.broken(pa.array(numbers, I64).cast(type))
        assert broken.tolist() == [n is not None and not reads(n, limit) for n in numbers]
    assert _rules.Bound(sign, pa.scalar(0.0)).broken(pa.array([math.nan, None])).tolist() == [True, False]


def shop(**more) -> Contract:
    text = """
apiVersion: v3.1.0
kind: DataContract
id: shop
version: 1.0.0
status: active
schema:
- name: sales
  properties:
  - {name: id, logicalType: integer, required: true}
  - {name: kind, logicalType: string, enum: [{value: sale}, {value: refund}]}
  - {name: price, logicalType: number, physicalType: "decimal(9,2)", logicalTypeOptions: {minimum: 0, exclusiveMaximum: 1000}}
  - {name: code, logicalType: string, logicalTypeOptions: {pattern: "^[A-Z]", maxLength: 3}}
"""
    parsed = Contract.parse(text)
    return Contract(**{**vars(parsed), **more})


def test_a_batch_in_the_right_shape_is_not_copied():
    batch = RowBatch.from_arrays(
        [pa.array([1]), pa.array(["sale"]), pa.array([D("1.50")], pa.decimal128(9, 2)), pa.array(["A"])],
        names=["id", "kind", "price", "code"],
    )
    rows = conform(batch, shop()).rows
    for before, after in zip(batch.columns, rows.columns, strict=True):
        assert [b and b.address for b in before.buffers()] == [b and b.address for b in after.buffers()]


def test_rows_that_do_not_fit_are_dead_letters_and_their_neighbours_are_not():
    batch = RowBatch.from_pydict(
        {
            "code": ["A", "ABCD", "b", "C", None, "D"],
            "price": ["1.5", "1", "2", "-0.01", "1000", "x"],
            "id": ["1", "2", "3", None, "5", "6"],
            "kind": ["sale", "sale", "refund", "gift", None, None],
            ROW_POSITION: [f"f:{i}" for i in range(6)],
        }
    )
    rows, letters = run([batch], Conform(shop()))
    assert rows == [{"id": 1, "kind": "sale", "price": D("1.50"), "code": "A", "row_position": "f:0"}]
    assert [(w["row_position"], w["reason"], w["detail"]) for w in letters] == [
        ("f:1", "length", "code: 'ABCD' is not 0 to 3 long"),
        ("f:2", "pattern", "code: 'b' does not match ^[A-Z]"),
        ("f:3", "missing_value", "id: has no value; kind: 'gift' is not one of sale, refund; price: -0.01 is not >= 0.00"),
        ("f:4", "out_of_range", "price: 1000.00 is not < 1000.00"),
        ("f:5", "not_castable", "price: 'x' is no decimal128(9, 2)"),
    ]
    originals = [pa.ipc.open_stream(w["original"]).read_next_batch() for w in letters]
    assert pa.Table.from_batches(originals).equals(pa.Table.from_batches([batch.slice(1)]))


def test_columns_that_are_absent_are_null_and_missing_where_required():
    rows, letters = run([RowBatch.from_pydict({"id": [1]}), RowBatch.from_pydict({"kind": ["sale"]})], Conform(shop()))
    assert rows == [{"id": 1, "kind": None, "price": None, "code": None}]
    assert [(w["reason"], w["detail"]) for w in letters] == [("missing_value", "id: has no value")]


def test_other_spellings_of_a_type_are_the_same_type():
    code = pa.array(["A"], pa.string_view())
    columns = [pa.array([1]).dictionary_encode(), pa.array(["sale"], pa.large_string()), pa.array([None]), code]
    rows, letters = run([RowBatch.from_arrays(columns, names=["id", "kind", "price", "code"])], Conform(shop()))
    assert (rows, letters) == ([{"id": 1, "kind": "sale", "price": None, "code": "A"}], [])


def test_missing_value_words_and_multiples():
    columns = (Column("n", I64, rules=(_rules.MultipleOf(5),)), Column("t", TEXT, True, (_rules.NotMissing(pa.array(["-"])),)))
    judged = conform(RowBatch.from_pydict({"n": [5, 7, None], "t": ["a", "-", None]}), Contract("t", columns))
    assert [judged.detail(i) for i in (1, 2)] == ["n: 7 is not a multiple of 5; t: '-' stands for a missing value", "t: has no value"]
    assert judged.bad.tolist() == [False, True, True]


# --- nested


NESTED = Contract.parse("""
apiVersion: v3.2.0
kind: DataContract
id: nested
version: 1.0.0
schema:
- name: t
  properties:
  - name: who
    logicalType: object
    properties:
    - {name: age, logicalType: integer, required: true, logicalTypeOptions: {maximum: 120}}
    - {name: tags, logicalType: array, items: {logicalType: string, logicalTypeOptions: {minLength: 1}}}
  - {name: counts, logicalType: map, map: {key: {logicalType: integer}, value: {logicalType: string}}}
  - {name: place, logicalType: vector, logicalTypeOptions: {dimensions: 2, elementType: float64}}
""")


def test_nested_values_are_cast_and_judged_part_by_part():
    text_map = pa.map_(TEXT, TEXT)
    batch = RowBatch.from_pydict(
        {
            "who": [
                {"age": "3", "tags": ["a"], "new": None},
                {"age": "x", "tags": None, "new": None},
                None,
                {"age": None, "tags": [""], "new": None},
                {"age": "121", "tags": [], "new": 1},
            ],
            "counts": pa.array([[("1", "a")], [("x", "b")], None, [], [("2", None)]], text_map),
            "place": [[1.5, 2], [1], None, [1, 2, 3], [1, 2]],
        }
    )
    for rows in (batch, pa.concat_batches([batch.slice(2), batch]).slice(3)):
        judged = conform(rows, NESTED)
        assert judged.rows.schema == NESTED.schema
        good = judged.rows.filter(pa.array(~judged.bad)).to_pylist()
        assert good == [
            {"who": {"age": 3, "tags": ["a"]}, "counts": [(1, "a")], "place": [1.5, 2.0]},
            {"who": None, "counts": None, "place": None},
        ]
        assert [judged.detail(i) for i in (1, 3, 4)] == [
            "who.age: 'x' is no int64; counts.key: 'x' is no int64; place: [1.0] is no vector of 2",
            "who.age: has no value; who.tags[]: '' is not at least 1 long; place: [1.0, 2.0, 3.0] is no vector of 2",
            "who.age: 121 is not <= 120; who.new: 1 is not in the contract",
        ]


def test_nested_values_in_the_right_type_pass_untouched():
    deep = pa.array([[{"a": [(1, None)]}], None], pa.list_(pa.struct([("a", pa.map_(I64, pa.decimal256(50, 2)))])))
    batch = RowBatch.from_arrays([deep], names=["deep"])
    judged = conform(batch, Contract.infer(batch, "t"))
    assert judged.rows.column("deep").equals(deep)
    assert judged.failures == []


# --- policies


EXTRA = RowBatch.from_pydict({"id": [1, 2], "colour": [None, "red"], "size": [[1], None]})


def test_new_columns_evolve():
    rows, letters = run([EXTRA], Conform(shop(new_columns="evolve")))
    assert [(r["id"], r["colour"], r["size"]) for r in rows] == [(1, None, [1]), (2, "red", None)]
    assert letters == []


def test_new_columns_drop_row_refuses_only_rows_that_have_a_value_there():
    batch = RowBatch.from_pydict({"id": [1, 2], "colour": [None, "red"]})
    rows, letters = run([batch], Conform(shop()))
    assert rows == [{"id": 1, "kind": None, "price": None, "code": None}]
    assert [(w["reason"], w["detail"]) for w in letters] == [("new_column", "colour: 'red' is not in the contract")]


def test_new_columns_drop_value_counts_what_is_lost():
    p = beam.Pipeline(runner="FnApiRunner")
    _ = p | beam.Create([EXTRA]) | Conform(shop(new_columns="drop_value"))
    result = p.run()
    dropped = result.metrics().query(beam.metrics.MetricsFilter().with_name("values_dropped"))["counters"]
    assert [c.committed for c in dropped] == [2]
    assert run([EXTRA], Conform(shop(new_columns="drop_value")))[0][1] == {"id": 2, "kind": None, "price": None, "code": None}


def test_new_columns_variant_keeps_values_as_json():
    rows, letters = run([EXTRA], Conform(shop(new_columns="variant")))
    assert [(r["colour__variant"], r["size__variant"]) for r in rows] == [(None, "[1]"), ('"red"', None)]
    again, _ = run([RowBatch.from_pylist(rows)], Conform(shop(new_columns="variant")))
    assert again == rows
    assert letters == []


@pytest.mark.parametrize("policy, batch", [("new_columns", EXTRA), ("changed_types", RowBatch.from_pydict({"id": ["x"]}))])
def test_freeze_stops_the_job(policy, batch):
    with pytest.raises(Exception, match="freezes its") as e:
        run([batch], Conform(shop(**{policy: "freeze"})))
    assert "ContractError" in str(e.value) or isinstance(e.value, ContractError)
    rows, _ = run([RowBatch.from_pydict({"id": ["7"]})], Conform(shop(**{policy: "freeze"})))
    assert rows[0]["id"] == 7


CHANGED = RowBatch.from_pydict({"id": [1, 2, 3], "price": ["1.50", "free", "5000"]})


def test_changed_types_drop_value_counts_what_is_lost_and_still_judges_the_rest():
    judged = conform(CHANGED, shop(changed_types="drop_value"))
    assert judged.dropped == 1
    assert judged.rows.column("price").to_pylist()[:2] == [D("1.50"), None]
    assert judged.bad.tolist() == [False, False, True]


def test_changed_types_variant_keeps_what_does_not_fit_as_json():
    rows, letters = run([CHANGED], Conform(shop(changed_types="variant")))
    assert [(r["price"], r["price__variant"]) for r in rows] == [(D("1.50"), None), (None, '"free"')]
    assert [w["reason"] for w in letters] == ["out_of_range"]
    again, _ = run([RowBatch.from_pylist(rows)], Conform(shop(changed_types="variant")))
    assert [r["price__variant"] for r in again] == [None, '"free"']


@pytest.mark.parametrize("policy", ["drop_value", "variant"])
def test_a_required_value_is_never_let_go(policy):
    judged = conform(RowBatch.from_pydict({"id": ["x", "1"]}), shop(changed_types=policy))
    assert judged.bad.tolist() == [True, False]
    assert judged.reason(0) == "not_castable"


def test_changed_types_evolve_keeps_a_wider_type_and_judges_the_rules():
    positive = _rules.Bound(">=", pa.scalar(0, pa.int8()))
    narrow = Contract("t", (Column("n", pa.int8(), rules=(positive,)),), changed_types="evolve")
    judged = conform(RowBatch.from_pydict({"n": [1, 1000, -1]}), narrow)
    assert judged.rows.schema == pa.schema([("n", I64)])
    assert judged.rows.column("n").to_pylist() == [1, 1000, -1]
    assert judged.bad.tolist() == [False, False, True]
    assert conform(RowBatch.from_pydict({"n": ["1", "x"]}), narrow).rows.schema == pa.schema([("n", pa.int8())])


def test_output_schema_is_known_before():
    incoming = pa.schema([("colour", pa.int8()), (ROW_TIME, UTC_US), ("id", TEXT)])
    assert Conform(shop(new_columns="evolve")).output_schema(incoming).names == ["id", "kind", "price", "code", ROW_TIME, "colour"]


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(ContractError, match="same name: id"):
        conform(RowBatch.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"]), shop())


# --- keys


KEYED = Contract("sales", (Column("id", I64), Column("shop", TEXT)), keys=(("id", "shop"),))


def test_of_rows_that_share_a_key_the_first_by_position_stays():
    batch = RowBatch.from_pydict({"id": [1, 1, 2, 1], "shop": ["a", "a", "a", "b"], ROW_POSITION: ["f:3", "f:1", "f:2", "f:0"]})
    rows, letters = run([batch], Conform(KEYED))
    assert sorted(r["row_position"] for r in rows) == ["f:0", "f:1", "f:2"]
    assert [(w["reason"], w["detail"], w["row_position"]) for w in letters] == [
        ("duplicate_key", "id, shop: 1, a is already taken by the row at f:1", "f:3")
    ]


def test_a_key_with_a_null_and_a_change_of_a_key_are_no_duplicates():
    changes = [None, None, None, "update", "delete"]
    batch = RowBatch.from_pydict({"id": [1, 1, 2, 2, 2], "shop": [None, None, "a", "a", "a"], ROW_CHANGE: changes})
    rows, letters = run([batch], Conform(KEYED))
    assert (len(rows), letters) == (5, [])


def test_keys_of_endless_or_windowed_input_are_refused():
    with pytest.raises(ConfigError, match="never ends") as e, beam.Pipeline(runner="FnApiRunner") as p:
        endless = p | beam.Create([EXTRA])
        endless.is_bounded = False
        _ = endless | Conform(KEYED)
    assert "judge_keys=False" in str(e.value)
    with pytest.raises(ConfigError, match="is in windows"), beam.Pipeline(runner="FnApiRunner") as p:
        _ = p | beam.Create([EXTRA]) | beam.WindowInto(window.FixedWindows(60)) | Conform(KEYED)


def test_judge_keys_false_leaves_keys_to_the_sink():
    rows, letters = run([RowBatch.from_pydict({"id": [1, 1], "shop": ["a", "a"]})], Conform(KEYED, judge_keys=False))
    assert (len(rows), letters) == (2, [])


def test_rows_leave_the_judging_of_keys_with_their_own_times():
    times = pa.array([60_000_000, 120_000_000], UTC_US)
    batch = RowBatch.from_arrays([pa.array([1, 2]), pa.array(["a", "b"]), times], names=["id", "shop", ROW_TIME])
    with beam.Pipeline(runner="FnApiRunner") as p:
        stamps = (
            p
            | beam.Create([batch.slice(0, 1), batch.slice(1)])
            | Conform(KEYED)
            | beam.Map(lambda b, t=beam.DoFn.TimestampParam: (b.column("id")[0].as_py(), t.micros))
        )
        assert_that(stamps, lambda got: sorted(got) == [(1, 60_000_000), (2, 120_000_000)] or (_ for _ in ()).throw(AssertionError(got)))


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.one_of(st.none(), st.sampled_from(["1", "2", "3", "x", str(2**64)])),
            "shop": st.sampled_from([None, "a", "b"]),
            "colour": st.sampled_from([None, None, "red"]),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(ROWS, st.data())
def test_results_depend_neither_on_cuts_nor_on_order(rows, data):
    contract = Contract("sales", (Column("id", I64, required=True), Column("shop", TEXT)), keys=(("id",),))
    schema = pa.schema([("id", TEXT), ("shop", TEXT), ("colour", TEXT)])
    whole = run([RowBatch.from_pylist(rows, schema=schema)], Conform(contract))
    shuffled = data.draw(st.permutations(rows))
    pieces = cuts_of(RowBatch.from_pylist(shuffled, schema=schema), data)
    assert outcome(run(pieces, Conform(contract))) == outcome(whole)
    assert len(whole[0]) + len(whole[1]) == len(rows)


def outcome(result):
    rows, letters = result
    return sorted(map(repr, rows)), sorted((w["reason"], w["detail"]) for w in letters)


def test_no_batch_is_pickled_on_the_way():
    p = beam.Pipeline(runner="FnApiRunner")
    _ = p | beam.Create([EXTRA]).with_output_types(RowBatch) | Conform(KEYED)
    assert pickled_edges(p) == []


def test_examples():
    assert doctest.testmod(conform_module).failed == 0
