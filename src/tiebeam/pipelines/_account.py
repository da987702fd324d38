"""The account of a run: what each step counted, live and at the end, and whether it adds up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.metrics import monitoring_infos
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.pipeline import AppliedPTransform
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability import portable_runner

from tiebeam import steps, terminal
from tiebeam.delivery import ALREADY_PUBLISHED
from tiebeam.transforms.filter import ROWS_FILTERED


@dataclass
class Outcome:
    """How a run ended. `counts` has rows_in, rows_out, rows_rejected and bytes_in by step, in the order of the graph."""

    pipeline: str
    run_id: str
    runner: str
    seconds: float = 0.0
    read: int = 0
    accepted: int = 0
    rejected: int = 0
    left_out: int = 0
    """Rows that a condition or an interval left out, where those that are staged count as accepted."""
    published: bool = True
    runs_on: bool = False
    """Whether this is a stream that was handed to a cluster, and goes on there."""
    dead_letters: str = ""
    outputs: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def reconciled(self) -> bool:
        return self.read == self.accepted + self.rejected + self.left_out


class _Leaves(beam.pipeline.PipelineVisitor):
    def __init__(self):
        self.leaves: list[AppliedPTransform] = []

    def visit_transform(self, node: Any) -> None:
        self.leaves.append(node)


def leaf_labels(p: beam.Pipeline) -> list[str]:
    """The full labels of a graph's innermost steps, in order."""
    return [leaf.full_label for leaf in _leaves(p)]


def labels_by_id(p: beam.Pipeline) -> dict[str, str]:
    """The label of each innermost step by the id that it has in a submitted graph: job servers count by ids."""
    return {p.component_id_map.get_or_assign(leaf, AppliedPTransform, leaf.full_label): leaf.full_label for leaf in _leaves(p)}


def _leaves(p: beam.Pipeline) -> list[AppliedPTransform]:
    visitor = _Leaves()
    p.visit(visitor)
    return visitor.leaves


def top_labels(leaves: list[str]) -> list[str]:
    """The labels of a graph's steps as written in `build`, in order."""
    return list(dict.fromkeys(leaf.split("/")[0] for leaf in leaves))


def progress_lines(labels: list[str], reads: tuple[str, ...], elapsed: float) -> list[str]:
    """The first line sums up; then one line per step that has counted rows."""
    counts: dict[str, dict[str, int]] = {}
    for (step, name), amount in steps.tally().items():
        counts.setdefault(step, {})[name] = amount
    sources = [c for step, c in counts.items() if (step in reads if reads else steps.ROWS_IN not in c)]
    read = sum(c.get(steps.ROWS_OUT, 0) + c.get(steps.ROWS_REJECTED, 0) for c in sources)
    written = sum(c.get(steps.ROWS_OUT, 0) for step, c in counts.items() if step.startswith(("Write", "Store")))
    rejected = sum(c.get(steps.ROWS_REJECTED, 0) for c in counts.values())
    speed = read / max(elapsed, 0.1)
    head = f"  {terminal.seconds(elapsed):>9}   read {read:,}   staged {written:,}   rejected {rejected:,}   {speed:,.0f} rows/s"
    order = {label: i for i, label in enumerate(labels)}
    shown = sorted(counts.items(), key=lambda item: order.get(item[0], len(order)))
    return [head, *(_step_line(step, c) for step, c in shown)]


def _step_line(step: str, counted: dict[str, int]) -> str:
    into, out, rejected = (counted.get(name, 0) for name in (steps.ROWS_IN, steps.ROWS_OUT, steps.ROWS_REJECTED))
    return f"{'':>14}{step[:38]:<38} in {into:>11,}  out {out:>11,}  rejected {rejected:>7,}"


