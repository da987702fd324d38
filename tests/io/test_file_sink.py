"""File sinks: what is staged, what is published, and that no death on the way loses or doubles a row."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.localfilesystem import LocalFileSystem
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError
from tiebeam.io import _manifest
from tiebeam.io._file_sink import _SummedStream
from tiebeam.io._manifest import committed_files, committed_runs, files
from tiebeam.io._publication import LostPiecesError
from tiebeam.io.parquet import ReadFromParquet, WriteToParquet
from tiebeam.rows import RowBatch


def rows(*pairs):
    return RowBatch.from_pydict({"k": pa.array([k for k, _ in pairs], pa.string()), "n": pa.array([n for _, n in pairs], pa.int64())})


def stage(sink, run, *batches):
    writer = sink.writer(run)
    for batch in batches:
        assert not writer.write(batch)
    return writer.close()


def write(path, run, *pairs, **options):
    sink = WriteToParquet(str(path), **options)
    return sink.publish(run, stage(sink, run, rows(*pairs)))


def table(path):
    """The rows that a reader who follows the manifest sees."""
    names = committed_files(str(path))
    if names is None:
        return []
    found = []
    for name in names:
        values = pq.ParquetFile(name).read().to_pydict()
        part = Path(name).parent.name
        keys = values.get("k") or [part.removeprefix("k=")] * len(values["n"])
        found += zip(keys, values["n"], strict=True)
    return sorted(found)


def tree(path):
    """Every file below a folder: its bytes and when it was written."""
    found = [p for p in sorted(Path(path).rglob("*")) if p.is_file()]
    return {str(p.relative_to(path)): (p.read_bytes(), p.stat().st_mtime_ns) for p in found}


def assert_tidy(path):
    """Nothing is left but the table and its manifest."""
    data = {str(p) for p in Path(path).rglob("*.parquet")}
    assert data == set(committed_files(str(path)))
    assert not (Path(path) / "_staging").exists()


# ---- what is written


def test_manifest_tells_rows_bytes_checksum_and_ranges(tmp_path):
    import hashlib

    write(tmp_path, "r", ("a", 3), ("b", 1), ("b", None))
    [entry] = files(str(tmp_path))
    data = (tmp_path / entry["path"]).read_bytes()
    assert entry["path"] == "r-00000.parquet"
    assert entry["rows"] == 3
    assert entry["bytes"] == len(data)
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert entry["columns"] == {"k": "string", "n": "int64"}
    assert entry["min"] == {"k": "a", "n": 1}
    assert entry["max"] == {"k": "b", "n": 3}
    assert entry["partition"] == {}


def test_ranges_of_other_types_over_several_batches(tmp_path):
    def batch(values):
        return RowBatch.from_pydict(
            {
                "time": pa.array([v * 1001 for v in values], pa.timestamp("ns", "UTC")),
                "day": pa.array(values, pa.int32()).cast(pa.date32()),
                "price": pa.array(values, pa.decimal128(5, 1)),
                "real": pa.array([*map(float, values[:-1]), float("nan")]),
                "wide": pa.array([float("inf")] * len(values)),
                "long": pa.array(["x" * 100] * len(values)),
                "none": pa.nulls(len(values), pa.int8()),
                "list": pa.array([[v] for v in values]),
            }
        )

    sink = WriteToParquet(str(tmp_path))
    sink.publish("r", stage(sink, "r", batch([5, 7, 6]), batch([9, 2, 8])))
    [entry] = files(str(tmp_path))
    assert entry["min"] == {"time": "1970-01-01 00:00:00.000002002Z", "day": "1970-01-03", "price": "2.0", "real": 2.0}
    assert entry["max"] == {"time": "1970-01-01 00:00:00.000009009Z", "day": "1970-01-10", "price": "9.0", "real": 9.0}


def test_nothing_is_visible_before_publishing(tmp_path):
    sink = WriteToParquet(str(tmp_path))
    staged = stage(sink, "r", rows(("a", 1)))
    assert [p.suffix for p in tmp_path.rglob("*") if p.is_file()] == [".staged"]
    assert committed_files(str(tmp_path)) is None
    assert sink.publish("r", staged)
    assert table(tmp_path) == [("a", 1)]
    assert_tidy(tmp_path)


def test_files_roll_at_their_size(tmp_path):
    sink = WriteToParquet(str(tmp_path), target_file_bytes=1)
    sink.publish("r", stage(sink, "r", *[rows(("a", i)) for i in range(5)]))
    assert [f["rows"] for f in files(str(tmp_path))] == [1] * 5
    assert table(tmp_path) == [("a", i) for i in range(5)]


def test_more_partitions_than_open_files(tmp_path):
    sink = WriteToParquet(str(tmp_path), partition_by=("k",))
    many = rows(*[(f"p{i:03}", i) for i in range(150)])
    sink.publish("r", stage(sink, "r", many, many))
    assert len(files(str(tmp_path))) == 150
    assert Counter(table(tmp_path)) == Counter({(f"p{i:03}", i): 2 for i in range(150)})


def test_open_files_are_bounded(tmp_path, monkeypatch):
    from tiebeam.io import _file_sink

    monkeypatch.setattr(_file_sink, "GATHERED_BYTES", 1)
    monkeypatch.setattr(_file_sink, "MAX_OPEN_FILES", 4)
    sink = WriteToParquet(str(tmp_path), partition_by=("k",))
    writer = sink.writer("r")
    for _ in range(2):
        for i in range(10):
            writer.write(rows((f"p{i}", i)))
            assert len(writer.open) <= 4
    sink.publish("r", writer.close())
    assert Counter(table(tmp_path)) == Counter({(f"p{i}", i): 2 for i in range(10)})


def test_different_schemas_become_different_files(tmp_path):
    sink = WriteToParquet(str(tmp_path))
    other = RowBatch.from_pydict({"k": ["b"], "n": pa.array([2], pa.int64()), "more": [1.5]})
    sink.publish("r", stage(sink, "r", rows(("a", 1)), other, rows(("c", 3))))
    assert sorted(f["rows"] for f in files(str(tmp_path))) == [1, 2]
    assert table(tmp_path) == [("a", 1), ("b", 2), ("c", 3)]


ODD = ["a/b", "..", "a b", "ü", "x=y", "%41", "100%", "", None, "__HIVE_DEFAULT_PARTITION__", "*?[1]", "_x", "a\nb", "7"]


def test_odd_partition_values_come_back(tmp_path):
    sink = WriteToParquet(str(tmp_path), partition_by=("k",))
    sink.publish("r", stage(sink, "r", rows(*[(k, i) for i, k in enumerate(ODD)])))
    assert {p.parent.parent for p in tmp_path.rglob("*.parquet")} == {tmp_path}
    assert Counter(f["partition"]["k"] for f in files(str(tmp_path))) == Counter(ODD)
    found = ReadFromParquet(str(tmp_path), positions=False).sample(100).to_pylist()
    assert sorted((r["n"], r["k"]) for r in found) == list(enumerate(ODD))


def test_partitions_of_several_columns_and_types(tmp_path):
    batch = RowBatch.from_pydict(
        {
            "day": pa.array([0, 0, 1, None], pa.int32()).cast(pa.date32()),
            "shop": pa.array([7, 8, 7, 7], pa.uint8()),
            "kind": pa.array(["a", None, "a", "a"]).dictionary_encode(),
            "open": [True, True, True, False],
            "n": [1, 2, 3, 4],
        }
    )
    sink = WriteToParquet(str(tmp_path), partition_by=("day", "shop", "kind", "open"))
    sink.publish("r", stage(sink, "r", batch))
    null = "__HIVE_DEFAULT_PARTITION__"
    assert {str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("*.parquet")} == {
        "day=1970-01-01/shop=7/kind=a/open=true",
        f"day=1970-01-01/shop=8/kind={null}/open=true",
        "day=1970-01-02/shop=7/kind=a/open=true",
        f"day={null}/shop=7/kind=a/open=false",
    }
    assert [f["columns"] for f in files(str(tmp_path))] == [{"n": "int64"}] * 4


def test_order_in_a_partition_is_kept_and_no_piece_keeps_its_batch_alive(tmp_path):
    sink = WriteToParquet(str(tmp_path), partition_by=("k",))
    writer = sink.writer("r")
    writer.write(rows(*[("ab"[i % 2], i) for i in range(20_000)]))
    held = sum(b.get_total_buffer_size() for g in writer.gathered.values() for b in g.batches)
    assert held < 2 * 20_000 * 8 + 20_000
    sink.publish("r", writer.close())
    for name in committed_files(str(tmp_path)):
        values = pq.ParquetFile(name).read()["n"].to_pylist()
        assert values == sorted(values)


def test_values_too_long_for_a_folder_are_dead_letters_and_neighbours_are_not(tmp_path):
    sink = WriteToParquet(str(tmp_path), partition_by=("k",))
    writer = sink.writer("r")
    [refused] = writer.write(rows(("a", 1), ("x" * 300, 2), ("b", 3)))
    sink.publish("r", writer.close())
    assert table(tmp_path) == [("a", 1), ("b", 3)]
    [letter] = refused.batch.to_pylist()
    assert letter["reason"] == "partition_too_long"
    assert pa.ipc.open_stream(letter["original"]).read_all().to_pylist() == [{"k": "x" * 300, "n": 2}]


@pytest.mark.parametrize(
    ("options", "batch", "says"),
    [
        ({"partition_by": ("z",)}, rows(("a", 1)), "no column 'z'"),
        ({"partition_by": ("k", "n")}, rows(("a", 1)), "no column is left"),
        ({"partition_by": ("l",)}, RowBatch.from_pydict({"l": [[1]], "n": [1]}), "cannot be a partition"),
    ],
)
def test_impossible_partitions_are_refused(tmp_path, options, batch, says):
    writer = WriteToParquet(str(tmp_path), **options).writer("r")
    with pytest.raises(ConfigError, match=says):
        writer.write(batch)


@pytest.mark.parametrize(
    "options",
    [{"mode": "replace_partitions"}, {"mode": "overwrite"}, {"partition_by": ("a", "a")}, {"target_file_bytes": 0}, {"path": " "}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        WriteToParquet(**{"path": "out", **options})


# ---- what is published


def test_modes(tmp_path):
    write(tmp_path, "1", ("a", 1), ("b", 2), (None, 3), partition_by=("k",))
    write(tmp_path, "2", ("a", 4), partition_by=("k",))
    null = "__HIVE_DEFAULT_PARTITION__"
    assert table(tmp_path) == [(null, 3), ("a", 1), ("a", 4), ("b", 2)]
    write(tmp_path, "3", ("a", 5), (None, 6), partition_by=("k",), mode="replace_partitions")
    assert table(tmp_path) == [(null, 6), ("a", 5), ("b", 2)]
    write(tmp_path, "4", ("c", 7), partition_by=("k",), mode="replace")
    assert table(tmp_path) == [("c", 7)]
    assert not (tmp_path / "k=a").exists()
    assert_tidy(tmp_path)
    assert committed_runs(str(tmp_path)) == {"1", "2", "3", "4"}


def test_replacing_with_nothing_empties_the_table(tmp_path):
    write(tmp_path, "1", ("a", 1))
    sink = WriteToParquet(str(tmp_path), mode="replace")
    assert sink.publish("2", [])
    assert committed_files(str(tmp_path)) == []
    assert not sink.publish("2", [])
    assert_tidy(tmp_path)


def test_same_run_twice_changes_nothing(tmp_path):
    write(tmp_path, "r", ("a", 1), ("b", 2), partition_by=("k",))
    before = tree(tmp_path)
    for mode in ("append", "replace", "replace_partitions"):
        assert not write(tmp_path, "r", ("a", 1), ("b", 2), partition_by=("k",), mode=mode)
    assert tree(tmp_path) == before
    assert_tidy(tmp_path)


def foreign(path, name, *pairs):
    path = Path(path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_batches([rows(*pairs)]), path)


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_folder_without_manifest_is_taken_over(tmp_path, mode):
    foreign(tmp_path, "old.parquet", ("a", 1))
    foreign(tmp_path, "k=a b/old.parquet", ("a", 2))
    foreign(tmp_path, "_hidden/x.parquet", ("h", 1))
    foreign(tmp_path, "other_table/x.parquet", ("o", 1))
    (tmp_path / "README.md").write_text("mine")
    write(tmp_path, "r", ("b", 3), mode=mode)
    assert table(tmp_path) == [("a", 1), ("a", 2), ("b", 3)] if mode == "append" else [("b", 3)]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "_hidden/x.parquet").exists()
    assert (tmp_path / "other_table/x.parquet").exists()
    assert (tmp_path / "old.parquet").exists() == (mode == "append")


def test_a_partition_written_by_others_with_other_quoting_is_replaced(tmp_path):
    foreign(tmp_path, "k=a b/old.parquet", ("a b", 2))
    foreign(tmp_path, "k=b/old.parquet", ("b", 2))
    write(tmp_path, "r", ("a b", 3), mode="replace_partitions", partition_by=("k",))
    assert table(tmp_path) == [("a%20b", 3), ("b", 2)]


def test_a_piece_that_is_gone_is_a_loud_error_and_nothing_changes(tmp_path):
    write(tmp_path, "1", ("a", 1))
    sink = WriteToParquet(str(tmp_path), mode="replace")
    staged = stage(sink, "2", rows(("b", 2))) + stage(sink, "2", rows(("c", 3)))
    lost = tmp_path / "_staging" / "2" / f"{staged[0].handle}.staged"
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(LostPiecesError, match="neither staged nor visible"):
        sink.publish("2", staged)
    assert table(tmp_path) == [("a", 1)]
    lost.write_bytes(kept)
    assert sink.publish("2", staged)
    assert table(tmp_path) == [("b", 2), ("c", 3)]


def test_what_dead_bundles_of_the_run_have_staged_is_swept_and_that_of_others_is_not(tmp_path):
    sink = WriteToParquet(str(tmp_path))
    stage(sink, "r", rows(("dead", 1)))
    other = stage(sink, "other", rows(("b", 2)))
    sink.publish("r", stage(sink, "r", rows(("a", 1))))
    assert table(tmp_path) == [("a", 1)]
    assert not (tmp_path / "_staging/r").exists()
    assert sink.publish("other", other)
    assert table(tmp_path) == [("a", 1), ("b", 2)]
    assert_tidy(tmp_path)


def test_discard_removes_what_a_run_staged_and_nothing_else(tmp_path):
    sink = WriteToParquet(str(tmp_path))
    write(tmp_path, "old", ("a", 1))
    stage(sink, "r", rows(("dead", 1)))
    other = stage(sink, "other", rows(("b", 2)))
    sink.discard("r")
    assert not (tmp_path / "_staging/r").exists()
    sink.publish("other", other)
    sink.discard("other")
    assert table(tmp_path) == [("a", 1), ("b", 2)]
    assert_tidy(tmp_path)


def test_discard_leaves_a_publication_under_way_to_be_completed(tmp_path):
    sink = WriteToParquet(str(tmp_path))
    staged = stage(sink, "r", rows(("a", 1)), rows(("b", 2)))
    for n in range(1, 100):
        fail_at(n, tmp_path, lambda: sink.publish("r", staged), Killed(), True)
        if list(tmp_path.glob("_staging/_intents/r.json")):
            break
    sink.discard("r")
    write(tmp_path, "next", ("c", 3))
    assert table(tmp_path) == [("a", 1), ("b", 2), ("c", 3)]


def test_retired_files_leave_the_table_in_one_step(tmp_path):
    write(tmp_path, "1", ("a", 1))
    write(tmp_path, "2", ("b", 2))
    sink = WriteToParquet(str(tmp_path))
    first, second = sink.files()
    for _ in range(2):
        sink.retire("replayed", [first, str(tmp_path / "not-there.parquet")])
        assert sink.files() == [second]
        assert_tidy(tmp_path)
    assert table(tmp_path) == [("b", 2)]


@pytest.mark.parametrize("run", ["2026-11-24T10:00/x", "_hidden", "..", "ü" * 200, "a.intent", "k=v"])
def test_any_name_of_a_run(tmp_path, run):
    assert write(tmp_path, run, ("a", 1))
    assert write(tmp_path, run + "2", ("b", 2))
    assert not write(tmp_path, run, ("a", 1))
    assert committed_runs(str(tmp_path)) == {run, run + "2"}
    assert ReadFromParquet(str(tmp_path)).sample(9).num_rows == 2


# ---- dying on the way


class Killed(BaseException):
    pass


class _Faults:
    """Lets the n-th file operation below a folder fail, by Python's audit events: no code of ours is replaced."""

    EVENTS = frozenset({"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir"})

    def __init__(self):
        self.root, self.at, self.seen, self.error, self.for_good = None, 0, 0, None, False
        sys.addaudithook(self)

    def __call__(self, event, args):
        if self.root is None or event not in self.EVENTS or not str(args[0]).startswith(self.root):
            return
        self.seen += 1
        if self.seen == self.at or (self.for_good and self.seen > self.at):
            raise self.error

    @contextlib.contextmanager
    def at_operation(self, n, root, error, for_good):
        self.root, self.at, self.seen, self.error, self.for_good = str(root), n, 0, error, for_good
        try:
            yield self
        finally:
            self.root = None


