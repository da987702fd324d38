"""`tiebeam top`: how a stream on Flink is doing, from Flink's REST service and from what its steps count."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Any

from tiebeam import terminal
from tiebeam.errors import ConfigError, Problem
from tiebeam.flink_rest import ENDED, FlinkError, Rest
from tiebeam.pipelines._flink_counts import counts

EVERY_SECS = 2.0
FRESH_SECS = 10.0
"""How old Flink lets its figures become, by default: who asks for older ones is given these, and wakes it."""
ANSWER_SECS = 1.0
_LONGEST_AGO = -(1 << 62)


def top(argv: list[str]) -> int:
    """Shows a running job until it is interrupted; once, with --once or --json. Returns 0; raises ConfigError when there is none."""
    given = dict(word[2:].partition("=")[::2] for word in argv if word.startswith("--"))
    jobs = [word for word in argv if not word.startswith("--")]
    if unknown := set(given) - {"flink_master", "json", "once"}:
        raise ConfigError(Problem("there is no such option", f"--{sorted(unknown)[0]}", "--flink_master=HOST:PORT, --once, --json"))
    rest = Rest(given.get("flink_master") or "localhost:8081", secs=15)
    job = find(rest, jobs)
    try:
        if "json" in given or "once" in given:
            told = _fresh(rest, job)
            if told["state"] not in ENDED:
                time.sleep(FRESH_SECS)
                told = _fresh(rest, job, told)
            print(json.dumps(told, indent=2) if "json" in given else page(told))
            return 0
        seen = deque([_fresh(rest, job)], maxlen=int(3 * FRESH_SECS / EVERY_SECS))
        while True:
            print("\x1b[H\x1b[2J" * sys.stdout.isatty() + page(seen[-1]), flush=True)
            time.sleep(EVERY_SECS)
            seen.append(figures(rest, job, seen[0]))
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


def figures(rest: Rest, job: str, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is shown, as data. Times are seconds, sizes bytes; `steps` are Flink's, whose records are batches of rows, mostly.

    Rates of rows are those since an earlier look; without one they are None.
    """
    told = rest.ask("GET", f"jobs/{job}")
    now = told["now"]
    checkpoints, last = rest.checkpoints(job), rest.latest_checkpoint(job)
    counted = counts(rest, job)
    _add_rates(counted, before, now)
    return {
        "job": job,
        "at_ms": now,
        "name": told["name"],
        "state": told["state"],
        "running_secs": told["duration"] / 1000,
        "restarts": int(rest.metrics(job, "numRestarts").get("numRestarts", 0)),
        "checkpoints": {
            "completed": checkpoints["completed"],
            "failed": checkpoints["failed"],
            "last_age_secs": (now - last["latest_ack_timestamp"]) / 1000 if last else None,
            "last_secs": last["end_to_end_duration"] / 1000 if last else None,
            "last_bytes": last["state_size"] if last else None,
        },
        **counted,
        "steps": [_step(rest, job, vertex, now) for vertex in told["vertices"]],
    }


def _fresh(rest: Rest, job: str, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Figures of now: those of a first look may be of any age."""
    figures(rest, job)
    time.sleep(ANSWER_SECS)
    return figures(rest, job, before)


def _add_rates(counted: dict[str, Any], before: dict[str, Any] | None, now: int) -> None:
    """Tells how fast rows were read, and went through each step, since an earlier look; a restart counts anew."""
    secs = (now - before["at_ms"]) / 1000 if before else 0
    earlier = {step["step"]: step for step in before["counted"]} if before else {}

    def rate(name: str, new: dict[str, int], old: dict[str, int]) -> float | None:
        return max(0, new[name] - old.get(name, 0)) / secs if secs > 0 else None

    counted["rows"]["read_per_sec"] = rate("read", counted["rows"], before["rows"] if before else {})
    for step in counted["counted"]:
        for name in ("rows_in", "rows_out"):
            step[f"{name}_per_sec"] = rate(name, step, earlier.get(step["step"], {}))


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
    rows, commits = told["rows"], told["commits"]
    speed = "" if rows["read_per_sec"] is None else f" ({rows['read_per_sec']:,.0f}/s)"
    others = ", ".join(f"{rows[name]:,} {name}" for name in ("rejected", "late", "published"))
    facts = [
        ("job", f"{told['job']}  {told['name']}"),
        ("state", f"{told['state']} for {terminal.seconds(told['running_secs'])}, restarted {told['restarts']} times"),
        ("checkpoints", f"{points['completed']:,} completed, {points['failed']:,} failed; the last {last}"),
        ("rows", f"{rows['read']:,} read{speed}, {others}"),
        ("commits", f"{commits['published']:,} published, {commits['waiting']:,} waiting"),
        *((f"lag {partition}", f"{behind:,} rows") for partition, behind in told["lag"].items()),
    ]
    steps = [
        (
            step["step"][:48],
            step["parallelism"],
            *(None if step[name] is None else round(step[name], 1) for name in ("in_per_sec", "out_per_sec", "busiest_percent")),
            _age(step["watermark_age_secs"]),
        )
        for step in told["steps"]
    ]
    counted = [
        (
            step["step"][-48:],
            *(step[name] for name in ("rows_in", "rows_out", "rows_rejected")),
            *(None if step[name] is None else round(step[name]) for name in ("rows_in_per_sec", "rows_out_per_sec")),
        )
        for step in told["counted"]
    ]
    tables = [
        terminal.table(["", "flink"], facts),
        terminal.table(["step", "rows in", "rows out", "rejected", "rows in/s", "rows out/s"], counted),
        terminal.table(["stage of flink", "in parallel", "batches in/s", "batches out/s", "busy %", "watermark"], steps),
    ]
    return "\n\n".join(tables)


def _age(secs: float | None) -> str:
    if secs is None:
        return "none yet"
    return "at the end" if secs < -(10**9) else f"{secs:,.1f} s old"
