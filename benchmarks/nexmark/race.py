"""Times our queries beside Beam's own: the same file of events, the same runner, in turn, each pipeline from its start to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from math import exp, log
from time import perf_counter

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter

from benchmarks.measuring import WORK, python, say, show, warm
from benchmarks.nexmark import events
from benchmarks.nexmark.opponent import UNABLE
from benchmarks.nexmark.opponent import run as run_beam
from benchmarks.nexmark.queries import QUERIES, READS
from tiebeam.io.jsonl import ReadFromJsonl


def tiebeam(query: int, path: str) -> int:
    """Runs one of our queries; gives how many rows came out."""

    def counted(batch):
        Metrics.counter("nexmark", "rows").inc(batch.num_rows)

    with beam.Pipeline(runner="FnApiRunner") as p:
        read = ReadFromJsonl(path, columns=READS[query], event_time="dateTime", event_time_format="unix_millis")
        _ = QUERIES[query](p | "Read" >> read) | "Count" >> beam.Map(counted)
    found = p.result.metrics().query(MetricsFilter().with_namespace("nexmark"))["counters"]
    return sum(counter.result for counter in found)


def timed(who: str, query: int, path: str) -> tuple[float, int]:
    begin = perf_counter()
    rows = tiebeam(query, path) if who == "tiebeam" else run_beam(query, path)
    return perf_counter() - begin, rows or 0


def _measured(who: str, query: int, path: str, times: int) -> tuple[float, int] | None:
    """The median of some runs in one process, after one over few events that imports and compiles; None when it fails."""
    done = subprocess.run(python("benchmarks.nexmark.race", who, query, path, times), capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"nexmark, query {query}: {who} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}")
        return None
    return tuple(json.loads(done.stdout.splitlines()[-1]))  # type: ignore[return-value]


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size, for the smallest of those asked for: Beam's own take minutes."""
    size = min(sizes)
    path = events.write(WORK / f"nexmark_{size}.jsonl", size)
    events.write(WORK / "nexmark_2000.jsonl", 2_000)
    warm(path)
    rows, ratios = [], []
    for query, function in QUERIES.items():
        say(f"nexmark, {size:,} events: query {query}")
        ours = _measured("tiebeam", query, str(path), times)
        theirs = None if query in UNABLE else _measured("beam", query, str(path), 1)
        assert ours is not None
        name = f"{query} {function.__name__.replace('_', ' ')}"
        if theirs is None:
            rows.append([name, f"{ours[1]:,}", f"{ours[0]:.2f}", "-", "-"])
            continue
        ratios.append(theirs[0] / ours[0])
        rows.append([name, f"{ours[1]:,}", f"{ours[0]:.2f}", f"{theirs[0]:.1f}", f"{ratios[-1]:.1f}"])
    rows.append(["geometric mean", "", "", "", f"{exp(sum(map(log, ratios)) / len(ratios)):.1f}"])
    title = f"Nexmark, {size:,} events, {path.stat().st_size / 1e6:.0f} MB of JSON lines, whole pipelines on FnApiRunner"
    show(title, ["query", "rows", "tiebeam s", "Beam s", "ratio"], rows, "nexmark" if save else None)
    for query, reason in UNABLE.items():
        print(f"Beam's query {query}: {reason}")


if __name__ == "__main__":
    who, query, path, times = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    timed(who, query, str(WORK / "nexmark_2000.jsonl"))
    runs = sorted(timed(who, query, path) for _ in range(times))
    print(json.dumps(runs[len(runs) // 2]))