FAULTS = _Faults()
OLD = [("a", 1), ("b", 2)]
NEW = {
    "append": sorted([*OLD, ("b", 3), ("c", 4)]),
    "replace": [("b", 3), ("c", 4)],
    "replace_partitions": [("a", 1), ("b", 3), ("c", 4)],
}


def fail_at(n, path, action, error, for_good):
    """Runs an action that fails at its n-th file operation; False when it had fewer."""
    with FAULTS.at_operation(n, path, error, for_good):
        try:
            action()
        except (Killed, OSError) as e:
            assert e.args[:1] == error.args[:1]  # the writer adds the name of the file
            return True
        return FAULTS.seen >= n


@pytest.mark.parametrize("fault", ["death", "failure"])
@pytest.mark.parametrize("mode", list(NEW))
def test_a_publication_that_fails_at_any_file_operation_is_all_or_nothing(tmp_path, mode, fault):
    model, path = tmp_path / "model", tmp_path / "table"
    write(model, "old", *OLD, partition_by=("k",))
    sink = WriteToParquet(str(model), mode=mode, partition_by=("k",))
    staged = stage(sink, "new", rows(("b", 3), ("c", 4)))
    sink = WriteToParquet(str(path), mode=mode, partition_by=("k",))
    error = Killed() if fault == "death" else OSError(errno.EIO, "injected")
    seen, n = set(), 1
    while True:
        shutil.copytree(model, path)
        failed = fail_at(n, path, lambda: sink.publish("new", staged), error, fault == "death")
        now = table(path)
        assert now in (OLD, NEW[mode])
        seen.add(tuple(now))
        if n % 2:
            sink.publish("new", staged)
            assert table(path) == NEW[mode]
        else:
            write(path, "next", ("z", 9), partition_by=("k",))
            assert table(path) in (sorted([*OLD, ("z", 9)]), sorted([*NEW[mode], ("z", 9)]))
            if len(now) == len(NEW[mode]) and now == NEW[mode]:
                assert ("c", 4) in table(path)
            begun = ("c", 4) in table(path)
            assert sink.publish("new", staged) == (not begun)
        assert_tidy(path)
        shutil.rmtree(path)
        if not failed:
            break
        n += 1
    assert n > 25
    assert seen == {tuple(OLD), tuple(NEW[mode])}


