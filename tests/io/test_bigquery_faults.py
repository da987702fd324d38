"""BigQuery behind a bad network: whatever is lost, cut, refused or said twice, every row is there once or is a dead letter."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import time
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
from tiebeam.staging import Staged

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


def test_a_row_that_no_request_can_hold_is_refused(bigquery, dataset):
    target = target_of(bigquery, dataset, "large", "storage_write")
    batch = pa.RecordBatch.from_pydict({"n": [1, 2, 3], "word": ["a", "b" * 11_000_000, "c" * 8_000_000]})
    pieces, refused = staged(target, "r1", [batch])
    assert [letter["detail"] for letter in refused] == ["a row of 11,000,012 bytes is larger than a request"]
    assert sum(piece.rows for piece in pieces) == 2


# ---- kill -9

KILLS, COMMITS, COMMIT_ROWS = 20, 60, 25


def write_on(emulator, dataset, journal):
    """Writes numbered commits, as the two steps of tiebeam.commits do: what is staged is noted durably, and published from the notes."""
    target = target_of(emulator, dataset, "killed", "storage_write")
    target = dataclasses.replace(target, connection=dataclasses.replace(target.connection, patience_secs=30.0))
    noted = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")] if journal.exists() else []
    published_names = {note["done"] for note in noted if "done" in note}
    with journal.open("a") as file:

        def note(told):
            file.write("\n" + json.dumps(told))
            file.flush()
            os.fsync(file.fileno())

        for told in [n for n in noted if "name" in n and n["name"] not in published_names]:
            writing.publish(target, told["name"], [Staged(**piece) for piece in told["pieces"]])
            note({"done": told["name"]})
        for number in range(len({n["number"] for n in noted if "name" in n}), COMMITS):
            name = name_of("killed", 0)
            numbers = range(number * COMMIT_ROWS, (number + 1) * COMMIT_ROWS)
            pieces, _ = staged(target, name, [pa.RecordBatch.from_pydict({"n": pa.array(numbers, pa.int64())})])
            note({"name": name, "number": number, "pieces": [dataclasses.asdict(piece) for piece in pieces]})
            writing.publish(target, name, pieces)
            note({"done": name})


def test_kill_9_at_random_moments(bigquery, dataset, tmp_path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tiebeam.io.bigquery", "google.cloud.bigquery", "google.cloud.bigquery_storage_v1"])
    journal, rng, killed = tmp_path / "journal", random.Random(7), 0
    while True:
        writer = processes.Process(target=write_on, args=(bigquery, dataset, journal), daemon=True)
        writer.start()
        size, until = lines_of(journal), time.monotonic() + 120
        while killed < KILLS and lines_of(journal) < size + rng.randrange(1, 5) and writer.is_alive():  # it has come a step further
            assert time.monotonic() < until, "nothing is written any more"
            time.sleep(0.001)
        if killed == KILLS:
            break
        writer.join(rng.random() * 0.2)
        killed += writer.is_alive()
        writer.kill()
        writer.join()
        if writer.exitcode == 0:
            break
    writer.join(300)
    assert writer.exitcode == 0
    assert killed >= KILLS // 2, "it was too fast to be killed often"
    client = Connection(endpoint=bigquery.rest, storage_endpoint=bigquery.storage).open().rest
    seen = Counter(row["n"] for row in client.query_and_wait(f"SELECT n FROM `lab.{dataset}.killed`"))
    assert seen == Counter(range(COMMITS * COMMIT_ROWS))


def lines_of(file) -> int:
    return len(file.read_bytes().splitlines()) if file.exists() else 0
