"""Times our queries beside Beam's own: the same file of events, the same runner, in turn, each pipeline from its start to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from math import exp, log
from pathlib import Path
from time import perf_counter
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter

from benchmarks.measuring import WORK, python, say, show, warm
from benchmarks.nexmark import events, opponent
from benchmarks.nexmark.opponent import DIFFERENT, MENDED
from benchmarks.nexmark.queries import QUERIES, READS
from tiebeam.io.jsonl import ReadFromJsonl
from tiebeam.rows import RowBatch

SLOW = 5  # mended queries are given one in so many of the events: a minute each, not five
FIGURE = (
    "seconds from building the pipeline to its end, in a process that has run it once over 2,000 events; imports are not in it. "
    "tiebeam: the median of its runs; Beam: one run. Both read the file, parse it and count the rows that come out; "
    "tiebeam delivers only the columns that a query reads, Beam whole objects. Both know the types beforehand"
)


def tiebeam(query: int, path: str) -> int:
    """Runs one of our queries; gives how many rows came out."""
    with beam.Pipeline(runner="FnApiRunner") as p:
        read = ReadFromJsonl(path, schema=events.SCHEMA, columns=READS[query], event_time="dateTime", event_time_format="unix_millis")
        _ = QUERIES[query](p | "Read" >> read) | "Count" >> beam.ParDo(_CountFn())
    return _rows(p)


def beams(query: int, path: str) -> int:
    """Runs one of Beam's; gives how many rows came out."""
    opponent.mend()
    options = opponent.options()
    with beam.Pipeline(options=options) as p:
        _ = opponent.answer(opponent.read(p, path), query, options) | "Count" >> beam.ParDo(_CountFn())
    return _rows(p)


class _CountFn(beam.DoFn):
    """Counts rows, batches of them or single ones, as the monitor of Beam's launcher does."""

    def __init__(self):
        self.rows = Metrics.counter("nexmark", "rows")

    def process(self, row: Any):
        self.rows.inc(row.num_rows if isinstance(row, RowBatch) else 1)


def _rows(p: beam.Pipeline) -> int:
    return sum(counter.result for counter in p.result.metrics().query(MetricsFilter().with_namespace("nexmark"))["counters"])


def _timed(who: str, query: int, path: str) -> tuple[float, int]:
    run = {"tiebeam": tiebeam, "beam": beams}[who]
    begin = perf_counter()
    rows = run(query, path)
    return perf_counter() - begin, rows


def _measured(who: str, query: int, path: Path, times: int) -> tuple[float, int]:
    """The median of some runs in one process, after one over few events that imports and compiles."""
    say(f"{path.stem}, query {query}: {who}")
    done = subprocess.run(python("benchmarks.nexmark.race", who, query, path, times), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"query {query}: {who} failed:\n{done.stderr[-4000:]}")
    secs, rows = json.loads(done.stdout.splitlines()[-1])
    return secs, rows


def _race(path: Path, queries: Iterable[int], times: int) -> list[list[str]]:
    table, ratios = [], []
    for query in queries:
        ours, theirs = _measured("tiebeam", query, path, times), _measured("beam", query, path, 1)
        if query not in DIFFERENT and ours[1] != theirs[1]:
            raise SystemExit(f"query {query}: {ours[1]:,} rows, and {theirs[1]:,} by Beam")
        ratios.append(theirs[0] / ours[0])
        name = f"{query} {QUERIES[query].__name__.replace('_', ' ')}"
        table.append([name, f"{ours[1]:,}", f"{theirs[1]:,}", f"{ours[0]:.2f}", f"{theirs[0]:.1f}", f"{ratios[-1]:.1f}"])
    return [*table, ["geometric mean", "", "", "", "", f"{exp(sum(map(log, ratios)) / len(ratios)):.1f}"]]


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints two tables, for the smallest of the sizes asked for: Beam's own take minutes."""
    size = min(sizes)
    events.write(WORK / "nexmark_2000.jsonl", 2_000)
    for queries, n, what, name in (
        ([q for q in QUERIES if q not in MENDED], size, "queries as they ship with Beam", "nexmark"),
        (MENDED, size // SLOW, "queries of Beam that were mended to run", "nexmark_mended"),
    ):
        path = events.write(WORK / f"nexmark_{n}.jsonl", n)
        warm(path)
        title = f"Nexmark, {what}: {n:,} events, {path.stat().st_size / 1e6:.0f} MB of JSON lines, FnApiRunner"
        notes = "".join(f"\n- Beam's query {q}: {why}" for known in (MENDED, DIFFERENT) for q, why in known.items() if q in queries)
        header = ["query", "rows", "Beam's", "tiebeam s", "Beam s", "ratio"]
        show(title, header, _race(path, queries, times), name if save else None, FIGURE + notes)
        print(notes)


if __name__ == "__main__":
    who, query, path, times = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    _timed(who, query, str(WORK / "nexmark_2000.jsonl"))
    runs = sorted(_timed(who, query, path) for _ in range(times))
    print(json.dumps(runs[len(runs) // 2]))