@pytest.mark.parametrize("fault", ["death", "failure"])
def test_a_first_publication_into_a_foreign_folder_is_all_or_nothing(tmp_path, fault):
    model, path = tmp_path / "model", tmp_path / "table"
    foreign(model, "x.parquet", ("f", 0))
    staged = stage(WriteToParquet(str(model)), "new", rows(("a", 1)))
    sink = WriteToParquet(str(path))
    error = Killed() if fault == "death" else OSError(errno.EIO, "injected")
    n = 1
    while True:
        shutil.copytree(model, path)
        failed = fail_at(n, path, lambda: sink.publish("new", staged), error, fault == "death")
        assert table(path) in ([], [("f", 0)], [("a", 1), ("f", 0)])
        assert bool(table(path)) == (committed_files(str(path)) is not None)
        sink.publish("new", staged)
        assert table(path) == [("a", 1), ("f", 0)]
        assert_tidy(path)
        shutil.rmtree(path)
        if not failed:
            break
        n += 1


def test_what_a_failed_bundle_has_staged_is_removed_at_any_failure(tmp_path):
    n = 1
    while True:
        path = tmp_path / str(n)
        writer, staged = WriteToParquet(str(path), partition_by=("k",)).writer("r"), []

        def bundle(writer=writer, staged=staged):
            try:
                writer.write(rows(("a", 1), ("b", 2)))
            except BaseException:
                writer.abort()
                raise
            staged += writer.close()

        failed = fail_at(n, path, bundle, OSError(errno.EIO, "injected"), False)
        if not failed:
            break
        assert len([p for p in path.rglob("*") if p.is_file()]) == len(staged)  # some failures, as of a needless mkdir, pass
        n += 1
    assert n > 7


