"""What a run would do, shown without moving anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apache_beam as beam

from tiebeam import terminal
from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError, Problem
from tiebeam.pipelines import _cursor, _job
from tiebeam.pipelines._account import leaf_labels, top_labels


def plan(name: str, argv: list[str]) -> int:
    """Prints what a run would do, and moves nothing. Returns 0; raises ConfigError when it could not run."""
    as_json = "--json" in argv
    save = next((a.partition("=")[2] for a in argv if a.startswith("--write_contract=")), None)
    try:
        job = _job.prepare(name, [a for a in argv if a != "--json" and not a.startswith("--write_contract=")])
    except _cursor.NothingNewError as e:
        print(json.dumps({"pipeline": name, "cursor": [str(e)]}, indent=2) if as_json else f"{name}: {e}")
        return 0
    p, delivery = _job.assemble(job)
    about = describe(job, p, delivery)
    if save:
        if not hasattr(job.module, "contract_of"):
            raise ConfigError(Problem(f"the pipeline {name} has no contract to write", "--write_contract"))
        Path(save).write_text(job.module.contract_of(job.options).dump(), encoding="utf-8")
        about["contract written"] = save
    print(json.dumps(about, indent=2, default=str) if as_json else _plan_page(about))
    return 0


def describe(job: _job.Job, p: beam.Pipeline, delivery: Delivery) -> dict[str, Any]:
    """What `plan` shows, as data."""
    schemas = {}
    for role, connector in _job.connectors(job.options).items():
        sample = connector.sample(_job.SAMPLE_ROWS) if hasattr(connector, "sample") else None
        if sample is not None:
            schemas[role] = [
                {"name": f.name, "type": str(f.type), "example": str(sample.column(f.name)[0].as_py())[:60]} for f in sample.schema
            ]
    return {
        "pipeline": job.name,
        "runner": job.runner,
        "run_id": job.run_id,
        "reads": {role: repr(c) for role, c in _job.connectors(job.options).items() if hasattr(c, "sample")},
        "cursor": job.progress.lines() if job.progress else [],
        "writes": {place: sink.mode for place, (_, sink, _) in delivery.sinks.items()},
        "commits": {place: _commits(sink) for place, (_, sink, _) in delivery.sinks.items()} if job.endless else {},
        "dead_letters": delivery.named or delivery.store_location(),
        "max_rejected_ratio": job.options.max_rejected_ratio,
        "schemas": schemas,
        "contract": job.module.contract_of(job.options).summary() if hasattr(job.module, "contract_of") else [],
        "graph": top_labels(leaf_labels(p)),
    }


def _commits(sink: Any) -> str:
    """How often a sink publishes on an input that never ends, and what that makes."""
    most = 3600 // sink.commit_secs * sink.writers
    return (
        f"every {sink.commit_secs} s by {sink.writers} writers, at most {most:,} commits an hour; rows wait so long, and until a checkpoint"
    )


def _plan_page(about: dict[str, Any]) -> str:
    facts = [
        ("pipeline", about["pipeline"]),
        ("runner", about["runner"]),
        ("run", about["run_id"]),
        *(("reads", f"{role}: {what}") for role, what in about["reads"].items()),
        *(("cursor", line) for line in about["cursor"]),
        *(("writes", f"{place} ({mode})") for place, mode in about["writes"].items()),
        *(("publishes", f"{place}: {told}") for place, told in about["commits"].items()),
        (
            "rejected rows",
            f"{about['dead_letters']} (the run stops above a share of {about['max_rejected_ratio']:g})"
            if not about["commits"]
            else about["dead_letters"],
        ),
        ("graph", " → ".join(about["graph"])),
    ]
    if "contract written" in about:
        facts.append(("contract", f"written to {about['contract written']}"))
    pages = [terminal.table(["", "what a run would do"], facts)]
    for role, columns in about["schemas"].items():
        pages.append(terminal.table([f"{role} column", "type", "example"], [(c["name"], c["type"], c["example"]) for c in columns]))
    if about["contract"]:
        pages.append(terminal.table(["contract column", "type", "rules"], about["contract"]))
    return "\n\n".join([*pages, "Everything needed was reached. Nothing was moved."])
