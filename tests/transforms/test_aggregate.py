"""Aggregates are exact, and the same however rows are cut, ordered, bundled and repeated."""

import datetime as dt
import math
import random
import statistics
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebeam import dead_letters
from tiebeam.errors import ConfigError, NowhereToGoError
from tiebeam.transforms import aggregate as module
from tiebeam.transforms.aggregate import (
    Aggregate,
    ApproxDistinct,
    ApproxQuantiles,
    Count,
    First,
    Last,
    Max,
    Mean,
    Min,
    StdDev,
    Sum,
    TopK,
    Variance,
)

UTC = dt.UTC
TIME = pa.timestamp("us", tz="UTC")
NAN = float("nan")
bounded = settings(max_examples=25, deadline=None, derandomize=True)


def reduce(aggregate: Aggregate, *bundles: list[pa.RecordBatch]) -> pa.Table:
    """What a runner does with these bundles: combine each, shuffle, merge each shard."""
    shards: dict[int, list[pa.RecordBatch]] = {}
    combine, merge = module._CombineFn("test", aggregate), module._MergeFn("test", aggregate)
    for bundle in bundles:
        combine.start_bundle()
        for batch in bundle:
            assert list(combine.apply(batch)) == []
        for element in combine.finish_bundle():
            shard, states = element.value
            shards.setdefault(shard, []).append(states)
    results = [batch for element in shards.items() for batch in merge.apply(element)]
    table = pa.Table.from_batches(results) if results else pa.table({})
    keys = [(key, "ascending") for key in aggregate.keys if key in table.column_names]
    return table.sort_by(keys) if keys and len(table) else table


def scattered(table: pa.Table, seed: int) -> list[list[pa.RecordBatch]]:
    """The same rows in another order, in batches and bundles of random sizes."""
    chance = random.Random(seed)
    rows = list(range(len(table)))
    chance.shuffle(rows)
    bundles: list[list[pa.RecordBatch]] = [[]]
    while rows:
        size = chance.randint(1, len(rows))
        taken, rows = rows[:size], rows[size:]
        bundles[-1].append(table.take(taken).combine_chunks().to_batches()[0])
        if chance.random() < 0.5:
            bundles.append([])
    return bundles


def run(batches, aggregate, *flags) -> list[dict]:
    """The rows that a real pipeline gives."""
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(list(flags))) as p:
        assert_that(p | beam.Create(batches) | aggregate, keep)
    found = [row for batch in _RESULTS.pop() for row in batch.to_pylist()]
    return sorted(found, key=repr)


_RESULTS: list = []


def keep(found):
    """Takes the results out of a pipeline that runs in this process."""
    _RESULTS.append(found)


times = st.none() | st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, 0, 5)).map(lambda t: t.replace(tzinfo=UTC))
floats = st.none() | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
anything = st.none() | st.floats()
ints = st.none() | st.integers(-(10**6), 10**6)
texts = st.none() | st.sampled_from(["a", "b", "", "ü", "zz"])


def tables(size=30):
    columns = {
        "key": texts,
        "flag": st.none() | st.booleans(),
        "x": floats,
        "odd": anything,
        "n": ints,
        "s": st.none() | st.text(max_size=3),
        "row_time": times,
    }
    kinds = {
        "key": pa.string(),
        "flag": pa.bool_(),
        "x": pa.float64(),
        "odd": pa.float64(),
        "n": pa.int64(),
        "s": pa.string(),
        "row_time": TIME,
    }
    rows = st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=size)
    return rows.map(lambda rows: pa.table({c: pa.array([r[c] for r in rows], kind) for c, kind in kinds.items()}))


def everything(**given) -> Aggregate:
    return Aggregate(
        **given,
        rows=Count(),
        values=Count("x"),
        total=Sum("odd"),
        whole=Sum("n"),
        low=Min("odd"),
        high=Max("odd"),
        text=Min("s"),
        mean=Mean("odd"),
        var=Variance("x"),
        dev=StdDev("n", ddof=0),
        first=First("s"),
        last=Last("x"),
        distinct=ApproxDistinct("s"),
        quantiles=ApproxQuantiles("odd", (0.0, 0.5, 1.0)),
        top=TopK(2, "s", by=Sum("x")),
        common=TopK(2, "n"),
    )