_step = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["append", "replace", "replace_partitions"]),
    st.sets(st.sampled_from("ab"), min_size=1),
    st.none() | st.integers(1, 40),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps=st.lists(_step, min_size=2, max_size=7))
def test_any_sequence_of_runs_and_deaths_equals_a_simple_model(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("model")
    first = {}  # a run's mode and partitions are those of its first attempt, but each attempt stages anew
    states = {((), frozenset())}

    def after(state, run):
        content, done = state
        if run in done:
            return state
        mode, parts = first[run]
        new = [(k, 10 * run + i) for i, k in enumerate(sorted(parts))]
        kept = [] if mode == "replace" else [c for c in content if mode == "append" or c[0] not in parts]
        return tuple(sorted([*kept, *new])), done | {run}

    for run, *chosen, death in [*steps, *[(step[0], *step[1:3], None) for step in steps]]:
        mode, parts = first.setdefault(run, chosen)
        sink = WriteToParquet(str(path), mode=mode, partition_by=("k",))
        staged = stage(sink, f"run{run}", rows(*[(k, 10 * run + i) for i, k in enumerate(sorted(parts))]))
        # the one publication that was under way may be completed first
        reached = {s for state in states for s in (state, *(after(state, r) for r in first if r != run))}
        if death is None:
            sink.publish(f"run{run}", staged)
            reached = {after(s, run) for s in reached}
        else:
            fail_at(death, path, lambda s=sink, r=run, p=staged: s.publish(f"run{r}", p), Killed(), True)
            reached |= {after(s, run) for s in reached}
        visible = tuple(table(path))
        states = {s for s in reached if s[0] == visible}
        assert states, f"{visible} is none of {reached}"
        runs = {int(r[3:]) for r in committed_runs(str(path))}
        states = {s for s in states if s[1] == runs}
        assert states, f"{runs} were published, and the table is {visible}"


# ---- two at once


def test_two_threads_publish_different_runs_at_one_path(tmp_path):
    def publish(who):
        for i in range(6):
            write(tmp_path, f"{who}{i}", (who, i), mode="append", partition_by=("k",))

    run_together(lambda: publish("a"), lambda: publish("b"))
    assert table(tmp_path) == [(who, i) for who in "ab" for i in range(6)]
    assert_tidy(tmp_path)


@pytest.mark.parametrize("mode", ["append", "replace", "replace_partitions"])
def test_two_threads_publish_the_same_run(tmp_path, mode):
    for attempt in range(8):
        path = tmp_path / str(attempt)
        write(path, "old", ("a", 0), partition_by=("k",))
        done = []

        def publish(path=path, done=done):
            done.append(write(path, "r", ("a", 1), ("b", 2), mode=mode, partition_by=("k",)))

        run_together(publish, publish)
        assert sorted(done) == [False, True]
        kept = [("a", 0)] if mode == "append" else []
        assert table(path) == [*kept, ("a", 1), ("b", 2)]
        assert_tidy(path)


def test_a_twin_that_publishes_between_two_looks_at_the_log(tmp_path, monkeypatch):
    sink, twins, adopt = WriteToParquet(str(tmp_path)), [], _manifest.adopt

    def twin_is_faster(*args):
        if not twins:
            twins.append("begun")
            twins.append(write(tmp_path, "r", ("a", 1)))
        adopt(*args)

    monkeypatch.setattr(_manifest, "adopt", twin_is_faster)
    assert not sink.publish("r", stage(sink, "r", rows(("a", 1))))
    assert twins == ["begun", True]
    assert table(tmp_path) == [("a", 1)]
    assert_tidy(tmp_path)


def run_together(*actions):
    barrier, errors = threading.Barrier(len(actions)), []

    def run(action):
        barrier.wait()
        try:
            action()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(a,)) for a in actions]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