def account(outcome: Outcome, result: Any, by_id: dict[str, str], accepts: str | None, reads: tuple[str, ...]) -> None:
    """Fills an outcome from the runner's committed metrics; `by_id` has the labels of the innermost steps, in order.

    Rows of the steps `reads` count as read, by default those of every source.
    """
    graph = list(by_id.values())
    leaves: dict[str, dict[str, int]] = {}
    for step, name, amount in counts_of(result):
        leaves.setdefault(by_id.get(step, step), {})[name] = amount
    place = {leaf: i for i, leaf in enumerate(graph)}
    leaves = dict(sorted(leaves.items(), key=lambda item: place.get(item[0], len(place))))
    of_delivery = {leaf: c for leaf, c in leaves.items() if leaf.startswith("Deliver/")}
    for label in top_labels(graph):
        below = [c for leaf, c in leaves.items() if leaf.split("/")[0] == label and leaf not in of_delivery]
        if below:
            outcome.counts[label] = _merged(below)
    outcome.rejected = sum(c.get(steps.ROWS_IN, 0) for leaf, c in of_delivery.items() if leaf.startswith("Deliver/Keep"))
    sources = [c for label, c in outcome.counts.items() if (label in reads if reads else steps.ROWS_IN not in c)]
    outcome.read = sum(c.get(steps.ROWS_OUT, 0) + c.get(steps.ROWS_REJECTED, 0) for c in sources)
    sinks = {leaf.split("/")[0] for leaf in leaves if leaf not in of_delivery and "/Stage/" in f"{leaf}/"}
    accepting = [accepts] if accepts else [label for label in outcome.counts if label in sinks]
    outcome.accepted = sum(outcome.counts.get(label, {}).get(steps.ROWS_OUT, 0) for label in accepting)
    if not accepts:
        outcome.left_out = sum(c.get(ROWS_FILTERED, 0) for c in outcome.counts.values())
    if accepts in outcome.counts:  # what later steps reject was accepted too early
        later = list(outcome.counts)[list(outcome.counts).index(str(accepts)) + 1 :]
        outcome.accepted -= sum(outcome.counts[label].get(steps.ROWS_REJECTED, 0) for label in later)
    outcome.published = not any(ALREADY_PUBLISHED in c for leaf, c in of_delivery.items() if "dead letters" not in leaf)


def all_published(result: Any) -> bool:
    """Whether every commit that was staged is known to be visible, those of dead letters too."""
    told: Counter[str] = Counter()
    for _, name, amount in counts_of(result):
        told[name] += amount
    return told["commits_staged"] <= told["commits_published"]


def counts_of(result: Any) -> Iterator[tuple[str, str, int]]:
    """What each innermost step counted: its id, the name of the count, and the amount, committed where the runner tells that apart.

    Job servers tell the counts of a step once for each stage that it was made part of, and Beam's own result keeps one of them
    (as of 2.77), so they are asked here, and added up.
    """
    if not isinstance(result, portable_runner.PipelineResult):
        for c in result.metrics().query(MetricsFilter().with_namespace(steps.NAMESPACE))["counters"]:
            yield c.key.step, c.key.metric.name, c.committed if c.committed is not None else c.attempted
        return
    told = result._job_service.GetJobMetrics(beam_job_api_pb2.GetJobMetricsRequest(job_id=result._job_id)).metrics
    committed, attempted = _added(told.committed), _added(told.attempted)
    yield from ((*key, amount) for key, amount in (attempted | committed).items())


def _added(infos: Any) -> dict[tuple[str, str], int]:
    """The counts of ours among a runner's, by step and name."""
    added: Counter[tuple[str, str]] = Counter()
    for info in infos:
        if monitoring_infos.is_counter(info) and info.labels.get(monitoring_infos.NAMESPACE_LABEL) == steps.NAMESPACE:
            key = info.labels[monitoring_infos.PTRANSFORM_LABEL], info.labels[monitoring_infos.NAME_LABEL]
            added[key] += monitoring_infos.extract_counter_value(info)
    return dict(added)


def _merged(leaves: list[dict[str, int]]) -> dict[str, int]:
    """One step of several inner ones: what went into the first, what came out of the last, what any of them rejected."""
    merged: dict[str, int] = {}
    for leaf in leaves:
        for name, amount in leaf.items():
            if name == steps.ROWS_REJECTED:
                merged[name] = merged.get(name, 0) + amount
            elif name == steps.ROWS_IN:
                merged.setdefault(name, amount)
            else:
                merged[name] = amount
    return merged


def summary(outcome: Outcome) -> str:
    """The short tables at the end of a run."""
    rows = [(label, c.get("rows_in"), c.get("rows_out"), c.get("rows_rejected", 0)) for label, c in outcome.counts.items()]
    per_step = terminal.table(["step", "rows in", "rows out", "rejected"], rows)
    left_out = f" + {outcome.left_out:,} left out" if outcome.left_out else ""
    equal = "=" if outcome.reconciled else "≠"
    state = "published" if outcome.published else "this run was already published before: nothing changed"
    facts = [
        ("rows", f"{outcome.read:,} read {equal} {outcome.accepted:,} accepted + {outcome.rejected:,} rejected{left_out}"),
        ("time", f"{terminal.seconds(outcome.seconds)}, {outcome.read / max(outcome.seconds, 1e-9):,.0f} rows/s"),
        ("run", f"{outcome.run_id}: {state}"),
        *(("output", place) for place in outcome.outputs),
        ("rejected", outcome.dead_letters if outcome.rejected else "none"),
    ]
    if not outcome.reconciled:
        facts.append(("WARNING", "the counts do not reconcile: please report this as a defect"))
    return f"{per_step}\n\n" + terminal.table(["", outcome.pipeline], facts)