# Independence of cut, order and bundle


@bounded
@given(tables(), st.integers(0, 2**32))
def test_results_do_not_depend_on_cut_order_or_bundle(table, seed):
    aggregate = everything(by=("key", "flag"), shards=3)
    once = reduce(aggregate, table.to_batches())
    again = reduce(aggregate, *scattered(table, seed))
    assert once.schema == again.schema
    assert repr(once.to_pylist()) == repr(again.to_pylist())  # to the last bit; repr, since NaN is not itself


@bounded
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(0, 2**32))
def test_sums_of_doubles_are_exact_and_rounded_once(values, seed):
    table = pa.table({"x": values})
    (row,) = reduce(Aggregate(total=Sum("x")), *scattered(table, seed)).to_pylist()
    exact = sum(map(Fraction, values))
    try:
        assert row["total"] == float(exact)
    except OverflowError:
        assert row["total"] == (math.inf if exact > 0 else -math.inf)


def test_sums_of_doubles_of_all_sizes():
    values = [1e308, 1.0, 5e-324, -1e308, 1e-300, 0.1] * 3 + [5e-324]
    (row,) = reduce(Aggregate(total=Sum("x")), *scattered(pa.table({"x": values}), 1)).to_pylist()
    assert row["total"] == math.fsum(values)


# Against plain SQL


@bounded
@given(tables(), st.integers(0, 2**32))
def test_agrees_with_sql(table, seed):
    aggregate = Aggregate(
        by=("key", "flag"), shards=2, rows=Count(), values=Count("x"), total=Sum("x"), whole=Sum("n"), yes=Sum("flag"), low=Min("x"),
        high=Max("n"), text=Max("s"), mean=Mean("x"), var=Variance("x"), dev=StdDev("x", ddof=0),
    )  # fmt: skip
    ours = reduce(aggregate, *scattered(table, seed)).to_pylist()
    sql = """select key, flag, count(*), count(x), fsum(x), sum(n), sum(flag::int), min(x), max(n), max(s),
                    fsum(x) / count(x), var_samp(x), stddev_pop(x)
             from rows group by all order by key nulls last, flag nulls last"""
    theirs = duckdb.connect().register("rows", table).execute(sql).fetchall()
    assert len(ours) == len(theirs)
    for row, reference in zip(ours, theirs, strict=True):
        exact, close = list(row.values())[:4] + list(row.values())[5:7], list(row.values())[4:5] + list(row.values())[10:]
        assert exact == [*reference[:4], *reference[5:7]]
        assert [row["low"], row["high"], row["text"]] == list(reference[7:10])
        for mine, other in zip(close, [reference[4], *reference[10:]], strict=True):
            assert mine == other or mine == pytest.approx(other, rel=1e-6, abs=1e-4)


@bounded
@given(tables())
def test_windows_agree_with_sql(table):
    timed = table.filter(table.column("row_time").is_valid())
    aggregate = Aggregate(by=("key",), window="1m", shards=2, rows=Count(), whole=Sum("n"))
    ours = [tuple(row.values()) for row in reduce(aggregate, timed.to_batches()).to_pylist()]
    sql = (
        "select date_trunc('minute', row_time) w, w + interval 1 minute, key, count(*), sum(n), w + interval 59999999 microseconds "
        "from rows group by all order by w, key nulls last"
    )
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    theirs = connection.register("rows", timed).execute(sql).fetchall()
    assert ours == [tuple(row) for row in theirs]


# Single reducers


def only(values, reducer, kind=None, **columns):
    table = pa.table({"x": pa.array(values, kind), **columns})
    results = [reduce(Aggregate(result=reducer), *scattered(table, seed)).column("result") for seed in range(3)]
    assert repr(results[0].to_pylist()) == repr(results[1].to_pylist()) == repr(results[2].to_pylist())
    return results[0][0].as_py()