WRITER = """
import sys, pyarrow as pa
from tiebeam.io.parquet import WriteToParquet
path, who, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True); sys.stdin.readline()
for i in range(runs):
    sink = WriteToParquet(path, mode="append")
    writer = sink.writer(f"{who}{i}")
    writer.write(pa.RecordBatch.from_pydict({"k": [who], "n": [i]}))
    sink.publish(f"{who}{i}", writer.close())
"""


def python(code, *args, **options):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, args)], env=env, text=True, **options)


def test_two_processes_publish_at_one_path(tmp_path):
    writers = [python(WRITER, tmp_path, who, 10, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for who in "ab"]
    for w in writers:
        assert w.stdout.readline() == "ready\n"
    for w in writers:
        w.stdin.write("go\n")
        w.stdin.flush()
    assert [w.wait() for w in writers] == [0, 0]
    assert table(tmp_path) == [(who, i) for who in "ab" for i in range(10)]
    assert_tidy(tmp_path)


# ---- through a pipeline


def numbered(i):
    return rows(*[("ab"[n % 2], n) for n in range(10 * i, 10 * i + 10)])


def run_pipeline(path, run, sink=None, flags=(), fail=False):
    def explode(batch):
        raise ValueError("planted")

    options = PipelineOptions(["--runner=FnApiRunner", *flags])
    with beam.Pipeline(options=options) as p, Delivery(p, WriteToParquet(f"{path}.rejected"), run_id=run):
        batches = p | beam.Create(range(4)) | beam.Map(numbered).with_output_types(RowBatch)
        batches | (sink or WriteToParquet(str(path), partition_by=("k",)))
        if fail:
            batches | "Fail" >> beam.Map(explode)


EXPECTED = sorted(("ab"[n % 2], n) for n in range(40))


@pytest.mark.parametrize("flags", [(), ("--direct_runner_bundle_repeat=2",)])
def test_a_pipeline_writes_each_row_once_and_its_repetition_nothing(tmp_path, flags):
    path = tmp_path / "out"
    run_pipeline(path, "r", flags=flags)
    assert table(path) == EXPECTED
    assert_tidy(path)
    before = tree(path)
    run_pipeline(path, "r", flags=flags)
    assert tree(path) == before
    assert_tidy(path)


def test_a_pipeline_that_fails_leaves_the_table_as_it_was(tmp_path):
    path = tmp_path / "out"
    write(path, "old", ("a", 1), partition_by=("k",))
    before = {name: facts for name, facts in tree(path).items() if not name.startswith("_staging")}
    with pytest.raises(Exception, match="planted"):
        run_pipeline(path, "r", fail=True)
    assert {name: facts for name, facts in tree(path).items() if not name.startswith("_staging")} == before
    run_pipeline(path, "r")
    assert table(path) == sorted([*EXPECTED, ("a", 1)])
    assert_tidy(path)


def test_a_replacing_pipeline_without_rows_empties_the_table(tmp_path):
    path = tmp_path / "out"
    write(path, "old", ("a", 1))
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, WriteToParquet(f"{path}.rejected"), run_id="r"):
        p | beam.Create([]) | beam.Map(numbered).with_output_types(RowBatch) | WriteToParquet(str(path), mode="replace")
    assert table(path) == []


