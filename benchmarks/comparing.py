"""Comparing: runs contenders over the same events, checks that all give the same answer, and tabulates what they cost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from time import perf_counter

from benchmarks import events
from benchmarks.measuring import ROOT, WHOLE, WORK, Cost, importable, measure, python, say, show, warm

_NEEDS = {"spark": "pyspark"}
_FEW = 2_000


def events_file(size: int) -> Path:
    path = WORK / f"events_{size}.jsonl"
    if not path.exists():
        say(f"writing {size:,} events to {path}")
    return events.write(path, size)


def costs(module: str, contenders: Collection[str], size: int, times: int, content: str, most: dict[str, int]) -> dict[str, Cost]:
    """Costs by contender. `content` is the SQL that reads an output folder; `most` limits what slow contenders are given."""
    source = events_file(size)
    warm(source)
    found: dict[str, Cost] = {}
    expected = WORK / module / "duckdb"
    for name in sorted(contenders, key=lambda c: c != "duckdb"):  # DuckDB first: its answer is what others are held against
        if not importable(_NEEDS.get(name, "sys")):
            say(f"{module}: {name} left out, {_NEEDS[name]} is not installed")
            continue
        if size > most.get(name, size):
            continue
        say(f"{module}, {size:,} events: {name}")
        target = WORK / module / name
        command = python(f"benchmarks.{module}", name, source, target)
        found[name] = measure(command, times, before=lambda target=target: empty(target))
        if name != "duckdb":
            same(content.format(expected), content.format(target), f"{module}: {name}")
    return {name: found[name] for name in contenders if name in found}


def contend(contenders: dict[str, Callable[[str, str], None]]) -> None:
    """What a contender's process does: NAME SOURCE TARGET, and a file of few events that its job runs over before the clock starts."""
    name, source, target, *few = sys.argv[1:]
    for path in few:
        contenders[name](path, target)
        empty(Path(target))
    begin = perf_counter()
    contenders[name](source, target)
    print(perf_counter() - begin)


def begun(module: str, costs: dict[str, Cost], size: int) -> dict[str, float]:
    """Seconds that each contender takes in a process that has done the same for few events: without what it costs to begin."""
    found = {}
    for name in costs:
        say(f"{module}, {size:,} events: {name}, once begun")
        target = WORK / module / name
        empty(target)
        command = python(f"benchmarks.{module}", name, events_file(size), target, events_file(_FEW))
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{module}: {name} failed:\n{done.stderr[-4000:]}")
        found[name] = float(done.stdout.split()[-1])
    return found


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def same(expected: str, given: str, who: str) -> None:
    """Stops everything when two queries do not give the same rows."""
    import duckdb

    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        rows, wrong = con.execute(
            f"WITH a AS ({expected}), b AS ({given}) SELECT (SELECT count(*) FROM a), "
            "(SELECT count(*) FROM (FROM a EXCEPT ALL FROM b)) + (SELECT count(*) FROM (FROM b EXCEPT ALL FROM a))"
        ).fetchall()[0]
    if wrong or not rows:
        raise SystemExit(f"{who} gives another answer than DuckDB: {wrong:,} of {rows:,} rows differ")


def table(title: str, costs: dict[str, Cost], size_bytes: int, save_as: str | None, begun: dict[str, float] | None = None) -> None:
    base = costs["tiebeam"].secs
    header = ["", "seconds", "of tiebeam's", *(["once begun", "of tiebeam's"] if begun else []), "CPU seconds", "MB/s", "peak MB"]
    rows = []
    for name, cost in costs.items():
        seconds = [f"{figure:.2f}" for figure in (cost.secs, cost.secs / base)]
        running = [f"{figure:.2f}" for figure in (begun[name], begun[name] / begun["tiebeam"])] if begun else []
        figures = [f"{cost.cpu_secs:.2f}", f"{size_bytes / 1e6 / cost.secs:.0f}", f"{cost.peak_mb:.0f}"]
        rows.append([name.replace("_", " "), *seconds, *running, *figures])
    figure = f"{WHOLE}; once begun: seconds in a process that did it for {_FEW:,} events before" if begun else WHOLE
    show(title, header, rows, save_as, figure)
