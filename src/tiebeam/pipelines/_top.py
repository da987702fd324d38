"""`tiebeam top`: how a stream on Flink is doing, from Flink's REST service."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from tiebeam import terminal
from tiebeam.errors import ConfigError, Problem
from tiebeam.flink_rest import FlinkError, Rest

EVERY_SECS = 2.0
_LONGEST_AGO = -(1 << 62)


def top(argv: list[str]) -> int:
    """Shows a running job until it is interrupted; once, with --once or --json. Returns 0; raises ConfigError when there is none."""
    given = dict(word[2:].partition("=")[::2] for word in argv if word.startswith("--"))
    jobs = [word for word in argv if not word.startswith("--")]
    if unknown := set(given) - {"flink_master", "json", "once"}:
        raise ConfigError(Problem("there is no such option", f"--{sorted(unknown)[0]}", "--flink_master=HOST:PORT, --once, --json"))
    rest = Rest(given.get("flink_master") or "localhost:8081", secs=15)
    job = find(rest, jobs)
    while True:
        told = figures(rest, job)
        if "json" in given:
            print(json.dumps(told, indent=2))
            return 0
        if "once" not in given and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(page(told), flush=True)
        if "once" in given:
            return 0
        try:
            time.sleep(EVERY_SECS)
        except KeyboardInterrupt:
            return 0


def find(rest: Rest, named: list[str]) -> str:
    """The job meant: the one named by the beginning of its id, or else the one that runs."""
    try:
        jobs = rest.jobs()
    except (OSError, FlinkError) as e:
        raise ConfigError(Problem(f"no Flink answers at {rest.address}: {e}", "--flink_master", "HOST:PORT of its REST service")) from None
    found = [job for job, state in jobs.items() if (job.startswith(named[0]) if named else state == "RUNNING")]
    if len(found) != 1:
        shown = ", ".join(f"{job} ({state})" for job, state in jobs.items()) or "none"
        raise ConfigError(Problem(f"{len(found)} jobs fit", "JOB", f"name one of: {shown}"))
    return found[0]


def figures(rest: Rest, job: str) -> dict[str, Any]:
    """What is shown, as data. Times are seconds, sizes bytes, rates records (batches of rows, mostly) a second."""
    told = rest.ask("GET", f"jobs/{job}")
    now = told["now"]
    counts, last = rest.checkpoints(job), rest.latest_checkpoint(job)
    return {
        "job": job,
        "name": told["name"],
        "state": told["state"],
        "running_secs": told["duration"] / 1000,
        "restarts": int(rest.metrics(job, "numRestarts").get("numRestarts", 0)),
        "checkpoints": {
            "completed": counts["completed"],
            "failed": counts["failed"],
            "last_age_secs": (now - last["latest_ack_timestamp"]) / 1000 if last else None,
            "last_secs": last["end_to_end_duration"] / 1000 if last else None,
            "last_bytes": last["state_size"] if last else None,
        },
        "steps": [_step(rest, job, vertex, now) for vertex in told["vertices"]],
    }


def _step(rest: Rest, job: str, vertex: dict[str, Any], now: int) -> dict[str, Any]:
    names = "numRecordsInPerSecond,numRecordsOutPerSecond,busyTimeMsPerSecond,currentInputWatermark"
    path = f"jobs/{job}/vertices/{vertex['id']}/subtasks/metrics?get={names}&agg=min,max,sum"
    found = {told["id"]: told for told in rest.ask("GET", path)}

    def value(name: str, agg: str) -> float | None:
        number = found.get(name, {}).get(agg)
        return None if number is None or number != number else float(number)

    watermark = value("currentInputWatermark", "min")
    return {
        "step": vertex["name"],
        "parallelism": vertex["parallelism"],
        "state": vertex["status"],
        "in_per_sec": value("numRecordsInPerSecond", "sum"),
        "out_per_sec": value("numRecordsOutPerSecond", "sum"),
        "busiest_percent": None if (busy := value("busyTimeMsPerSecond", "max")) is None else busy / 10,
        "watermark_age_secs": None if watermark is None or watermark <= _LONGEST_AGO / 1000 else (now - watermark) / 1000,
    }


def page(told: dict[str, Any]) -> str:
    """The figures as tables."""
    points = told["checkpoints"]
    last = "none yet"
    if points["last_age_secs"] is not None:
        size = points["last_bytes"] / 1e6
        last = f"{points['last_age_secs']:.1f} s ago, took {points['last_secs']:.1f} s, {size:,.2f} MB"
    facts = [
        ("job", f"{told['job']}  {told['name']}"),
        ("state", f"{told['state']} for {terminal.seconds(told['running_secs'])}, restarted {told['restarts']} times"),
        ("checkpoints", f"{points['completed']:,} completed, {points['failed']:,} failed; the last {last}"),
    ]
    rows = [
        (
            step["step"][:48],
            step["parallelism"],
            *(None if step[name] is None else round(step[name], 1) for name in ("in_per_sec", "out_per_sec", "busiest_percent")),
            _age(step["watermark_age_secs"]),
        )
        for step in told["steps"]
    ]
    head = ["step", "in parallel", "in/s", "out/s", "busy %", "watermark"]
    return f"{terminal.table(['', 'flink'], facts)}\n\n{terminal.table(head, rows)}"


def _age(secs: float | None) -> str:
    if secs is None:
        return "none yet"
    return "at the end" if secs < -(10**9) else f"{secs:,.1f} s old"