# ---- trouble with the place


def test_ping_refuses_a_file_and_what_lies_below_one(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is a file"):
            WriteToParquet(str(path)).ping()
    WriteToParquet(str(tmp_path / "new" / "folder")).ping()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_ping_refuses_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=r"no permission|is a file") as caught:
            WriteToParquet(str(tmp_path / "out")).ping()
    finally:
        if user == 0:
            os.seteuid(0)
        tmp_path.chmod(0o755)
    assert "no permission" in str(caught.value)


def test_ping_refuses_an_unknown_scheme():
    with pytest.raises(ConfigError, match="nowhere"):
        WriteToParquet("nowhere://bucket/x").ping()


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    script = """
    import os, resource, sys, pyarrow as pa
    from tiebeam.io.parquet import WriteToParquet
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    writer = WriteToParquet(sys.argv[1], compression="none").writer("r")
    try:
        for _ in range(20):
            writer.write(pa.RecordBatch.from_pydict({"x": pa.array([os.urandom(1000) for _ in range(1000)])}))
        writer.close()
    except OSError as e:
        print(e.errno, e.filename)
    print([f for _, _, files in os.walk(sys.argv[1]) for f in files])
    """
    process = python(script, tmp_path, stdout=subprocess.PIPE)
    out = process.communicate()[0].splitlines()
    assert out[0].startswith(f"{errno.EFBIG} {tmp_path}/_staging/r/")
    assert out[1] == "[]"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left_reaches_the_writer_as_such():
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left") as caught:
        writer = pq.ParquetWriter(_SummedStream(full), rows().schema)
        writer.write_batch(rows(("a", 1)))
        writer.close()
    assert caught.value.errno == errno.ENOSPC


