"""How long the command line takes before it does anything: `tiebeam list`, and `tiebeam plan` of a job."""

from __future__ import annotations

from benchmarks import comparing
from benchmarks.measuring import WORK, measure, python, say, show

EVENTS = 10_000


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints the median of at least five starts."""
    source = comparing.events_file(EVENTS)
    target = WORK / "startup"
    comparing.empty(target)
    flags = ["--source=jsonl", f"--source_path={source}", "--sink=parquet", f"--sink_path={target}/out"]
    commands = {"python -c pass": ["-c", "pass"], "tiebeam list": ["-m", "tiebeam", "list"]}
    commands["tiebeam describe ingest"] = ["-m", "tiebeam", "describe", "ingest"]
    commands["tiebeam plan ingest"] = ["-m", "tiebeam", "plan", "ingest", *flags]
    rows = []
    for name, arguments in commands.items():
        say(f"start-up: {name}")
        cost = measure([python("x")[0], *arguments], max(times, 5))
        rows.append([name, f"{cost.secs:.2f}", f"{cost.cpu_secs:.2f}"])
    show("Start-up", ["", "seconds", "CPU seconds"], rows, "startup" if save else None)
