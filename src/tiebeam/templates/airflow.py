"""Airflow: a DAG that runs a pipeline by schedule, each interval under a name of its own, and a DAG that replays what was rejected."""

from __future__ import annotations

import json
import re
from datetime import datetime

from tiebeam.errors import ConfigError, Problem
from tiebeam.templates._build import Settings, chosen, endless, options_table, rendered, worker_files
from tiebeam.templates._parameters import pipeline

TARGET_FLAGS = {"retries", "retry_secs", "schedule", "start", "tiebeam"}
_FIELD = re.compile(r"@(hourly|daily|weekly|monthly|yearly)|[\d*/,\-A-Za-z#L]+( [\d*/,\-A-Za-z#L]+){4}")


def build(asked: Settings) -> dict[str, str | bytes]:
    """The files of a pipeline on Airflow; raises ConfigError for a source without end, which no interval bounds."""
    described = pipeline(asked.pipeline)
    flags = chosen(described, asked)
    if problems := _problems(asked):
        raise ConfigError(*problems)
    bound = {"from", "to"} <= {p.name for p in described.parameters}
    every = {name: value for name, value in flags.items() if name not in ("from", "to", "run_id")}
    store = flags.get("dead_letters") or flags.get("sink_path", "out").rstrip("/") + ".rejected"
    values = {
        "NAME": described.name,
        "SUMMARY": described.summary,
        "TIEBEAM": json.dumps(asked.get("tiebeam", "/opt/tiebeam/bin/tiebeam")),
        "FLAGS": "\n".join(f"    {json.dumps(f'--{name}={value}', ensure_ascii=False)}," for name, value in every.items()),
        "BOUND": str(bound),
        "INTERVAL_NOTE": "" if bound else f"# {described.name} has no --from and --to: every run reads all of its input.\n",
        "SCHEDULE": json.dumps(asked.get("schedule", "@daily")),
        "START": asked.get("start", "2026-01-01T00:00:00+00:00"),
        "RETRIES": asked.get("retries", "3"),
        "RETRY_SECS": asked.get("retry_secs", "300"),
        "STORE": store,
        "OPTIONS": options_table(described),
    }
    files = {"README.md": rendered("airflow/README.md", values), f"tiebeam_{described.name}.py": rendered("airflow/dag.py", values)}
    return {**files, **worker_files()}


def _problems(asked: Settings) -> list[Problem]:
    problems = [Problem("is a whole number", f"--{n}", f"--{n}=3") for n in ("retries", "retry_secs") if not asked.get(n, "1").isdigit()]
    if name := endless(asked):
        what = f"{name} goes on without end, and no run of a DAG does"
        problems.append(Problem(what, "--source", "--source_until=latest, or --target=flink"))
    if not _FIELD.fullmatch(asked.get("schedule", "@daily")):
        problems.append(Problem("is no schedule of cron", "--schedule", "--schedule='0 6 * * *', or @daily"))
    try:
        if datetime.fromisoformat(asked.get("start", "2026-01-01T00:00:00+00:00")).tzinfo is None:
            problems.append(Problem("names no time zone", "--start", "--start=2026-01-01T00:00:00+00:00"))
    except ValueError:
        problems.append(Problem("is no time", "--start", "--start=2026-01-01T00:00:00+00:00"))
    return problems
