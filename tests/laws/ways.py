"""The ways in which every case runs: the columns of the matrix in docs/runners.md, which is generated from here.

What a way cannot do is data: `gaps` gives the reason, by case. A gap is a strict expected failure, so that it is noticed when
it closes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laws.cases import Case
from support import matrix
from support.matrix import Outcome, Trial

SIZE = 300
Run = Callable[[dict[str, Trial], dict[str, Case], Any], dict[str, Outcome]]


@dataclass(frozen=True)
class Way:
    """A runner and a kind of input; `service` is the fixture that it needs.

    All cases run in one job, or each in one of its own where that is quicker: Prism looks at every stage at every step of a stream.
    """

    name: str
    run: Run
    endless: bool = False
    together: bool = True
    service: str | None = None
    gaps: Mapping[str, str] = field(default_factory=dict)


def in_batch(flags: Callable[[Any], list[str]]) -> Run:
    return lambda trials, cases, service: matrix.run(trials, matrix.bounded, flags(service))


def in_ticks(trials: dict[str, Trial], cases: dict[str, Case], prism: Any) -> dict[str, Outcome]:
    return matrix.run(trials, matrix.streamed(disorder=30_000_000, seed=11), prism.flags())


def from_an_endless_source(trials: dict[str, Trial], cases: dict[str, Case], prism: Any) -> dict[str, Outcome]:
    return matrix.run(trials, matrix.endless(disorder=30_000_000, seed=13), prism.flags())


WAYS = [
    Way("FnApiRunner", in_batch(lambda _: matrix.FNAPI)),
    Way("FnApiRunner, every bundle three times", in_batch(lambda _: [*matrix.FNAPI, "--direct_runner_bundle_repeat=2"])),
    Way("Spark, local[2]", in_batch(lambda spark: spark.flags()), service="spark"),
    Way("Prism, TestStream", in_ticks, endless=True, together=False, service="prism"),
    Way("Prism, endless source", from_an_endless_source, endless=True, together=False, service="prism"),
]

_outcomes: dict[str, dict[str, Outcome | Exception]] = {}


def outcome(way: Way, case: Case, cases: list[Case], service: Any) -> Outcome:
    """What a case gives on its way. When a job of all cases fails, each runs alone."""
    if way.name not in _outcomes and not way.together:
        _outcomes[way.name] = {}
    if way.name not in _outcomes:
        able = {c.name: c for c in cases if (c.streams or not way.endless) and c.name not in way.gaps}
        try:
            _outcomes[way.name] = dict(way.run({name: trial(c) for name, c in able.items()}, able, service))
        except Exception:
            _outcomes[way.name] = {}
    if case.name not in _outcomes[way.name]:
        _outcomes[way.name][case.name] = way.run({case.name: trial(case)}, {case.name: case}, service)[case.name]
    return _outcomes[way.name][case.name]


def trial(case: Case) -> Trial:
    return Trial(case.make(), mixed(inputs(case), 7))


def inputs(case: Case) -> matrix.Inputs:
    return case.inputs(np.random.default_rng(5), SIZE)


def mixed(given: matrix.Inputs, seed: int) -> matrix.Inputs:
    """The same rows in another order, in batches of other sizes."""
    if isinstance(given, dict):
        return {name: mixed(batches, seed) for name, batches in given.items()}
    chance = np.random.default_rng(seed)
    found = []
    for batch in given:
        order = chance.permutation(batch.num_rows)
        cuts = np.unique(chance.integers(0, len(order) + 1, 6))
        found += [batch.take(part) for part in np.split(order, cuts) if len(part)]
    chance.shuffle(found)
    return found
