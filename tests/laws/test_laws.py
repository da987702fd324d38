"""The laws of every transform that remembers rows: one answer, however the rows come and whatever runs them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from laws import ways
from laws.cases import Case, cases
from laws.ways import WAYS
from support import folding, matrix
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._keyed import Keyed

CASES = [pytest.param(case, id=case.name) for case in cases()]
every_case = pytest.mark.parametrize("case", CASES)
seeds = st.integers(0, 1 << 30)
few = settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])  # a seed cannot be made smaller


def rows_of(case: Case, seed: int, size: int) -> matrix.Inputs:
    return case.inputs(np.random.default_rng(seed), size)


def folds(case: Case) -> Keyed:
    transform = case.make()
    return transform if isinstance(transform, Keyed) else transform.keyed()


@every_case
@few
@given(seed=seeds, size=st.integers(1, 60))
def test_at_once_is_what_the_oracle_says(case, seed, size):
    inputs = rows_of(case, seed, size)
    assert folding.at_once(folds(case).fold, inputs) == matrix.canonical(case.expected(inputs))


@every_case
@few
@given(seed=seeds, size=st.integers(1, 60))
def test_tick_by_tick_is_at_once(case, seed, size):
    """In any order and any cut; and when the time is over nothing is left."""
    inputs, keyed = rows_of(case, seed, size), folds(case)
    if not case.streams:
        pytest.skip("is for bounded inputs only")
    rows, left = folding.tick_by_tick(keyed.fold, inputs, keyed.tick, seed)
    assert rows == folding.at_once(keyed.fold, inputs)
    assert not (case.forgets and left), {name: batch.to_pylist() for name, batch in left.items()}


def every_way():
    for way in WAYS:
        for case in cases():
            gap = [pytest.mark.xfail(reason=way.gaps[case.name], strict=True)] if case.name in way.gaps else []
            if case.streams or not way.endless:
                yield pytest.param(way, case, id=f"{way.name}-{case.name}", marks=gap)


@pytest.mark.parametrize(("way", "case"), list(every_way()))
def test_every_way_gives_the_answer(way, case, request):
    service = request.getfixturevalue(way.service) if way.service else None
    found = ways.outcome(way, case, cases(), service)
    assert found.letters == []
    assert found.rows == matrix.canonical(case.expected(ways.inputs(case)))


@every_case
def test_no_rows_give_no_rows(case):
    empty = rows_of(case, 1, 1)
    none = {name: [] for name in empty} if isinstance(empty, dict) else []
    assert matrix.in_batch(case.make(), none) == ([], [])


@every_case
def test_rows_without_a_time_are_kept(case):
    """A null time, and one that not every engine can tell, cost that row alone: it is a dead letter with its reason."""
    if not case.streams:
        pytest.skip("needs no time")
    given = rows_of(case, 3, 40)
    first = next(iter(given)) if isinstance(given, dict) else None
    batches = given[first] if first is not None else given
    odd = [timed(batches[0].slice(0, 1), None), timed(batches[0].slice(0, 1), 10**16)]
    more = [*batches, *odd]
    rows, letters = matrix.in_batch(case.make(), {**given, first: more} if first is not None else more)
    assert rows == matrix.canonical(case.expected(given))
    assert sorted(letter["reason"] for letter in letters) == ["no_event_time", "time_out_of_range"]


def timed(batch: RowBatch, micros: int | None) -> RowBatch:
    column = pa.array([micros] * batch.num_rows, pa.int64()).cast(batch.schema.field(ROW_TIME).type)
    return batch.set_column(batch.schema.get_field_index(ROW_TIME), ROW_TIME, column)
