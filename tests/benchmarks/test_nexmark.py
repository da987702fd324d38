"""Nexmark: every query gives what SQL gives over the same events, in batch and as a stream."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import apache_beam as beam
import polars as pl
import pyarrow as pa
import pytest

from support import matrix
from support.events import TIME
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, batches

sys.path.append(str(Path(__file__).parents[2]))  # behind all others: a folder `io` lies there

from benchmarks.nexmark import events, opponent, oracle
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


def beams(query: int, folder: Path) -> list[dict]:
    """The rows of a query of Beam's own: dicts as they are, of its objects the fields."""
    path = events.write(folder / "events.jsonl", SIZE)
    opponent.mend()
    options = opponent.options()
    with beam.Pipeline(options=options) as p:
        rows = opponent.answer(opponent.read(p, str(path)), query, options)
        lines = rows | beam.Map(lambda row: json.dumps(row if isinstance(row, dict) else json.loads(repr(row))))
        _ = lines | beam.io.WriteToText(str(folder / "told"))
    return [json.loads(line) for file in folder.glob("told*") for line in file.read_text().splitlines()]


@pytest.mark.parametrize("query", [q for q in QUERIES if q and q not in opponent.DIFFERENT])
def test_a_query_of_beam_gives_the_same(query, table, tmp_path):
    expected = [{name: value for name, value in row.items() if name != "start"} for row in oracle.answer(table, query)]
    theirs = [row.get("bid", row) for row in beams(query, tmp_path)]
    assert matrix.canonical([{name: row[name] for name in expected[0]} for row in theirs]) == matrix.canonical(expected)


@pytest.mark.parametrize("query", opponent.DIFFERENT)
def test_a_query_of_beam_said_to_differ_does(query, table, tmp_path):
    assert len(beams(query, tmp_path)) < len(oracle.answer(table, query))


def test_events_have_the_proportions_and_ids_of_the_suite(table):
    kinds = [sum(table[column].is_valid().to_pylist()) for column in ("name", "itemName", "bidder")]
    assert kinds == [SIZE // 50, SIZE // 50 * 3, SIZE // 50 * 46]
    people = set(table.filter(table["name"].is_valid())["id"].to_pylist())
    assert people == set(range(1_000, 1_000 + SIZE // 50))
    assert events.lines(0, 100) == events.lines(0, 100)