def test_nothing_but_nulls():
    none = [None, None]
    assert only(none, Count("x"), pa.float64()) == 0
    assert only(none, Count(), pa.float64()) == 2
    for reducer in (Sum("x"), Mean("x"), Min("x"), Max("x"), Variance("x"), StdDev("x"), ApproxQuantiles("x")):
        assert only(none, reducer, pa.float64()) is None
        assert only(none, reducer, pa.null()) is None
    assert only(none, ApproxDistinct("x"), pa.string()) == 0
    assert only(none, TopK(3, "x"), pa.string()) == []


@pytest.mark.parametrize(
    ("values", "total", "low", "high"),
    [
        ([1.0, NAN, None], NAN, 1.0, NAN),
        ([NAN, NAN], NAN, NAN, NAN),
        ([math.inf, 1.0], math.inf, 1.0, math.inf),
        ([math.inf, -math.inf, 2.0], NAN, -math.inf, math.inf),
        ([math.inf, NAN], NAN, math.inf, NAN),
        ([-0.0, 0.0], 0.0, 0.0, 0.0),
    ],
)
def test_nan_and_infinity(values, total, low, high):
    assert repr(only(values, Sum("x"))) == repr(total)
    assert repr(only(values, Min("x"))) == repr(low)
    assert repr(only(values, Max("x"))) == repr(high)
    if not math.isfinite(total):
        assert math.isnan(only(values, Variance("x")))


def test_a_sum_of_integers_never_wraps():
    big = 2**63 - 1
    assert only([big, 1, -2], Sum("x")) == big - 1
    assert only([-(2**63), 1, -1], Sum("x")) == -(2**63)
    assert only([2**64 - 1] * 2, Mean("x"), pa.uint64()) == float(2**64)
    with pytest.raises(OverflowError, match=r"'x' does not fit into int64 in 1 group.*\{'key': 'b'\}"):
        table = pa.table({"key": ["a", "b", "b"], "x": [big, big, 1]})
        reduce(Aggregate(by=("key",), total=Sum("x")), table.to_batches())


def test_a_sum_of_integers_does_not_wrap_between_batches():
    with pytest.raises(OverflowError, match="int64"):  # 2**64 in all: with plain addition it would be 0
        reduce(Aggregate(total=Sum("x")), *[[pa.record_batch({"x": [2**61 - 1]}), pa.record_batch({"x": [1]})]] * 8)


def test_a_sum_of_decimals_is_exact():
    largest = Decimal("9" * 36 + ".99")
    assert only([Decimal("0.01"), largest, largest.copy_negate()], Sum("x"), pa.decimal128(38, 2)) == Decimal("0.01")
    assert only([Decimal("1.5"), Decimal("-0.7")], Sum("x"), pa.decimal32(3, 1)) == Decimal("0.8")
    assert only([Decimal("1.50"), Decimal("2.25"), None], Mean("x"), pa.decimal128(5, 2)) == 1.875
    table = pa.table({"x": pa.array([Decimal("0.01"), largest], pa.decimal128(38, 2))})
    assert reduce(Aggregate(low=Sum("x")), table.slice(0, 1).to_batches()).schema.field("low").type == pa.decimal128(38, 2)
    with pytest.raises(OverflowError, match="decimal"):
        reduce(Aggregate(total=Sum("x")), table.to_batches())


def test_variance_survives_a_large_mean():
    values = [1e9 + i / 1024 for i in range(100)]
    assert only(values, Variance("x")) == pytest.approx(statistics.variance(map(Fraction, values)), rel=1e-12)
    assert only([4.0], Variance("x")) is None
    assert only([4.0], Variance("x", ddof=0)) == 0.0
    assert only([2.0, 4.0], StdDev("x", ddof=0)) == 1.0


