"""What lets each message of Pub/Sub through once: over batches and bundles, within a horizon of the job's own time."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebeam.io._pubsub_messages import MESSAGES, SHARDS, STANDSTILL_SECS, DealFn, OnceFn, _advanced, _compacted, first_ones
from tiebeam.rows import RowBatch


def messages(*ids: str) -> RowBatch:
    n = len(ids)
    at = pa.array([0] * n, pa.int64()).cast(MESSAGES.field("row_time").type)
    columns = {
        "message_id": ids,
        "unique": ids,
        "data": [b""] * n,
        "attributes": [[]] * n,
        "ordering_key": [""] * n,
        "publish_time": at,
        "delivery_attempt": [0] * n,
        "row_time": at,
        "row_position": [f"s/{i}" for i in ids],
    }
    return RowBatch.from_pydict(columns, schema=MESSAGES)


def ids(batch: RowBatch) -> list[str]:
    return batch.column("unique").to_pylist()


def seen(at: int, *names: str) -> RowBatch:
    return RowBatch.from_pydict({"unique": pa.array(names, pa.string()), "at": pa.array([at] * len(names), pa.int64())})


def test_a_message_meets_itself_in_other_batches_and_bundles():
    batches = [messages(*map(str, range(50))), messages("7", "7", "50"), messages(*map(str, range(20, 60))), messages("a", "a")]
    with beam.Pipeline(runner="FnApiRunner") as p:
        dealt = p | beam.Create(batches).with_output_types(pa.RecordBatch) | beam.ParDo(DealFn()).with_output_types(tuple[int, RowBatch])
        once = dealt | beam.ParDo(OnceFn(600)).with_output_types(RowBatch)
        assert_that(once | beam.FlatMap(ids), equal_to([*map(str, range(60)), "a"]))


@given(st.lists(st.text("abc", max_size=2), min_size=1, max_size=30), st.lists(st.lists(st.text("abc", max_size=2)), max_size=4))
def test_first_ones_are_those_of_a_simple_model(names, known):
    blocks = [seen(0, *block) for block in known]
    gone = {name for block in known for name in block}
    wanted = [name for i, name in enumerate(names) if name not in gone and name not in names[:i]]
    assert ids(first_ones(messages(*names), blocks)) == wanted


@given(st.lists(st.text(max_size=5), min_size=1, max_size=50))
@settings(max_examples=50)
def test_messages_are_dealt_whole_and_always_to_the_same_key(names):
    dealt = list(DealFn().process(messages(*names)))
    assert sorted(name for _, batch in dealt for name in ids(batch)) == sorted(names)
    keys = {}
    for key, batch in dealt:
        assert 0 <= key < SHARDS
        for name in ids(batch):
            assert keys.setdefault(name, key) == key


@pytest.mark.parametrize(
    ("clock", "now", "wanted"),
    [
        ([], 5.0, (5.0, 0.0)),
        (["[100.0, 40.0]"], 110.0, (110.0, 50.0)),
        (["[100.0, 40.0]"], 100_000.0, (100_000.0, 40.0 + STANDSTILL_SECS)),
        (["[100.0, 40.0]"], 50.0, (50.0, 40.0)),
    ],
    ids=["the first look", "a while", "a standstill of a day", "a clock that was set back"],
)
def test_the_clock_of_a_job_stands_still_with_the_job(clock, now, wanted):
    assert _advanced(clock, now) == wanted


def test_what_is_older_than_the_horizon_is_forgotten_and_nothing_else():
    blocks = [seen(100, "old", "older"), seen(500, "new"), seen(700, "newest")]
    left = [name for block in _compacted(blocks, 500.0) for name in ids(block)]
    assert sorted(left) == ["new", "newest"]
    assert _compacted(blocks, 1_000.0) == []
