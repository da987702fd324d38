"""Live: a year of real purchases as a stream through Kafka, rolled up while it comes, and held to the same sums in batch.

    tiebeam run live                      about a minute; Ctrl-C ends it earlier, and cleanly
    tiebeam run live --rows_per_second=5000 --rows=200000

Starts a broker of its own, replays the purchases of `retail` in the order of their time (some late, some broken), and runs `rollup`
on Prism. When it ends, the windows and the late rows are added up and compared with the batch, the same topic read to its
end, and with the purchases themselves.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tiebeam import registry, terminal
from tiebeam.errors import ConfigError, Problem
from tiebeam.options import JobOptions, option, parse
from tiebeam.pipelines import _job, _live_check, _live_replay, _retail_data, _runner
from tiebeam.pipelines._account import Outcome
from tiebeam.runners import DRAIN

PARTITIONS = 4
_SCHEMA = (
    "household_id bigint, store_id bigint, basket_id bigint, product_id bigint, quantity bigint, sales_value decimal(12,2), at timestamptz"
)
_AGGREGATES = "revenue=sum(sales_value),items=sum(quantity),purchases=count()"


class Options(JobOptions):
    """How fast the purchases come, and where what is made of them goes."""

    folder: str = option("work/live", help="Folder of the windows, the late rows, the rejected ones and the broker; it is replaced")
    rows_per_second: int = option(25_000, help="How fast the purchases come", unit="rows", low=1)
    rows: int = option(_retail_data.ROWS, help="How many purchases there are", unit="rows", low=1, high=_retail_data.ROWS)
    servers: str | None = option(None, help="Brokers to use, instead of one that is started", example="localhost:9092")
    commit_secs: int = option(2, help="How often windows that are over are published", unit="seconds", low=1)


def main(argv: list[str], as_json: bool) -> int:
    """Streams, drains, compares; returns 0 when all sums are equal."""
    options, beam_argv = parse(Options, _job.with_options_file(argv), registry.connector, _runner.known_flags)
    folder = _fresh(Path(options.folder))
    with ExitStack() as stack:
        servers = options.servers or stack.enter_context(_broker(folder / "kafka"))
        replay = _Replay(servers, options, folder)
        job = _job.prepare("rollup", [*_flags(servers, replay.topic, folder, options.commit_secs), *beam_argv])
        stack.enter_context(replay.running())
        outcome = _job.execute(job, before_drain=replay.stop)
        sent = replay.stop()
        batch = _in_batch(servers, replay.topic, folder)
    return _verdict(folder, outcome, sent, batch, as_json)


def _fresh(folder: Path) -> Path:
    """The folder, without what an earlier run has left in it."""
    if folder.exists() and any(folder.iterdir()) and not (folder / ".live").exists():
        raise ConfigError(Problem(f"{folder} holds something else", "--folder", "name a folder that may be replaced"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ".live").touch()
    return folder


@contextmanager
def _broker(folder: Path) -> Iterator[str]:
    from tiebeam.lab import kafka

    print("live: starting a broker of Kafka", file=sys.stderr)
    with kafka.obtain().cluster(folder.absolute()) as cluster:
        yield cluster.servers


def _flags(servers: str, topic: str, folder: Path, commit_secs: int) -> list[str]:
    """The flags of the rollup."""
    return [
        *_source(servers, topic),
        f"--source_disorder_secs={24 * 3600}",
        f"--source_lag_secs={100 * 365 * 24 * 3600}",  # the purchases are of 2017: no clock may close their windows
        "--source_poll_secs=0.1",
        *_sums(folder / "windows", commit_secs),
        "--late=parquet",
        f"--late_path={folder / 'late'}",
        f"--late_commit_secs={commit_secs}",
        f"--dead_letters={folder / 'rejected'}",
    ]


def _source(servers: str, topic: str) -> list[str]:
    return [
        "--source=kafka",
        f"--source_servers={servers}",
        f"--source_topics={topic}",
        f"--source_schema={_SCHEMA}",
        "--source_event_time=at",
    ]


def _sums(path: Path, commit_secs: int) -> list[str]:
    windows = [f"--window=day {_retail_data.TIME_ZONE}", f"--aggregates={_AGGREGATES}"]
    return [*windows, "--sink=parquet", f"--sink_path={path}", f"--sink_commit_secs={commit_secs}"]


class _Replay:
    """The process that sends the purchases, and what ends with it."""

    def __init__(self, servers: str, options: Options, folder: Path):
        spawn = multiprocessing.get_context("spawn")
        self.topic = f"purchases-{time.time_ns() // 1_000_000}"  # one of its own: there may be others where a broker is given
        self.sent = folder / "sent.json"
        self.stopped = spawn.Event()
        told = (servers, self.topic, PARTITIONS, options.rows, options.rows_per_second, str(self.sent), self.stopped)
        _live_replay.sink(servers, self.topic, PARTITIONS).writer("live")  # makes the topic
        self.process = spawn.Process(target=_live_replay.send, args=told, daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.process.start()
        threading.Thread(target=self._end, name="end of the replay", daemon=True).start()
        try:
            yield
        finally:
            self.process.kill()

    def _end(self) -> None:
        """Drains the stream when all was sent."""
        self.process.join()
        DRAIN.set()

    def stop(self) -> dict[str, int]:
        """Has the process send no more; says what it has sent."""
        self.stopped.set()
        self.process.join()
        if not self.sent.exists():
            raise _job.JobFailedError(f"the purchases could not be sent (exit code {self.process.exitcode})")
        return json.loads(self.sent.read_text())


def _in_batch(servers: str, topic: str, folder: Path) -> Outcome:
    """The same sums, of the topic as a bounded input."""
    print("live: the same topic once more, in batch", file=sys.stderr)
    rejected = f"--dead_letters={folder / 'rejected in batch'}"
    argv = [*_source(servers, topic), "--source_until=latest", *_sums(folder / "batch", 1), rejected]
    return _job.execute(_job.prepare("rollup", argv))


def _verdict(folder: Path, streamed: Outcome, sent: dict[str, int], batch: Outcome, as_json: bool) -> int:
    """Compares day by day, and says so."""
    found = _live_check.compared(folder, sent["rows"])
    rows = [
        ("purchases sent", sent["rows"]),
        ("of them held back until they were late", sent["held_back"]),
        ("broken messages sent besides", sent["broken"]),
        ("read from the stream", streamed.read),
        ("rejected, kept as dead letters", streamed.rejected),
        ("in windows", found["in_windows"]),
        ("late, kept as rows", found["late"]),
        ("days compared", found["days"]),
        ("days that differ: stream and topic in batch", found["unlike_batch"]),
        ("days that differ: stream and the purchases themselves", found["unlike_purchases"]),
        ("files published", found["files"]),
    ]
    equal = found["unlike_batch"] == found["unlike_purchases"] == 0 and streamed.rejected == batch.rejected == sent["broken"]
    if as_json:
        print(json.dumps({"equal": equal, "seconds": streamed.seconds, **dict(rows)}, indent=2))
    else:
        print(terminal.table(["what", "number"], rows, f"live: {terminal.seconds(streamed.seconds)} of stream\n"))
        print(f"\n{'The sums are equal.' if equal else 'THE SUMS DIFFER: please report this as a defect.'}")
        print(f"Look at them: duckdb -c \"FROM '{folder}/windows/*.parquet' ORDER BY window_start\"")
    return 0 if equal else 1


def run(argv: list[str] | None = None) -> int:
    """Runs `live` from its flags and returns the exit code."""
    return _job.run("live", argv)


if __name__ == "__main__":
    sys.exit(run())