@pytest.mark.parametrize(
    ("values", "kind", "low", "high"),
    [
        ([b"b", None, b"a"], pa.binary(), b"a", b"b"),
        ([True, False], pa.bool_(), False, True),
        ([dt.date(2026, 1, 2), dt.date(2025, 1, 1)], pa.date32(), dt.date(2025, 1, 1), dt.date(2026, 1, 2)),
        ([dt.timedelta(2), dt.timedelta(1)], pa.duration("s"), dt.timedelta(1), dt.timedelta(2)),
        ([dt.time(2), dt.time(1)], pa.time32("s"), dt.time(1), dt.time(2)),
        ([Decimal("2.5"), Decimal("-1.5")], pa.decimal64(9, 1), Decimal("-1.5"), Decimal("2.5")),
        ([2**64 - 1, 1], pa.uint64(), 1, 2**64 - 1),
        (["b", "a"], pa.dictionary(pa.int8(), pa.string()), "a", "b"),
        (["b", "a"], pa.large_string(), "a", "b"),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else None,
)
def test_extremes_of_every_type(values, kind, low, high):
    assert only(values, Min("x"), kind) == low
    assert only(values, Max("x"), kind) == high


def at(*seconds):
    return pa.array([None if s is None else dt.datetime(2026, 1, 1, 0, 0, s, tzinfo=UTC) for s in seconds], TIME)


def test_first_and_last_go_by_time():
    columns = {"row_time": at(3, 1, 2, None)}
    assert only(["c", "a", "b", "never"], First("x"), **columns) == "a"
    assert only(["c", "a", "b", "never"], Last("x"), **columns) == "c"
    assert only(["c", None, "b", "never"], First("x"), **columns) == "b"
    assert only([None, None, None, "only"], First("x"), **columns) == "only"


def test_first_and_last_at_equal_times_go_by_position_then_value():
    columns = {"row_time": at(1, 1, 1), "row_position": pa.array(["f:9", "f:10", "f:100"])}
    assert only(["x", "y", "a"], First("x"), **columns) == "x"
    assert only(["x", "y", "a"], Last("x"), **columns) == "a"
    assert only([2, 1, 3], First("x"), row_time=at(1, 1, 1)) == 1
    assert only([2, 1, 3], Last("x"), row_time=at(1, 1, 1)) == 3


def test_top_k_is_exact_and_breaks_ties_by_value():
    values = ["b", "a", "c", None, "b", "a", None, None]
    assert only(values, TopK(2, "x")) == [{"value": "a", "weight": 2}, {"value": "b", "weight": 2}]
    weights = pa.array([1.5, 1.0, 9.0, 99.0, 1.0, None, 1.0, 1.0])
    assert only(values, TopK(2, "x", by=Sum("w")), w=weights) == [{"value": "c", "weight": 9.0}, {"value": "b", "weight": 2.5}]


@bounded
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.integers(1, 9))
def test_top_k_agrees_with_counting(values, k):
    expected = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))[:k]
    assert [tuple(pair.values()) for pair in only(values, TopK(k, "x"))] == expected


@pytest.mark.parametrize(("distinct", "tolerance"), [(1, 0), (10, 0), (100, 0.02), (3000, 0.05), (200_000, 0.05)])
def test_approximate_distinct(distinct, tolerance):
    values = np.tile(np.arange(distinct), 2)
    (row,) = reduce(Aggregate(n=ApproxDistinct("x")), pa.table({"x": values}).to_batches(50_000)).to_pylist()
    assert abs(row["n"] - distinct) <= tolerance * distinct


@bounded
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=80), st.floats(0, 1))
def test_quantiles_are_within_their_bound(values, q):
    exact = sorted(values)[max(math.ceil(round(q * len(values), 6)), 1) - 1]
    (found,) = only(values, ApproxQuantiles("x", (q,)))
    assert found == exact or abs(found - exact) <= max(0.004 * abs(exact), 1e-307)


def test_quantiles_of_few_values_are_exact_and_in_the_order_asked_for():
    assert only([5, 1, 3], ApproxQuantiles("x", (1, 0.5, 0))) == [5.0, 3.0, 1.0]
    assert repr(only([NAN, 1.0, math.inf], ApproxQuantiles("x", (0, 0.5, 1)))) == "[1.0, inf, nan]"


# Groups


def test_null_nan_and_zero_as_keys():
    table = pa.table({"k": pa.array([NAN, 0.0, None, -0.0, -NAN, None, 1.0]), "x": [1] * 7})
    for seed in range(3):
        rows = reduce(Aggregate(by=("k",), n=Count(), top=TopK(1, "x")), *scattered(table, seed)).to_pylist()
        found = {repr(row["k"]): (row["n"], row["top"][0]["weight"]) for row in rows}
        assert found == {"0.0": (2, 2), "1.0": (1, 1), "nan": (2, 2), "None": (2, 2)}


