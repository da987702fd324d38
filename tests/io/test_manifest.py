"""The manifest: what a table consists of, told by a log whose entries are created once."""

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tiebeam.errors import BadFileError
from tiebeam.io import _publication
from tiebeam.io._folder import folder_at
from tiebeam.io._manifest import adopt, commit, committed_files, committed_runs, entries, files
from tiebeam.io.parquet import WriteToParquet
from tiebeam.rows import RowBatch


def file(name, **facts):
    return {"path": name, "rows": 1, "bytes": 10, "partition": {}, **facts}


def add(path, run, *names, replaced=lambda table: []):
    return commit(folder_at(str(path)), run, [file(n) for n in names], replaced, f"_staging/{run}")


def test_a_folder_without_manifest_has_none(tmp_path):
    assert committed_files(str(tmp_path)) is None
    assert committed_files(str(tmp_path / "absent")) is None
    assert committed_runs(str(tmp_path)) == set()
    assert files(str(tmp_path)) == []


def test_files_are_what_was_added_less_what_was_removed(tmp_path):
    add(tmp_path, "1", "a", "k=v/b")
    add(tmp_path, "2", "c", replaced=lambda table: [n for n in table if n == "a"])
    add(tmp_path, "3", replaced=lambda table: ["c"])
    assert committed_files(str(tmp_path) + "/") == [f"{tmp_path}/k=v/b"]
    assert committed_runs(str(tmp_path)) == {"1", "2", "3"}
    assert files(str(tmp_path)) == [file("k=v/b")]
    add(tmp_path, "4", replaced=list)
    assert committed_files(str(tmp_path)) == []


def test_a_run_is_committed_once(tmp_path):
    first = add(tmp_path, "1", "a")
    add(tmp_path, "2", "b")
    again = add(tmp_path, "1", "other")
    assert again == first
    assert committed_files(str(tmp_path)) == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert len(list((tmp_path / "_manifest").iterdir())) == 2


def test_entries_are_numbered_and_say_who_when_and_with_what(tmp_path):
    from tiebeam import __version__

    add(tmp_path, "1", "a")
    add(tmp_path, "2", "b")
    log = sorted((tmp_path / "_manifest").iterdir())
    assert [p.name for p in log] == [f"{n:020}.json" for n in range(2)]
    entry = json.loads(log[1].read_bytes())
    assert (entry["version"], entry["run_id"], entry["tiebeam"]) == (1, "2", __version__)
    assert entry["committed_at"].endswith("+00:00")
    assert entry["add"] == [file("b")]


def test_adoption_takes_data_files_and_happens_once(tmp_path):
    for name in ("a.csv", "b.csv.gz", "k=v/c.csv", "_x.csv", ".y.csv", "plain/d.csv", "notes.txt", "a.csv.bak"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("12345")
    for _ in range(2):
        adopt(folder_at(str(tmp_path)), ("csv",), "_staging/r")
    expected = [{"path": name, "bytes": 5, "partition": {}} for name in ("a.csv", "b.csv.gz")]
    assert files(str(tmp_path)) == [*expected, {"path": "k=v/c.csv", "bytes": 5, "partition": {"k": "v"}}]
    assert committed_runs(str(tmp_path)) == set()
    assert len(entries(folder_at(str(tmp_path)))) == 1


def test_writers_that_race_take_turns(tmp_path):
    barrier = threading.Barrier(4)

    def commits(who):
        barrier.wait()
        for i in range(5):
            add(tmp_path, f"{who}.{i}", f"{who}.{i}")

    threads = [threading.Thread(target=commits, args=(who,)) for who in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(Path(p).name for p in committed_files(str(tmp_path))) == [f"{w}.{i}" for w in range(4) for i in range(5)]
    assert len(entries(folder_at(str(tmp_path)))) == 20


def test_a_replacement_sees_what_a_faster_writer_added(tmp_path):
    add(tmp_path, "1", "a")
    raced = []

    def replaced(table):
        if not raced:
            raced.append(add(tmp_path, "2", "b"))
        return list(table)

    entry = add(tmp_path, "3", "c", replaced=replaced)
    assert entry["remove"] == ["a", "b"]
    assert committed_files(str(tmp_path)) == [f"{tmp_path}/c"]


def test_a_filesystem_without_links_will_do(tmp_path, monkeypatch):
    def no_links(self, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    folder = folder_at(str(tmp_path))
    assert folder.create("_manifest/x.json", b"first", "_staging/draft")
    assert not folder.create("_manifest/x.json", b"second", "_staging/draft")
    assert folder.read("_manifest/x.json") == b"first"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 7, "add": [], "remove": []}', b"\xff", b'{"version": 1, "add": 3}'])
def test_a_damaged_entry_is_named(tmp_path, damage):
    add(tmp_path, "1", "a")
    add(tmp_path, "2", "b")
    entry = tmp_path / "_manifest" / f"{1:020}.json"
    entry.write_bytes(damage)
    with pytest.raises(BadFileError, match=str(entry)):
        committed_files(str(tmp_path))


def test_a_missing_entry_is_not_passed_over(tmp_path):
    for run in "123":
        add(tmp_path, run, run)
    (tmp_path / "_manifest" / f"{1:020}.json").unlink()
    with pytest.raises(BadFileError, match="is missing"):
        committed_files(str(tmp_path))
    (tmp_path / "_manifest" / f"{0:020}.json").unlink()
    with pytest.raises(BadFileError, match="is missing"):
        committed_files(str(tmp_path))


def test_other_files_beside_the_log_do_not_matter(tmp_path):
    add(tmp_path, "1", "a")
    (tmp_path / "_manifest" / "notes.json").write_text("mine")
    (tmp_path / "_manifest" / f"{7:019}.json").write_text("mine")
    assert committed_files(str(tmp_path)) == [f"{tmp_path}/a"]


def test_what_was_staged_long_ago_and_never_published_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(_publication, "_swept", {})
    sink = WriteToParquet(str(tmp_path))
    old, fresh = tmp_path / "_staging" / "dead", tmp_path / "_staging" / "alive"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "piece.staged").write_bytes(b"x")
    long_ago = time.time() - _publication.ORPHAN_SECS - 60
    os.utime(old / "piece.staged", (long_ago, long_ago))
    writer = sink.writer("r")
    list(writer.write(RowBatch.from_pydict({"n": [1]})) or ())
    sink.publish("r", writer.close())
    assert not old.exists()
    assert (fresh / "piece.staged").exists()


def test_a_table_that_was_removed_and_made_anew_is_read_anew(tmp_path):
    """Entries are read once; those of another log at the same place are others."""
    for n in (1, 2):
        sink = WriteToParquet(str(tmp_path / "table"))
        writer = sink.writer(f"r{n}")
        list(writer.write(RowBatch.from_pydict({"n": [n]})) or ())
        sink.publish(f"r{n}", writer.close())
        assert [pq.read_table(file).column("n").to_pylist() for file in sink.files()] == [[n]]
        assert not sink.is_published(f"r{3 - n}")
        shutil.rmtree(tmp_path / "table")