# ---- other filesystems


class ShelfFileSystem(LocalFileSystem):
    """`shelf://x` is the local path `/x`: what Beam's FileSystems offer, and no more."""

    @classmethod
    def scheme(cls):
        return "shelf"

    def join(self, base, *paths):
        return "/".join([base.rstrip("/"), *paths])

    def match(self, patterns, limits=None):
        found = super().match([local(p) for p in patterns], limits)
        for result, pattern in zip(found, patterns, strict=True):
            result.pattern = pattern
            for m in result.metadata_list:
                m.path = "shelf:/" + m.path
        return found

    def _list(self, prefix):
        return super()._list(local(prefix))

    def mkdirs(self, path):
        super().mkdirs(local(path))

    def create(self, path, *args, **options):
        return super().create(local(path), *args, **options)

    def open(self, path, *args, **options):
        return super().open(local(path), *args, **options)

    def rename(self, sources, targets):
        super().rename([local(s) for s in sources], [local(t) for t in targets])

    def exists(self, path):
        return super().exists(local(path))

    def delete(self, paths):
        for path in paths:
            Path(local(path)).unlink()


def local(path):
    return path.removeprefix("shelf:/")


def test_a_table_on_another_filesystem(tmp_path):
    path = f"shelf:/{tmp_path}/out"
    assert write(path, "1", ("a", 1), ("b", 2), partition_by=("k",))
    assert not write(path, "1", ("a", 1), ("b", 2), partition_by=("k",))
    assert write(path, "2", ("b", 3), partition_by=("k",), mode="replace_partitions")
    assert all(name.startswith("shelf://") for name in committed_files(path))
    assert table(tmp_path / "out") == [("a", 1), ("b", 3)]
    assert write(path, "3", ("c", 4), partition_by=("k",), mode="replace")
    assert table(tmp_path / "out") == [("c", 4)]
    assert {p.name for p in (tmp_path / "out").rglob("*.parquet")} == {"3-00000.parquet"}
    assert not [p for p in (tmp_path / "out" / "_staging").rglob("*") if p.is_file()]
    WriteToParquet(path).ping()


def test_a_publication_that_dies_on_another_filesystem_is_completed(tmp_path):
    n = 1
    while True:
        path = f"shelf:/{tmp_path}/{n}"
        write(path, "old", ("a", 1))
        sink = WriteToParquet(path, mode="replace")
        staged = stage(sink, "new", rows(("b", 2)))
        failed = fail_at(n, tmp_path, lambda s=sink, p=staged: s.publish("new", p), Killed(), True)
        assert table(tmp_path / str(n)) in ([("a", 1)], [("b", 2)])
        write(path, "next", ("z", 9))
        sink.publish("new", staged)
        assert ("b", 2) in table(tmp_path / str(n))
        assert len(table(tmp_path / str(n))) in (1, 2)
        if not failed:
            break
        n += 1


def test_manifest_is_plain_json(tmp_path):
    write(tmp_path, "r", ("ü", 1))
    log = sorted((tmp_path / "_manifest").iterdir())
    assert [p.name for p in log] == ["00000000000000000000.json", "00000000000000000001.json"]
    entry = json.loads(log[1].read_text(encoding="utf-8"))
    assert set(entry) == {"version", "run_id", "intent_id", "committed_at", "tiebeam", "add", "remove"}
