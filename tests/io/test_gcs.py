"""Paths gs://: what preconditions promise, who wins a race, what a death on the way leaves, and what is told before a run."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import uuid

import pyarrow as pa
import pytest

from support.http_proxy import proxy
from tiebeam import files, gcs
from tiebeam.errors import ConfigError
from tiebeam.io import _manifest
from tiebeam.io._folder import folder_at
from tiebeam.io.csv import ReadFromCsv
from tiebeam.io.jsonl import ReadFromJsonl, WriteToJsonl
from tiebeam.io.parquet import ReadFromParquet, WriteToParquet
from tiebeam.rows import RowBatch


@pytest.fixture
def table(gcs):
    """The path of a table that is not there yet."""
    return f"{gcs.bucket('tables')}/{uuid.uuid4().hex}"


def rows(*ns):
    return RowBatch.from_pydict({"n": pa.array(ns, pa.int64())})


def stage(sink, run, *batches):
    writer = sink.writer(run)
    for batch in batches:
        assert not writer.write(batch)
    return writer.close()


def write(path, run, *ns, **options):
    sink = WriteToParquet(path, **options)
    return sink.publish(run, stage(sink, run, rows(*ns)))


def ns_of(path, source=ReadFromParquet):
    sample = source(path).sample(1_000_000)
    return sorted(sample.column("n").to_pylist()) if sample is not None else []


def at_once(*calls):
    """Calls all in threads that start together; their results, in order."""
    gate, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(i):
        gate.wait()
        try:
            results[i] = calls[i]()
        except BaseException as e:
            results[i] = e

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


# ---- objects


def test_of_many_who_create_a_name_one_is_told_that_it_did(table):
    for number in range(5):
        told = at_once(*[lambda i=i, number=number: gcs.create(f"{table}/{number}", str(i).encode()) for i in range(8)])
        assert sorted(told) == [False] * 7 + [True]
        assert gcs.read(f"{table}/{number}") == str(told.index(True)).encode()


def test_who_created_a_name_is_told_so_though_the_answer_was_lost(gcs, table, monkeypatch):
    """The library tries again, and is refused for what it has made itself."""
    lost = []

    def judge(method, path, answered):
        if answered and method == "POST" and "/upload/" in path and len(lost) < 1:
            lost.append(path)
            return 503
        return None

    from tiebeam.gcs import create, forget_client

    with proxy(gcs.url, judge) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        forget_client()
        assert create(f"{table}/x", b"mine") is True
        assert len(lost) == 1
        assert create(f"{table}/x", b"another") is False


@pytest.mark.parametrize("name", ["a b", "ü/ß", "q?x=1&y#z", "100%", "%2F", "a+b", "x'\"`$", "[ab]*", "日本", "very" * 60])
def test_any_name(table, name):
    path = f"{table}/{name}/part.txt"
    assert gcs.create(path, b"1")
    assert gcs.read(path) == b"1"
    assert [found.path for found in gcs.below(f"{table}/{name}/")] == [path]
    assert gcs.move(path, f"{table}/moved")
    assert not gcs.move(path, f"{table}/moved"), "there is nothing to move any more"
    assert gcs.find(path) is None
    assert gcs.read(f"{table}/moved") == b"1"
    gcs.remove(path)


def test_an_object_is_there_when_its_stream_is_closed_and_not_before(table):
    small, large, given_up = (gcs.open_for_writing(f"{table}/{name}") for name in ("small", "large", "given up"))
    small.write(b"x")
    large.write(b"y" * (gcs.CHUNK_BYTES * 2 + 7))
    given_up.write(b"z" * (gcs.CHUNK_BYTES * 2))
    assert list(gcs.below(f"{table}/")) == []
    small.close()
    large.close()
    given_up.terminate()
    del given_up
    assert {found.path.rpartition("/")[2]: found.size for found in gcs.below(f"{table}/")} == {
        "small": 1,
        "large": gcs.CHUNK_BYTES * 2 + 7,
    }
    stream = gcs.open_for_reading(f"{table}/large")
    stream.seek(-3, 2)
    assert stream.read() == b"yyy"
    with pytest.raises(FileExistsError):
        again = gcs.open_for_writing(f"{table}/small")
        again.write(b"other")
        again.close()


def test_what_is_put_in_the_place_of_an_object_is_not_mixed_into_it(table):
    gcs.put(f"{table}/x", b"a" * gcs.BUFFER_BYTES * 2)
    stream = gcs.open_for_reading(f"{table}/x")
    assert stream.read(1) == b"a"
    gcs.put(f"{table}/x", b"b" * gcs.BUFFER_BYTES * 2)
    with contextlib.suppress(FileNotFoundError):  # a bucket without versions has it no more, and says so
        assert set(stream.read()) == {ord("a")}


def test_small_files_by_path(table):
    assert not files.exists(table)
    files.write(files.join(table, "_jobs", "one.json"), b"1")
    files.write(files.join(table, "_jobs", "one.json"), b"2")
    assert files.exists(table)
    assert files.exists(f"{table}/_jobs/one.json")
    assert files.ending(f"{table}/_jobs", ".json") == [f"{table}/_jobs/one.json"]
    assert files.read(f"{table}/_jobs/one.json") == b"2"
    files.remove(f"{table}/_jobs/one.json")
    assert files.ending(f"{table}/_jobs", ".json") == []


# ---- races


def test_threads_that_publish_runs_of_their_own_all_do(table):
    sink = WriteToParquet(table)
    staged = [stage(sink, f"r{i}", rows(i)) for i in range(6)]
    assert at_once(*[lambda i=i: sink.publish(f"r{i}", staged[i]) for i in range(6)]) == [True] * 6
    assert ns_of(table) == [0, 1, 2, 3, 4, 5]
    log = _manifest.entries(folder_at(table))
    assert [entry["version"] for entry in log] == list(range(7)), "one entry each, after that of the empty table"


def test_of_threads_that_publish_the_same_run_one_does(table):
    for run in ("r1", "r2", "r3"):
        sinks = [WriteToParquet(table) for _ in range(4)]
        staged = [stage(sink, run, rows(1, 2)) for sink in sinks]
        told = at_once(*[lambda i=i, run=run, sinks=sinks, staged=staged: sinks[i].publish(run, staged[i]) for i in range(4)])
        assert sorted(told, key=str) == [False] * 3 + [True], told
    assert ns_of(table) == [1, 1, 1, 2, 2, 2]


def test_replacing_runs_that_race_leave_the_rows_of_one(table):
    write(table, "before", 7)
    sink = WriteToParquet(table, mode="replace")
    staged = [stage(sink, f"r{i}", rows(i)) for i in range(4)]
    assert at_once(*[lambda i=i: sink.publish(f"r{i}", staged[i]) for i in range(4)]) == [True] * 4
    last = _manifest.entries(folder_at(table))[-1]["run_id"]
    assert ns_of(table) == [int(last[1:])]


PUBLISHER = """
    import sys, pyarrow as pa
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.rows import RowBatch
    path, number = sys.argv[1], int(sys.argv[2])
    told = []
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(4):
        for run, n in ((f"own-{number}-{i}", number * 10 + i), (f"shared-{i}", 100 + i)):
            sink = WriteToParquet(path)
            writer = sink.writer(run)
            writer.write(RowBatch.from_pydict({"n": pa.array([n], pa.int64())}))
            told.append((run, sink.publish(run, writer.close())))
    print(told)