def test_a_dictionary_column_is_the_same_key_as_a_plain_one():
    plain = pa.array(["a", "b", None])
    bundles = [
        [pa.record_batch({"k": form})]
        for form in (plain, plain.dictionary_encode(), plain.cast(pa.large_string()), plain.cast(pa.string_view()))
    ]
    result = reduce(Aggregate(by=("k",), n=Count()), *bundles)
    assert result.to_pylist() == [{"k": "a", "n": 4}, {"k": "b", "n": 4}, {"k": None, "n": 4}]
    assert result.schema.field("k").type == pa.string()


def test_keys_keep_their_types():
    keys = {
        "date": pa.array([dt.date(2026, 1, 1)]),
        "at": pa.array([dt.datetime(2026, 1, 1)], pa.timestamp("s")),
        "dec": pa.array([Decimal("1.50")]),
        "bin": pa.array([b"\x00"]),
        "flag": pa.array([True]),
        "small": pa.array([3], pa.int8()),
    }
    batch = pa.record_batch(keys)
    result = reduce(Aggregate(by=tuple(keys), n=Count()), [batch], [batch])
    assert result.to_pylist() == [{**batch.to_pylist()[0], "n": 2}]
    assert [field.type for field in result.schema][:-1] == [array.type for array in keys.values()]


def test_a_column_that_is_null_in_one_batch_has_its_type_from_another():
    full, empty = pa.record_batch({"k": ["a"], "x": [1.5]}), pa.record_batch({"k": pa.nulls(1), "x": pa.nulls(1)})
    aggregate = Aggregate(by=("k",), shards=1, total=Sum("x"), low=Min("x"), top=TopK(1, "x"))
    expected = [
        {"k": "a", "total": 1.5, "low": 1.5, "top": [{"value": 1.5, "weight": 1}]},
        {"k": None, "total": None, "low": None, "top": []},
    ]
    assert reduce(aggregate, [full, empty]).to_pylist() == reduce(aggregate, [empty], [full]).to_pylist() == expected


def test_a_million_groups_keep_every_group():
    ids = np.random.default_rng(1).permutation(np.repeat(np.arange(1_000_000), 2))
    table = pa.table({"id": ids, "x": ids * 0.5})
    result = reduce(
        Aggregate(by=("id",), total=Sum("x")), table.slice(0, 900_000).to_batches(65_536), table.slice(900_000).to_batches(65_536)
    )
    assert result.column("id").equals(pa.chunked_array([np.arange(1_000_000)]))
    assert (result.column("total").to_numpy() == np.arange(1_000_000)).all()


def test_partial_states_are_handed_on_before_they_grow_too_large(monkeypatch):
    monkeypatch.setattr(module, "MAX_PARTIAL_ROWS", 10)
    aggregate = Aggregate(by=("id",), n=Count())
    batch = pa.record_batch({"id": list(range(30))})
    combine = module._CombineFn("test", aggregate)
    combine.start_bundle()
    handed_on = [states for _, states in combine.process(batch)]
    assert sum(states.num_rows for states in handed_on) == 30
    assert list(combine.finish_bundle()) == []
    assert run([batch] * 3, aggregate) == sorted(({"id": i, "n": 3} for i in range(30)), key=repr)


# In a pipeline

MINUTE = dt.datetime(2026, 1, 1, 0, 1, tzinfo=UTC)


def windowed_rows() -> list[pa.RecordBatch]:
    times = pa.array([*at(59, 0, 1).to_pylist(), MINUTE, MINUTE], TIME)
    rows = pa.table({"row_time": times, "shop": ["a", "b", "a", "a", None], "x": [0.1, 0.2, 0.7, 4.0, 5.0]})
    return rows.to_batches(2)


