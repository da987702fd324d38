"""Measuring: what a whole process costs, with all its children: seconds, processor seconds, peak memory."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
WORK = ROOT / "work" / "bench"
RESULTS = Path(__file__).parent / "results"

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """Of one process and its children. Memory is resident memory, pages that two processes share counted twice."""

    secs: float
    cpu_secs: float
    peak_mb: float


def measure(argv: list[str], times: int = 1, before: Callable[[], None] = lambda: None) -> Cost:
    """Runs a command so many times, each in a fresh process, and gives the median run; stops everything when one fails."""
    costs = []
    for _ in range(times):
        before()
        costs.append(_run(argv))
    return sorted(costs, key=lambda cost: cost.secs)[len(costs) // 2]


def python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _run(argv: list[str]) -> Cost:
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile() as log:
        begin = perf_counter()
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=ROOT, env=environment)
        watch = _Watch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        secs = perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.stop()
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(argv)} ended with {process.returncode}:\n{log.read().decode(errors='replace')[-4000:]}")
    peak = max(watch.peak_bytes, usage.ru_maxrss << 10)
    return Cost(secs, max(usage.ru_utime + usage.ru_stime, watch.cpu_secs), peak / 1e6)


class _Watch(threading.Thread):
    """Looks at a process and its descendants every 50 ms; a child that lives shorter may be missed."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid = pid
        self.peak_bytes = 0
        self._cpu: dict[int, float] = {}
        self._over = threading.Event()

    @property
    def cpu_secs(self) -> float:
        return sum(self._cpu.values())

    def run(self) -> None:
        while not self._over.wait(0.05):
            resident = 0
            for pid in tree(self.pid):
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                resident += int(fields[21]) * _PAGE
                self._cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICK
            self.peak_bytes = max(self.peak_bytes, resident)

    def stop(self) -> None:
        self._over.set()
        self.join()


def tree(pid: int) -> list[int]:
    found, front = [], [pid]
    while front:
        pid = front.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                front += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def resident_mb(pids: Iterable[int]) -> float:
    """The resident memory of processes, as far as they are there."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return total / 1e6


def warm(path: Path) -> None:
    """Brings a file into the page cache, so that the first contender does not pay for the disk."""
    with path.open("rb") as file:
        while file.read(16 << 20):
            pass


def importable(name: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, check=False).returncode == 0


def say(text: str) -> None:
    """Progress, to standard error."""
    print(f"{datetime.now():%H:%M:%S}  {text}", file=sys.stderr, flush=True)


WHOLE = "a whole process from start to exit, median of its runs, input in the page cache; memory of the process tree"


def show(title: str, header: list[str], rows: list[list[str]], save_as: str | None = None, figure: str = WHOLE) -> None:
    """Prints a table, the first column to the left; saves it with machine, versions, command, date and what each figure is."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))) + " |"

    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    table = "\n".join([line(header), rule, *map(line, rows)])
    print(f"\n{title}\n\n{table}", flush=True)
    if save_as:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{save_as}.md").write_text(f"# {title}\n\n{table}\n\n{circumstances(figure)}\n")


def circumstances(figure: str) -> str:
    """Where and how figures came about."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * _PAGE / 1e9
    machine = f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("apache-beam", "pyarrow", "polars", "duckdb"))
    return "\n".join(
        [
            f"- machine: {machine}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
            f"- versions: {versions}",
            f"- command: `{' '.join(['python -m benchmarks', *sys.argv[1:]])}`",
            f"- date: {datetime.now(UTC):%Y-%m-%d}",
            f"- each figure: {figure}",
        ]
    )