"""


def test_of_processes_that_publish_the_same_runs_one_does(gcs, table):
    command = [sys.executable, "-c", textwrap.dedent(PUBLISHER), table]
    env = {**os.environ, **gcs.environment}
    running = [subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) for i in range(3)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [pair for process in running for pair in eval(process.communicate(timeout=300)[0])]
    assert all(done for run, done in told if run.startswith("own"))
    for i in range(4):
        assert sorted(done for run, done in told if run == f"shared-{i}") == [False, False, True]
    assert ns_of(table) == sorted([n * 10 + i for n in range(3) for i in range(4)] + [100 + i for i in range(4)])


# ---- deaths


class DiedError(Exception):
    pass


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_publication_that_dies_anywhere_is_completed_by_the_next_or_was_never_begun(table, mode, monkeypatch):
    """Every operation that changes something is, one test after the other, the last one: before it, or just after it."""
    real = {name: getattr(gcs, name) for name in ("create", "move", "remove")}
    died = 0
    for after in (False, True):
        for last in range(40):
            path = f"{table}-{mode}-{after}-{last}"
            write(path, "before", 7)
            sink = WriteToParquet(path, mode=mode)
            staged = stage(sink, "r1", rows(1), rows(2)) + stage(sink, "r1", rows(3))
            done = []

            def dying(name, *given, last=last, after=after, done=done):
                done.append(name)
                if len(done) > last:
                    if after and len(done) == last + 1:
                        real[name](*given)
                    raise DiedError
                return real[name](*given)

            for name in real:
                monkeypatch.setattr(gcs, name, lambda *given, name=name: dying(name, *given))
            try:
                sink.publish("r1", staged)
                died_here = False
            except DiedError:
                died_here = True
            finally:
                for name, function in real.items():
                    monkeypatch.setattr(gcs, name, function)
            wanted = [1, 2, 3] if mode == "replace" else [1, 2, 3, 7]
            assert ns_of(path) in ([7], wanted), "all or nothing"
            write(path, "next", 9)
            assert ns_of(path) in ([7, 9], sorted([*wanted, 9]))
            began = "r1" in _manifest.committed_runs(path)
            assert sink.publish("r1", staged) is not began
            assert "r1" in _manifest.committed_runs(path)
            if not died_here:
                break
            died += 1
        else:
            pytest.fail("it never came to its end")
    assert died > 10


def test_a_server_that_is_killed_while_a_table_is_written_costs_nothing(gcs, table):
    sink = WriteToParquet(table)
    writer = sink.writer("r1")
    writer.write(rows(*range(1000)))
    gcs.kill()
    threading.Timer(1.5, gcs.restart).start()
    staged = writer.close()
    assert sink.publish("r1", staged)
    assert ns_of(table) == list(range(1000))


# ---- listings


def test_a_table_of_many_objects(table):
    wanted = [f"{table}/day={i % 7}/{i:05}.jsonl" for i in range(1100)]
    gcs.each(lambda path: gcs.create(path, b'{"n": 1}\n'), wanted)
    assert len(ReadFromJsonl(table).files()) == 1100, "a page of a listing has 1,000"
    assert len(ReadFromJsonl(f"{table}/day=[12]/*.jsonl").files()) == len([p for p in wanted if "day=1/" in p or "day=2/" in p])
    assert [f.path for f in ReadFromJsonl(f"{table}/**/00003.jsonl").files()] == [f"{table}/day=3/00003.jsonl"]
    assert ReadFromJsonl(f"{table}/day=3/00003.jsonl").sample(5).num_rows == 1


def test_hidden_and_foreign_objects_are_passed_over_and_a_name_like_a_pattern_is_found(table):
    for name in ("a.csv", "_hidden.csv", ".dot/b.csv", "_x/c.csv", "note.txt", "[1]*.csv", "deep/er/d.csv"):
        gcs.create(f"{table}/{name}", b"n\n1\n")
    assert [f.path.removeprefix(table) for f in ReadFromCsv(table).files()] == ["/[1]*.csv", "/a.csv", "/deep/er/d.csv"]
    assert [f.path.removeprefix(table) for f in ReadFromCsv(f"{table}/[1]*.csv").files()] == ["/[1]*.csv"]
    assert [f.path.removeprefix(table) for f in ReadFromCsv(f"{table}/*.csv").files()] == ["/[1]*.csv", "/a.csv"]


def test_partitions_with_odd_values_come_back(table):
    batch = RowBatch.from_pydict({"k": ["a/b", "ü %", "", None, "x=y"], "n": [1, 2, 3, 4, 5]})
    sink = WriteToJsonl(table, partition_by=("k",))
    assert sink.publish("r1", stage(sink, "r1", batch))
    back = ReadFromJsonl(table).sample(10)
    assert sorted(zip(back.column("n").to_pylist(), back.column("k").to_pylist(), strict=True))[:3] == [(1, "a/b"), (2, "ü %"), (3, "")]
    assert ns_of(table, ReadFromJsonl) == [1, 2, 3, 4, 5]


# ---- what is told before a run


def told_by(connector):
    with pytest.raises(ConfigError) as caught:
        connector.ping()
    return str(caught.value)


def test_a_bucket_that_is_not_there_is_told_before_the_run(gcs):
    assert "there is no bucket no-such" in told_by(WriteToParquet("gs://no-such/table"))
    assert "there is no bucket no-such" in told_by(ReadFromParquet("gs://no-such/table"))
    assert "there is no file of" in told_by(ReadFromParquet(f"{gcs.bucket('tables')}/nothing-here"))
    assert "names no bucket" in told_by(WriteToParquet("gs:///table"))


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (("GET", "/o"), "no right to list the bucket"),
        (("POST", "/upload/"), "no right to create objects"),
        (("DELETE", "/o/"), "no right to remove objects"),
    ],
)
def test_missing_rights_are_told_before_the_run_and_a_ping_changes_nothing(gcs, table, monkeypatch, refused, says):
    from tiebeam.gcs import below, forget_client

    def judge(method, path, answered):
        return 403 if not answered and method == refused[0] and refused[1] in path else None

    with proxy(gcs.url, judge) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        forget_client()
        assert says in told_by(WriteToParquet(table))
        if refused[0] == "GET":
            assert says in told_by(ReadFromParquet(table))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    forget_client()
    WriteToParquet(table).ping()
    assert list(below(f"{table}/")) == []


def test_a_server_that_does_not_answer_is_told_before_the_run(monkeypatch):
    from tiebeam.gcs import forget_client
    from tiebeam.lab._machine import free_ports

    monkeypatch.setattr(gcs, "PING_SECS", 1.0)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free_ports(1)[0]}")
    forget_client()
    assert "cannot be reached" in told_by(WriteToParquet("gs://any/table"))
    forget_client()


# ---- a job


def test_a_job_of_the_command_line_reads_and_writes_there_and_its_rejected_rows_are_replayed(gcs, table, tmp_path):
    files.write(f"{table}/in/a.jsonl", b'{"n": 1}\n{"n": 2}\n{broken\n')
    command = [sys.executable, "-m", "tiebeam", "run", "ingest", "--source=jsonl", f"--source_path={table}/in/*.jsonl"]
    command += ["--sink=parquet", f"--sink_path={table}/out", "--runner=FnApiRunner", "--json"]
    env = {**os.environ, **gcs.environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["accepted"], outcome["rejected"]) == (2, 1), outcome
    assert ns_of(f"{table}/out") == [1, 2]
    replay = [sys.executable, "-m", "tiebeam", "replay", f"--dead_letters={table}/out.rejected"]
    done = subprocess.run(replay, capture_output=True, text=True, env=env, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert ns_of(f"{table}/out") == [1, 2]
