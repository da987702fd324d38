"""Flink, a real cluster of two TaskManagers on this machine: batch, streams, what comes back after a loss, and its REST service."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import confluent_kafka
import duckdb
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from confluent_kafka.admin import AdminClient, NewTopic

from support import matrix
from support.matrix import Trial
from support.streams import dealt
from tiebeam import cli, dead_letters, flink_rest
from tiebeam.delivery import Delivery
from tiebeam.io._endless import ReadEndless
from tiebeam.io.kafka import ReadFromKafka
from tiebeam.io.parquet import WriteToParquet
from tiebeam.pipelines import _top
from tiebeam.rows import RowBatch
from tiebeam.transforms.aggregate import Aggregate, Count, Sum
from tiebeam.transforms.filter import Filter
from tiebeam.transforms.sessionize import Sessionize

START = datetime(2026, 1, 1, tzinfo=UTC)
# Each user comes every 70 seconds, and is away for ten minutes after each ten events.
EVENTS = [
    {"user": f"u{user}", "amount": i % 5, "row_time": START + timedelta(seconds=70 * i + 600 * (i // 10) + user)}
    for i in range(60)
    for user in range(7)
]
SCHEMA = pa.schema([("user", pa.string()), ("amount", pa.int64()), ("row_time", pa.timestamp("us", tz="UTC"))])
BATCHES = [RowBatch.from_pylist(EVENTS[i::9], SCHEMA) for i in range(9)]
DISORDER = 30_000_000


def trials():
    return {
        "sessions": Trial(Sessionize(by="user", gap="5m", total=Sum("amount")), BATCHES),
        "sums": Trial(Aggregate(by="user", window="10m", n=Count(), total=Sum("amount")), BATCHES),
    }


@pytest.fixture(scope="module")
def expected():
    found = matrix.run(trials(), matrix.bounded, matrix.FNAPI)
    assert (len(found["sessions"].rows), found["sessions"].letters, found["sums"].letters) == (42, [], [])
    assert sum(row["n"] for row in found["sums"].rows) == len(EVENTS)
    return found


def test_a_bounded_job_gives_the_rows_of_other_runners(flink, expected):
    assert matrix.run(trials(), matrix.bounded, flink.flags(streaming=False)) == expected


def test_a_source_without_declared_end_gives_the_rows_of_a_bounded_one(flink, expected):
    begin = matrix.endless(DISORDER, seed=13, poll_secs=1)
    assert matrix.run(trials(), begin, flink.flags(checkpoint_ms=1000, ends=True)) == expected
    job, state = next(iter(flink.rest.jobs().items()))
    assert state == "FINISHED"
    assert flink.rest.checkpoints(job)["completed"] > 0


def test_files_go_through_the_command_line(flink, tmp_path, capsys):
    """Their rows are counted by the workers, and by the command line here."""
    (tmp_path / "in").mkdir()
    for part in range(3):
        with (tmp_path / f"in/{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("id", "shop", "net"), *((i, "ab"[i % 2], i / 4) for i in range(part * 100, part * 100 + 100))])
    job = ["run", "ingest", "--source=csv", f"--source_path={tmp_path}/in/*.csv", "--sink=parquet", f"--sink_path={tmp_path}/out"]
    assert cli.main([*job, *flink.flags(parallelism=1, streaming=False)]) == 0
    assert "300 read = 300 accepted + 0 rejected" in capsys.readouterr().out
    rows = duckdb.sql(f"SELECT id, shop, net FROM '{tmp_path}/out/*.parquet' ORDER BY id").fetchall()
    assert rows == [(i, "ab"[i % 2], i / 4) for i in range(300)]


def test_top_counts_rows_and_commits_and_how_far_reading_lags(flink, kafka, tmp_path):
    """Between two checkpoints what was staged is not published; in the end all is."""
    settings = {"bootstrap.servers": kafka.servers, "log_level": 0}
    admin, producer = AdminClient(settings), confluent_kafka.Producer(settings)
    admin.create_topics([NewTopic("counted", 2, 1)])["counted"].result(30)
    for n in range(1000):
        producer.produce("counted", b"broken" if n % 100 == 0 else b'{"n":%d}' % n, partition=n % 2)
    producer.flush()
    p = beam.Pipeline(options=PipelineOptions(flink.flags(checkpoint_ms=5000)))
    with Delivery(p, str(tmp_path / "rejected"), run_id="counted"):
        rows = p | "Read" >> ReadFromKafka(kafka.servers, ("counted",), schema="n bigint") | "Keep" >> Filter("n < 500")
        _ = rows | "Write" >> WriteToParquet(str(tmp_path / "out"), commit_secs=1)
    p.run()
    job = next(iter(flink.rest.jobs()))
    first = _top.figures(flink.rest, job)
    flink.rest.wait(lambda: _top.figures(flink.rest, job)["commits"]["waiting"], "a commit that waits", 90)
    flink.rest.wait(lambda: _top.figures(flink.rest, job)["rows"]["published"] == 495, "all rows published", 90)
    flink.rest.wait(lambda: not _top.figures(flink.rest, job)["commits"]["waiting"], "nothing waits", 90)
    told = _top.figures(flink.rest, job, first)
    flink.rest.cancel(job)
    secs = (told["at_ms"] - first["at_ms"]) / 1000
    assert told["rows"] == {
        "read": 1000,
        "rejected": 10,
        "late": 0,
        "published": 495,
        "read_per_sec": (1000 - first["rows"]["read"]) / secs,
    }
    assert told["commits"]["staged"] == told["commits"]["published"] > 0
    assert told["lag"] == {"counted/0": 0, "counted/1": 0}
    steps = {step["step"]: (step["rows_in"], step["rows_out"], step["rows_rejected"]) for step in told["counted"]}
    assert (steps["Read"], steps["Keep"], steps["Write"]) == ((0, 990, 10), (990, 495, 0), (495, 495, 0))
    assert {step["step"]: step["rows_out_per_sec"] for step in told["counted"]}["Keep"] > 0
    assert "1,000 read (" in _top.page(told)


@pytest.fixture(scope="module")
def running(flink):
    """A job whose source goes on without rows when all were given; checkpoints were completed."""
    p = beam.Pipeline(options=PipelineOptions(flink.flags(checkpoint_ms=1000)))
    _ = p | ReadEndless(dealt(BATCHES, disorder=DISORDER, seed=13, ends=False)) | Aggregate(by="user", window="10m", n=Count())
    dead_letters.claim(p)
    before = set(flink.rest.jobs())
    p.run()
    (job,) = set(flink.rest.jobs()) - before
    flink.rest.await_checkpoints(job, 2)
    return job


def test_rest_knows_a_job_that_runs(flink, running):
    assert flink.rest.jobs()[running] == flink.rest.state(running) == "RUNNING"
    assert flink.rest.version().startswith("1.19.")
    last = flink.rest.latest_checkpoint(running)
    assert last["state_size"] > 0
    assert Path(last["external_path"].removeprefix("file:"), "_metadata").is_file()
    read = next(vertex for vertex, name in flink.rest.vertices(running).items() if "ReadUnbounded" in name)
    written = flink.rest.wait(lambda: flink.rest.metrics(running, "numRecordsOut", vertex=read).get("numRecordsOut"), "figures", 30)
    assert written > 0


def test_top_shows_how_a_job_is_doing(flink, running, capsys):
    assert cli.main(["top", running[:8], f"--flink_master={flink.address}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["job"], told["state"]) == (running, "RUNNING")
    assert told["checkpoints"]["completed"] > 0
    assert 0 <= told["checkpoints"]["last_age_secs"] < 60
    assert any("ReadUnbounded" in step["step"] for step in told["steps"])
    assert cli.main(["top", running[:8], f"--flink_master={flink.address}", "--once"]) == 0
    assert running in capsys.readouterr().out
    assert cli.main(["top", "nosuchjob", f"--flink_master={flink.address}"]) == 2
    assert "0 jobs fit" in capsys.readouterr().err
    assert cli.main(["top", "--flink_master=localhost:1"]) == 2
    assert "no Flink answers at localhost:1" in capsys.readouterr().err


def test_the_work_is_spread_and_both_taskmanagers_have_workers(flink, running):
    assert all(server.workers() for server in flink.taskmanagers)


def test_a_job_goes_on_from_its_checkpoint_when_a_taskmanager_is_lost(flink, running):
    lost = flink.taskmanagers[0]
    workers = lost.workers()
    before = flink.rest.checkpoints(running)["restored"]
    lost.kill()
    assert not lost.runs
    flink.rest.wait(lambda: not any(map(alive, workers)), "its workers end with it", 10)
    flink.restart(lost)
    flink.rest.wait(lambda: flink.rest.checkpoints(running)["restored"] > before, "a restored checkpoint", 60)
    flink.rest.await_checkpoints(running)


def test_a_job_goes_on_from_its_checkpoint_when_workers_are_lost(flink, running):
    before = flink.rest.checkpoints(running)["restored"]
    killed = [pid for server in flink.taskmanagers for pid in server.kill_workers()]
    assert killed
    flink.rest.wait(lambda: flink.rest.checkpoints(running)["restored"] > before, "a restored checkpoint", 60)
    flink.rest.await_checkpoints(running)
    assert not set(killed) & {pid for server in flink.taskmanagers for pid in server.workers()}


def test_a_job_is_stopped_with_a_savepoint_run_again_from_it_and_cancelled(flink, running):
    place = flink.rest.stop(running, f"{flink.folder}/savepoints")
    assert flink.rest.await_state(running) == "FINISHED"
    again = flink.rest.run_jar(flink.rest.jars()[0], savepoint=place)
    flink.rest.await_checkpoints(again)
    assert flink.rest.checkpoints(again)["restored"] == 1
    flink.rest.cancel(again)
    assert flink.rest.await_state(again) == "CANCELED"


def test_rest_says_in_one_line_what_flink_refuses(flink):
    with pytest.raises(flink_rest.FlinkError, match=r"GET jobs/0{32}/checkpoints: 404: .*Could not find Flink job"):
        flink.rest.checkpoints("0" * 32)
    with pytest.raises(flink_rest.FlinkError, match=r"jars/none.jar/run: 500: .*does not exist"):
        flink.rest.run_jar("none.jar")


def test_a_cluster_that_runs_is_used_as_it_is(flink, monkeypatch):
    from tiebeam.lab import flink as lab

    monkeypatch.setenv("FLINK_REST", flink.address)
    found = lab.obtain()
    assert found.how == "given by FLINK_REST"
    with found.cluster() as cluster:
        assert cluster.rest.jobs() == flink.rest.jobs()
        assert cluster.servers == {}
        assert f"--flink_master={flink.address}" in cluster.flags()
    assert flink.rest.overview()["taskmanagers"] == 2


def test_an_address_where_no_flink_answers_is_refused(monkeypatch):
    from tiebeam.errors import ConfigError
    from tiebeam.lab import flink as lab

    monkeypatch.setenv("FLINK_REST", "localhost:1")
    with pytest.raises(ConfigError, match="no Flink answers at localhost:1"):
        lab.find()


ABANDONED = """
import json, sys
from tiebeam.lab import flink
with flink.obtain().cluster(taskmanagers=1) as cluster:
    print(json.dumps([str(cluster.folder), *(server.program.process.pid for server in cluster.servers.values())]), flush=True)
    sys.stdin.read()
"""


def test_a_cluster_ends_with_the_process_that_started_it_however_that_ends(flink):
    """Nothing is left: no process of its groups, and no folder."""
    starter = subprocess.Popen([sys.executable, "-c", ABANDONED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder, *groups = json.loads(starter.stdout.readline())
    assert Path(folder).is_dir()
    assert all(map(members, groups))
    starter.kill()
    starter.communicate()
    until = time.monotonic() + 20
    while (any(map(members, groups)) or Path(folder).exists()) and time.monotonic() < until:
        time.sleep(0.05)
    assert [members(group) for group in groups] == [[], []]
    assert not Path(folder).exists()


def alive(pid: int) -> bool:
    """A process that ended and whose parent has not asked why is no longer alive."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def members(group: int) -> list[int]:
    found = []
    for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
        try:
            if os.getpgid(pid) == group and alive(pid):
                found.append(pid)
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found
