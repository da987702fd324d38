"""Spilling: rows that are many go through files and in parts, and nothing else can be told from what comes out."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import ways
from laws.cases import cases
from support import matrix
from tiebeam.rows import RowBatch
from tiebeam.transforms import _spill
from tiebeam.transforms._fold import Fold, Folded, Tables, fact, mark
from tiebeam.transforms._keyed import Keyed
from tiebeam.transforms._shards import split
from tiebeam.transforms._spill import GroupByShard, Part, Parts, _PartFn

KEYS = {"rows": ("key",), "others": ("number", "name")}
MINUTE = 60_000_000


class Count(Fold):
    """Counts the rows of each key, and keeps count of the files and of the keys that it sees, when it is told where."""

    keys: ClassVar = {"rows": ("key",)}
    timed = False

    def __init__(self, seen: Path | None = None, fails: bool = False):
        self.seen = seen
        self.fails = fails

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        counts = pa.table(rows["rows"]).group_by("key", use_threads=False).aggregate([("n", "count"), ("n", "sum")])
        if self.seen:
            with self.seen.open("a") as file:
                file.write(f"{len(files())} {len(counts)}\n")
        if self.fails:
            raise ValueError("no")
        return Folded(counts.combine_chunks().to_batches())


def keyed(shards: int = 3, **options) -> Keyed:
    return Keyed(Count(**options), tick=MINUTE, shards=shards)


def rows_of(n: int, keys: int, most: float = 0.0) -> list[RowBatch]:
    """Some batches; a share `most` of the rows has one key."""
    chance = np.random.default_rng(n)
    numbers = np.where(chance.random(n) < most, 0, chance.integers(0, keys, n))
    return list(cut(RowBatch.from_pydict({"key": [None if k == 1 else f"key {k}" for k in numbers], "n": np.arange(n)}), 100))


def cut(batch: RowBatch, size: int):
    return (batch.slice(start, size) for start in range(0, batch.num_rows, size))


def counted(batches: list[RowBatch]) -> matrix.Rows:
    counts, sums = Counter(), Counter()
    for batch in batches:
        for row in batch.to_pylist():
            counts[row["key"]] += 1
            sums[row["key"]] += row["n"]
    return matrix.canonical([{"key": key, "n_count": counts[key], "n_sum": sums[key]} for key in counts])


def files() -> list[Path]:
    """All that jobs have spilled and not removed."""
    return [path for path in Path(tempfile.gettempdir()).rglob("tiebeam-spill/*") if path.is_file()]


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """Budgets so small that all goes through files, and shards in parts, some of them more than once."""
    monkeypatch.setattr(_spill, "GATHERED_BYTES", 500)
    monkeypatch.setattr(_spill, "PART_BYTES", 1000)
    monkeypatch.setattr(_spill, "MOST_PARTS", 4)


@pytest.fixture
def children(temporary, monkeypatch):
    """Processes that are started find what this one finds, and put temporary files where it does."""
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("PYTHONPATH", ":".join([str(Path(__file__).parent), *sys.path]))


def folds_of(seen: Path) -> list[tuple[int, int]]:
    """Of each fold, how many files there were, and how many keys it was given."""
    return [(int(count), int(keys)) for count, keys in (line.split() for line in seen.read_text().splitlines())]


@pytest.mark.parametrize(
    "flags", [[], ["--direct_runner_bundle_repeat=2"], ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]]
)
def test_rows_that_are_many_go_through_files_and_in_parts(tiny, children, tmp_path, flags):
    batches = rows_of(3000, 200)
    rows, letters = matrix.in_batch(keyed(seen=tmp_path / "seen"), batches, *matrix.FNAPI, *flags)
    assert (rows, letters) == (counted(batches), [])
    assert all(count and keys < 20 for count, keys in folds_of(tmp_path / "seen"))
    assert not files()


def test_rows_that_are_few_touch_no_file(tmp_path):
    batches = rows_of(3000, 200)
    rows, _ = matrix.in_batch(keyed(seen=tmp_path / "seen"), batches)
    assert rows == counted(batches)
    assert [count for count, _ in folds_of(tmp_path / "seen")] == [0, 0, 0]


def test_a_key_with_most_rows_is_folded_at_once_and_almost_alone(tiny, tmp_path):
    batches = rows_of(3000, 200, most=0.9)
    rows, _ = matrix.in_batch(keyed(seen=tmp_path / "seen", shards=1), batches)
    assert rows == counted(batches)
    assert max(keys for _, keys in folds_of(tmp_path / "seen")) < 100


def test_one_key_only(tiny):
    batches = rows_of(1000, 1)
    assert matrix.in_batch(keyed(), batches).rows == counted(batches)


def test_files_are_gone_after_a_fold_that_fails(tiny, tmp_path):
    with pytest.raises(Exception, match="no"):
        matrix.in_batch(keyed(seen=tmp_path / "seen", fails=True), rows_of(1000, 50))
    assert folds_of(tmp_path / "seen")[0][0] > 0
    assert not files()


def test_files_are_gone_when_nothing_is_left_of_a_pipeline_that_removed_none(tiny):
    """In a notebook Beam keeps the temporary folder of a pipeline."""
    p = beam.Pipeline(runner="FnApiRunner")
    _ = p | beam.Create(rows_of(1000, 50)) | keyed()
    left = Path(p.local_tempdir, "tiebeam-spill", "left")
    left.parent.mkdir()
    left.touch()
    del p, _
    gc.collect()
    assert not files()


INTERRUPTED = """
import os, signal, sys, threading
import apache_beam as beam
from tiebeam.delivery import Delivery
from tiebeam.io.jsonl import WriteToJsonl
from tiebeam.pipelines import _interrupt
from tiebeam.transforms import _spill
import test_spill

