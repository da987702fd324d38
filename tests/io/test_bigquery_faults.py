"""BigQuery behind a bad network: whatever is lost, cut, refused or said twice, every row is there once or is a dead letter."""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections import Counter

import pyarrow as pa
import pytest

from support.bigquery_faults import bad_network, is_poison
from tiebeam.commits import name_of
from tiebeam.errors import TransientError
from tiebeam.io import _bigquery_writer as writing
from tiebeam.io._bigquery_client import Connection
from tiebeam.io.bigquery import WriteToBigQuery

ROWS = 40
ATTEMPTS = 30
SCHEDULES = {"stream commits": 150, "whole runs by streams": 35, "whole runs by load jobs": 15}
SHARE = 0.2
KINDS = {
    "REST": {"refused", "answer lost", "delayed", "truncated"},
    "Storage": {"refused", "answer lost", "delayed", "twice", "cut", "said to be refused", "said to be there", "out of range"},
}


@pytest.fixture(scope="module")
def network(bigquery):
    with bad_network(bigquery) as found:
        yield found


@pytest.fixture(scope="module")
def dataset(bigquery):
    name = f"d_{uuid.uuid4().hex[:12]}"
    Connection(endpoint=bigquery.rest, storage_endpoint=bigquery.storage).open().rest.create_dataset(name)
    return name


def target_of(emulator, dataset, table, method):
    """The target of a sink whose patience is short: what gives up is begun anew, as a runner would."""
    made = WriteToBigQuery(
        f"{dataset}.{table}", method=method, bigquery_endpoint=emulator.rest, bigquery_storage_endpoint=emulator.storage
    ).target
    return dataclasses.replace(made, connection=dataclasses.replace(made.connection, patience_secs=1.0, answer_secs=5.0))


def staged(target, run_id, batches):
    """Stages a bundle as a runner does: what fails is begun anew; the pieces, and how many rows were refused."""
    for _ in range(ATTEMPTS):
        writer = writing.StreamWriter(target) if target.by_streams(run_id) else writing.LoadWriter(target, run_id)
        try:
            refused = [letter for batch in batches for found in writer.write(batch) for letter in found.batch.to_pylist()]
            return writer.close(), refused
        except TransientError:
            writer.abort()
    raise AssertionError("no attempt went well")


def published(target, run_id, pieces):
    for _ in range(ATTEMPTS):
        try:
            return writing.publish(target, run_id, pieces)
        except TransientError:
            continue
    raise AssertionError("no attempt went well")


@pytest.mark.parametrize("kind", SCHEDULES)
def test_nothing_is_lost_and_nothing_doubled(kind, network, bigquery, dataset):
    emulator, faults = network
    table = kind.replace(" ", "_")
    target = target_of(emulator, dataset, table, "load_job" if "load" in kind else "storage_write")
    wanted, refused = Counter(), Counter()
    faults.begin(0, 0.0)
    faults.seen.clear()
    for seed in range(SCHEDULES[kind]):
        rng = random.Random(seed)
        run_id = name_of(f"r{seed}", 0) if kind == "stream commits" else f"r{seed}"
        numbers = list(range(seed * ROWS, (seed + 1) * ROWS))
        cut = rng.randrange(1, ROWS)
        bundles = [[numbers[:cut]], [numbers[cut : (cut + ROWS) // 2], numbers[(cut + ROWS) // 2 :]]]
        faults.begin(seed, SHARE)
        pieces = []
        for bundle in bundles:
            batches = [pa.RecordBatch.from_pydict({"n": pa.array(part, pa.int64())}) for part in bundle if part]
            found, letters = staged(target, run_id, batches)
            pieces += found
            refused.update(reason["reason"] for reason in letters)
            assert all(letter["detail"] == "this row is poison" for letter in letters)
        for _ in range(rng.choice((1, 2, 3))):
            published(target, run_id, pieces)
        if kind != "stream commits" and rng.random() < 0.3:  # somebody starts the same run again, and stages it anew
            batches = [pa.RecordBatch.from_pydict({"n": pa.array(numbers, pa.int64())})]
            assert published(target, run_id, staged(target, run_id, batches)[0]) is False
        wanted.update(n for n in numbers if "load" in kind or not is_poison(n))
    faults.begin(0, 0.0)
    client = Connection(endpoint=bigquery.rest, storage_endpoint=bigquery.storage).open().rest
    seen = Counter(row["n"] for row in client.query_and_wait(f"SELECT n FROM `lab.{dataset}.{table}`"))
    assert wanted - seen == Counter(), "lost"
    assert seen - wanted == Counter(), "doubled"
    assert refused == (Counter() if "load" in kind else Counter(refused=sum(is_poison(n) for n in range(SCHEDULES[kind] * ROWS))))
    happened = {said.partition(" ")[2] for said in faults.seen}
    assert KINDS["REST" if "load" in kind else "Storage"] <= happened, "else these schedules prove less than they say"