def test_a_windowed_sum():
    start, tick = dt.datetime(2026, 1, 1, tzinfo=UTC), dt.timedelta(microseconds=1)
    end = MINUTE + dt.timedelta(minutes=1)
    expected = [
        {"window_start": start, "window_end": MINUTE, "shop": "a", "total": math.fsum([0.1, 0.7]), "row_time": MINUTE - tick},
        {"window_start": start, "window_end": MINUTE, "shop": "b", "total": 0.2, "row_time": MINUTE - tick},
        {"window_start": MINUTE, "window_end": end, "shop": "a", "total": 4.0, "row_time": end - tick},
        {"window_start": MINUTE, "window_end": end, "shop": None, "total": 5.0, "row_time": end - tick},
    ]
    for flags in ((), ("--direct_runner_bundle_repeat=2",)):
        assert run(windowed_rows(), Aggregate(by=("shop",), window="1m", total=Sum("x")), *flags) == sorted(expected, key=repr)


def test_windows_can_be_chained():
    with beam.Pipeline(runner="FnApiRunner") as p:
        minutes = p | beam.Create(windowed_rows()) | "Minutes" >> Aggregate(by=("shop",), window="1m", total=Sum("x"))
        days = minutes | "Days" >> Aggregate(window="1d", total=Sum("total"), n=Count())
        assert_that(days, keep)
    (batch,) = _RESULTS.pop()
    start = dt.datetime(2026, 1, 1, tzinfo=UTC)
    end = dt.datetime(2026, 1, 2, tzinfo=UTC)
    last = end - dt.timedelta(microseconds=1)
    assert batch.to_pylist() == [{"window_start": start, "window_end": end, "total": 10.0, "n": 4, "row_time": last}]


def test_results_are_stamped_with_their_time():
    class _StampFn(beam.DoFn):
        def process(self, batch, stamp=beam.DoFn.TimestampParam):
            yield stamp.micros, min(batch.column("row_time").cast(pa.int64()).to_pylist())

    with beam.Pipeline(runner="FnApiRunner") as p:
        stamps = p | beam.Create(windowed_rows()) | Aggregate(by=("shop",), window="1m") | beam.ParDo(_StampFn())
        assert_that(stamps, keep)
    found = _RESULTS.pop()
    assert found
    assert all(stamp == earliest for stamp, earliest in found)


def test_windows_of_the_input_do_not_split_groups():
    with beam.Pipeline(runner="FnApiRunner") as p:
        stamp = beam.Map(lambda batch: beam.window.TimestampedValue(batch, 100 * batch.column("x")[0].as_py()))
        stamped = p | beam.Create([pa.record_batch({"x": [n]}) for n in range(3)]) | stamp.with_output_types(pa.RecordBatch)
        result = stamped | beam.WindowInto(FixedWindows(10)) | Aggregate(n=Count())
        assert_that(result, keep)
    assert [batch.to_pylist() for batch in _RESULTS.pop()] == [[{"n": 3}]]


def test_no_rows_give_no_rows():
    assert run([], Aggregate(n=Count())) == []


def timeless() -> pa.RecordBatch:
    return pa.record_batch({"row_time": at(1, None, 2), "row_position": ["f:0", "f:9", "f:18"], "x": [1, 2, 3]})


def test_rows_without_time_become_dead_letters_and_their_neighbours_go_on():
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create([timeless()]) | Aggregate(window="1m", total=Sum("x"))
        (letters,) = dead_letters.claim(p)
        assert_that(rows, keep, label="rows")
        assert_that(letters, keep, label="letters")
    kept = {batch.schema.names[0]: batch for found in _RESULTS for batch in found}
    _RESULTS.clear()
    assert kept["window_start"].to_pylist()[0]["total"] == 4
    (letter,) = kept["step"].to_pylist()
    assert (letter["step"], letter["reason"], letter["row_position"]) == ("Aggregate", "no_event_time", "f:9")
    (original,) = pa.ipc.open_stream(letter["original"]).read_all().to_pylist()
    assert original == timeless().to_pylist()[1]


def test_rows_without_time_stop_a_pipeline_that_keeps_no_dead_letters():
    with pytest.raises(Exception, match="rejected 1 row") as stopped:
        run([timeless()], Aggregate(window="1m", total=Sum("x")))
    assert isinstance(stopped.value.__cause__, NowhereToGoError) or NowhereToGoError in type(stopped.value).__mro__


