"""What the steps of a job on Flink count: Beam's metrics, which its operators report. docs/metrics.md names them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tiebeam.flink_rest import Rest

ASKED_AT_ONCE = 10  # names are long, and Flink takes 4 kB of them
_OURS = re.compile(r".*\.tiebeam_(?:step_(?P<counter>[a-z]+_[a-z]+)_(?P<step>.+)|(?P<gauge>lag|commits_waiting)_(?P<of>.+))")


def counts(rest: Rest, job: str) -> dict[str, Any]:
    """Rows and commits since the job was started or restarted last, in all and by step, and how far reading lags."""
    steps: dict[str, dict[str, int]] = {}
    lag: dict[str, int] = {}
    waiting = 0
    for found, value in _metrics(rest, job):
        if found["gauge"] == "lag":
            lag[found["of"]] = value
        elif found["gauge"]:
            waiting += value
        else:
            _add(steps.setdefault(found["step"], {}), found["counter"], value)

    def total(name: str) -> int:
        return sum(counted.get(name, 0) for counted in steps.values())

    read = sum(c.get("rows_out", 0) + c.get("rows_rejected", 0) for c in steps.values() if "rows_in" not in c)
    return {
        "rows": {"read": read, **{name: total(f"rows_{name}") for name in ("rejected", "late", "published")}},
        "commits": {"staged": total("commits_staged"), "published": total("commits_published"), "waiting": waiting},
        "lag": dict(sorted(lag.items())),
        "counted": [
            {"step": step, **{name: counted.get(name, 0) for name in ("rows_in", "rows_out", "rows_rejected")}}
            for step, counted in steps.items()
        ],
    }


def _metrics(rest: Rest, job: str) -> Iterator[tuple[re.Match[str], int]]:
    """Our metrics of each vertex, from the sources on."""
    for vertex in rest.vertices(job):
        names = [name for name in sorted(rest.metrics(job, vertex=vertex)) if _OURS.fullmatch(name)]
        for begin in range(0, len(names), ASKED_AT_ONCE):
            for name, value in rest.metrics(job, *names[begin : begin + ASKED_AT_ONCE], vertex=vertex).items():
                if (found := _OURS.fullmatch(name)) is not None:
                    yield found, int(value)


def _add(counted: dict[str, int], name: str, value: int) -> None:
    """One step of several inner ones: what went into the first, what came out of the last, of all else the sum."""
    if name == "rows_in":
        counted.setdefault(name, value)
    elif name == "rows_out":
        counted[name] = value
    else:
        counted[name] = counted.get(name, 0) + value