class Fold(test_spill.Count):
    def fold(self, state, rows, upto):
        print(len(test_spill.files()), flush=True)
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        threading.Event().wait(60)

_spill.GATHERED_BYTES = 500
p = beam.Pipeline(runner="FnApiRunner")
with Delivery(p) as delivery:
    _ = p | beam.Create(test_spill.rows_of(1000, 50)) | test_spill.Keyed(Fold(), tick=1000) | WriteToJsonl("out")
with _interrupt.interruptible(delivery):
    p.run()
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_files_are_gone_after_an_interrupt(children, tmp_path, sent):
    result = subprocess.run([sys.executable, "-c", INTERRUPTED, sent], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (130, "1\n"), result.stderr
    assert not files()


def test_every_transform_gives_its_answer_through_files(tiny, monkeypatch):
    read = []
    real = _spill._read
    monkeypatch.setattr(_spill, "_read", lambda references: read.append(references.num_rows) or real(references))
    every = cases()
    found = matrix.run({case.name: ways.trial(case) for case in every}, matrix.bounded, matrix.FNAPI)
    for case in every:
        assert found[case.name] == (matrix.canonical(case.expected(ways.inputs(case))), []), case.name
    assert len(read) > len(every)


def test_other_runners_group_by_themselves():
    p = beam.Pipeline(runner="PrismRunner")
    sharded = p | beam.Create([(0, rows_of(1, 1)[0])])
    _ = (sharded,) | GroupByShard(KEYS, 1)
    labels = [part.full_label for part in p.transforms_stack[0].parts[-1].parts]
    shutil.rmtree(p.local_tempdir)
    assert labels == ["GroupByShard/GroupByKey"]


rows_by_name = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=40)),
        st.tuples(st.just("others"), st.lists(st.integers(0, 30), min_size=1, max_size=40)),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(drawn=rows_by_name, most=st.integers(0, 3000), part_bytes=st.integers(1, 3000))
def test_parts_have_all_rows_and_share_no_key(drawn, most, part_bytes):
    """Whatever fits in memory: every row once, and all of a key in one part; no files are left."""
    batches = [marked(name, values, i) for i, (name, values) in enumerate(drawn)]
    with tempfile.TemporaryDirectory() as folder:
        gathered = Parts(folder, most)
        for batch in batches:
            gathered.add(7, batch)
        part = _PartFn(KEYS, 1, folder, most, part_bytes)
        given = [piece for _, pieces in gathered.close() for piece in pieces]
        parts = [[row for rows in part for row in told(rows)] for _, part in part.process((7, given))] if given else []
        gathered.remove()
        assert not list(Path(folder).iterdir())
    assert sorted(repr(row) for rows in parts for row in rows) == sorted(repr(row) for batch in batches for row in told(batch))
    keys = [key for rows in parts for key in {(name, row.get("key"), row.get("number")) for name, row in rows}]
    assert len(keys) == len(set(keys))


def marked(name: str, values: list, number: int) -> RowBatch:
    columns = {"key": values} if name == "rows" else {"number": values, "name": ["x"] * len(values)}
    return mark(RowBatch.from_pydict({**columns, "batch": [number] * len(values)}), name=name)


def told(rows: RowBatch) -> list[tuple[str, dict]]:
    return [(fact(rows, "name"), row) for row in rows.to_pylist()]


def test_parts_are_as_small_as_they_were_asked_for(temporary):
    batch = mark(pa.concat_batches(rows_of(50_000, 20_000)), name="rows")
    sizes = []
    for _, part in _PartFn(KEYS, 1, str(temporary), 1 << 16, 1 << 17).process((0, [batch])):
        sizes.append((part.nbytes, sum(rows.num_rows for rows in part)))
    assert sum(rows for _, rows in sizes) == 50_000
    assert max(size for size, _ in sizes) <= 1 << 17
    assert len(sizes) < 4 * batch.nbytes >> 17


def test_rows_of_one_key_are_not_parted_again_and_again(temporary):
    """Each attempt that is under way has a file."""
    batch = mark(pa.concat_batches(rows_of(1000, 1)), name="rows")
    attempts = [len(list(temporary.iterdir())) for _ in _PartFn(KEYS, 1, str(temporary), 0, 100).process((0, [batch]))]
    assert attempts == [1]


def test_a_part_can_be_read_again(temporary):
    gathered = Parts(str(temporary), 10)
    gathered.add(0, mark(rows_of(50, 5)[0], name="rows"))
    ((_, pieces),) = gathered.close()
    part = Part(pieces)
    assert [told(rows) for rows in part] == [told(rows) for rows in part] != []


def test_what_was_parted_is_parted_further():
    (batch,) = cut(pa.concat_batches(rows_of(5000, 5000)), 5000)
    _, shard = split(batch, ["key"], 4)[2]
    assert len(split(shard, ["key"], 4)) == 1
    assert [place for place, _ in split(shard, ["key"], 8, taken=4)] == list(range(8))