def test_rows_without_time_belong_to_their_group_when_no_window_is_asked_for():
    assert run([timeless()], Aggregate(total=Sum("x"))) == [{"total": 6}]


# Windows


@pytest.mark.parametrize(
    ("window", "seconds"),
    [("1m", 60), ("90s", 90), ("1h", 3600), ("1d", 86400), ("1.5h", 5400), (30, 30), (0.5, 0.5), ("500ms", 0.5)],
)
def test_windows_are_aligned_with_the_epoch_also_before_it(window, seconds):
    moments = [-0.25, 0, 86399.999999, -90001.5, 1_800_000_000.123456]
    stamps = pa.array([round(m * 1e6) for m in moments], pa.int64()).cast(TIME)
    result = reduce(Aggregate(window=window), [pa.record_batch({"row_time": stamps})])
    assert result.column("window_start").cast(pa.int64()).to_pylist() == sorted(
        {math.floor(m / seconds) * round(seconds * 1e6) for m in moments}
    )


# Configuration


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing to compute"),
        ({"by": ("a", "a")}, "'a' is named twice"),
        ({"by": "a", "a": Count()}, "a column of the result already"),
        ({"by": "a", "n": "amount"}, "'amount' is no reducer"),
        ({"n": Sum(3)}, "name of a column, not 3"),
        ({"n": TopK(0, "a")}, "expected a whole number from 1"),
        ({"n": TopK(1, "a", by=Mean("b"))}, "cannot rank by"),
        ({"n": ApproxDistinct("a", precision=30)}, "from 4 to 14"),
        ({"n": ApproxQuantiles("a", (2,))}, "numbers from 0 to 1"),
        ({"by": "a", "window": "1 fortnight"}, "'1 fortnight' is not a length of time"),
        ({"by": "a", "window": 0}, "not a length of time"),
        ({"by": "a", "window": "-1m"}, "not a length of time"),
        ({"by": "window_start", "window": "1m"}, "window's own column"),
        ({"window": "1m", "row_time": Count()}, "a column of the result already"),
        ({"by": "a", "shards": 0}, "not a number from 1"),
    ],
)
def test_bad_configuration_is_refused_when_made(given, message):
    with pytest.raises(ConfigError, match=message):
        Aggregate(**given)


def test_every_problem_is_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        Aggregate(window="x", shards=0, n=5)
    assert len(refused.value.problems) == 3


def test_unbounded_input_without_windows_is_refused():
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create([pa.record_batch({"x": [1]})])
        rows.is_bounded = False
        with pytest.raises(ConfigError, match="cut it into windows"):
            rows | Aggregate(n=Count())


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (Aggregate(by=("shpo",), n=Count()), "no column 'shpo'"),
        (Aggregate(total=Sum("shop")), "Sum needs numbers, and 'shop' is string"),
        (Aggregate(low=Min("tags")), "values that can be compared"),
        (Aggregate(by=("tags",)), "the key 'tags' is list<"),
        (Aggregate(q=ApproxQuantiles("shop")), "ApproxQuantiles needs numbers"),
        (Aggregate(first=First("shop")), "no column 'row_time'"),
        (Aggregate(window="1m"), "no column 'row_time'"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_name(aggregate, message):
    batch = pa.record_batch({"shop": ["a"], "tags": [["x"]]})
    with pytest.raises(ConfigError, match=message):
        aggregate.output_schema(batch.schema)
    with pytest.raises(ConfigError, match=message):
        reduce(aggregate, [batch])


def test_a_column_of_two_types_is_refused():
    one, other = pa.record_batch({"x": [1]}), pa.record_batch({"x": [1.5]})
    with pytest.raises(ConfigError, match="'x' is int64 in some batches and double in others"):
        reduce(Aggregate(total=Sum("x")), [one], [other])


def test_the_schema_is_known_beforehand():
    table = pa.table({"key": ["a"], "flag": [True], "x": [1.5], "odd": [1.5], "n": [1], "s": ["s"], "row_time": at(1)})
    for aggregate in (everything(by=("key",)), everything(by=("key",), window="1h")):
        assert aggregate.output_schema(table.schema) == reduce(aggregate, table.to_batches()).schema
