"""MapBatches: a function over frames of three libraries; types survive, failures name the step or the row."""

import functools
from datetime import date, datetime, time
from decimal import Decimal

import apache_beam as beam
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from apache_beam.testing.util import assert_that, equal_to

from support.applied import applied
from tiebeam.errors import ConfigError
from tiebeam.rows import MAX_BATCH_ROWS, RowBatch
from tiebeam.transforms import frames as frames_module
from tiebeam.transforms.frames import MapBatches

BATCH = RowBatch.from_pydict({"n": [1, 2, None], "s": ["x", None, "z"]})
TYPED = RowBatch.from_arrays(
    [
        pa.array([2**63 - 1, None]),
        pa.array(["x", None]),
        pa.array(["x", None]).dictionary_encode(),
        pa.array(["x", None], pa.large_string()),
        pa.array([Decimal("1.10"), None], pa.decimal128(10, 2)),
        pa.array([date(1969, 1, 1), None]),
        pa.array([time(1, 2, 3), None], pa.time32("s")),
        pa.array([time(1, 2, 3, 4), None], pa.time64("us")),
        pa.array([datetime(1969, 1, 1), None], pa.timestamp("s")),
        pa.array([datetime(1969, 1, 1), None], pa.timestamp("us", "UTC")),
        pa.array([[1], None]),
        pa.array([{"a": "x"}, None]),
        pa.array([b"x", None]),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        pa.array([5, None], pa.duration("ms")),
    ],
    names=["i", "s", "dict", "large", "dec", "day", "t32", "t64", "sec", "utc", "list", "struct", "bin", "map", "lasts"],
)


def identity(frame):
    return frame


@pytest.mark.parametrize("frame", ["polars", "pandas", "arrow"])
def test_untouched_columns_keep_type_and_value(frame):
    made = frames_module._ApplyFn("step", identity, frame, None, "fail")._made(TYPED)
    assert made.schema == TYPED.schema
    assert made.equals(TYPED)


@pytest.mark.parametrize(
    "frame, fn",
    [
        ("polars", lambda df: df.with_columns(m=pl.col("n") * 2)),
        ("polars", lambda df: df.lazy().with_columns(m=pl.col("n") * 2)),
        ("pandas", lambda df: df.assign(m=df["n"] * 2)),
        ("arrow", lambda b: b.append_column("m", pc.multiply(b.column("n"), 2))),
        ("arrow", lambda b: pa.Table.from_batches([b]).append_column("m", pc.multiply(b.column("n"), 2))),
        ("polars", lambda df: df.with_columns(m=pl.col("n") * 2).to_pandas(use_pyarrow_extension_array=True)),
    ],
)
def test_a_function_over_a_frame(frame, fn):
    rows, letters = applied([BATCH], MapBatches(fn, frame=frame))
    assert rows == [{"n": 1, "s": "x", "m": 2}, {"n": 2, "s": None, "m": 4}, {"n": None, "s": "z", "m": None}]
    assert letters == []


@pytest.mark.parametrize("fn", [lambda df: df.filter(pl.lit(False)), lambda df: None])
def test_empty_results_vanish(fn):
    assert applied([BATCH], MapBatches(fn)) == ([], [])


def test_larger_results_are_cut():
    with beam.Pipeline(runner="FnApiRunner") as p:
        made = p | beam.Create([BATCH]) | MapBatches(lambda df: pl.DataFrame({"n": range(MAX_BATCH_ROWS + 1)}))
        sizes = made | beam.Map(lambda b: b.num_rows)
        assert_that(sizes, equal_to([MAX_BATCH_ROWS, 1]))


def test_a_schema_is_kept_to_without_loss():
    schema = pa.schema([("s", pa.string()), ("n", pa.int16())])
    rows, _ = applied([BATCH], MapBatches(lambda df: df.select("n", "s"), schema=schema))
    assert [list(r) for r in rows] == [["s", "n"]] * 3
    with pytest.raises(Exception, match="returned 70000 in the column 'n', which is no int16"):
        applied([BATCH], MapBatches(lambda df: df.with_columns(n=pl.lit(70000)), schema=schema))
    with pytest.raises(Exception, match="returned the columns n; its schema has s, n"):
        applied([BATCH], MapBatches(lambda df: df.select("n"), schema=schema))


def test_a_type_never_depends_on_the_values():
    batch = RowBatch.from_arrays([pa.array([1_000_001], pa.time64("us"))], names=["t"])
    with pytest.raises(Exception, match="which is no time64"):
        applied([batch], MapBatches(lambda df: df.with_columns((pl.col("t").cast(pl.Int64) + 1).cast(pl.Time))))


def fails_on(bad, df):
    if df["n"].is_in(bad).any():
        raise KeyError(f"cannot do {bad}")
    return df.with_columns(m=pl.col("n"))


def test_a_failure_stops_the_pipeline_and_names_the_step():
    with pytest.raises(Exception, match=r"step 'Score': the function failed on a batch of 3 rows: KeyError"):
        applied([BATCH], "Score" >> MapBatches(functools.partial(fails_on, [2])))
    with pytest.raises(Exception, match="returned list, which is no Polars, pandas or Arrow frame"):
        applied([BATCH], MapBatches(lambda df: [1]))


def test_with_dead_letters_only_the_rows_that_fail_are_lost_from_the_batch():
    batch = RowBatch.from_pydict({"n": list(range(20)), "row_position": [f"f:{i}" for i in range(20)]})
    rows, letters = applied([batch], MapBatches(functools.partial(fails_on, [3, 17]), on_error="dead_letter"))
    assert [r["n"] for r in rows] == [n for n in range(20) if n not in (3, 17)]
    assert [(w["row_position"], w["reason"]) for w in letters] == [("f:3", "function_failed"), ("f:17", "function_failed")]
    assert letters[0]["detail"] == "KeyError: 'cannot do [3, 17]'"


def test_pandas_gets_arrows_types():
    seen = MapBatches(lambda df: pd.DataFrame({"types": [str(t) for t in df.dtypes]}), frame="pandas")
    assert [r["types"] for r in applied([BATCH], seen)[0]] == ["int64[pyarrow]", "string[pyarrow]"]


def test_what_cannot_be_is_told_at_once():
    with pytest.raises(ConfigError) as e:
        MapBatches(5, frame="numpy", on_error="ignore")
    assert len(e.value.problems) == 3
