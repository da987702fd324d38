"""Nexmark: every query gives what SQL gives over the same events, in batch and as a stream."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from support import matrix
from support.events import TIME
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, batches

sys.path.append(str(Path(__file__).parents[2]))  # behind all others: a folder `io` lies there

from benchmarks.nexmark import events, oracle
from benchmarks.nexmark.queries import QUERIES

SIZE = 3_000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    text = "\n".join(events.lines(0, SIZE)).encode()
    return pl.read_ndjson(text, infer_schema_length=None).to_arrow(compat_level=pl.CompatLevel.oldest())


@pytest.fixture(scope="module")
def rows(table) -> list[RowBatch]:
    plain = pa.schema([(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema])
    timed = table.cast(plain).append_column(ROW_TIME, pa.array([ms * 1000 for ms in table["dateTime"].to_pylist()]).cast(TIME))
    placed = timed.append_column(ROW_POSITION, pa.array([f"events:{i}" for i in range(len(table))]))
    return list(batches(placed.drop_columns(["dateTime"]), 500))


def held(outcome: matrix.Outcome, expected: list[dict]) -> None:
    assert expected
    assert outcome.letters == []
    names = list(expected[0])
    ours = [{n: int(row["window_start"].timestamp()) if n == "start" else row[n] for n in names} for row in outcome.rows]
    assert matrix.canonical(ours) == matrix.canonical(expected)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_equals_sql(query, table, rows):
    held(matrix.in_batch(QUERIES[query], rows), oracle.answer(table, query))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_equals_sql_as_a_stream(query, table, rows, prism):
    held(matrix.in_ticks(QUERIES[query], rows, prism.flags(), disorder=2_000_000, seed=query), oracle.answer(table, query))


def test_events_have_the_proportions_and_ids_of_the_suite(table):
    kinds = [sum(table[column].is_valid().to_pylist()) for column in ("name", "itemName", "bidder")]
    assert kinds == [SIZE // 50, SIZE // 50 * 3, SIZE // 50 * 46]
    people = set(table.filter(table["name"].is_valid())["id"].to_pylist())
    assert people == set(range(1_000, 1_000 + SIZE // 50))
    assert events.lines(0, 100) == events.lines(0, 100)
