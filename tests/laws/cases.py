"""Cases for the laws of keyed transforms: each a configured transform, rows to try it on, and an independent oracle.

A transform brings a module `laws/of_NAME.py` with a list `CASES`; `laws/test_laws.py` finds it by itself, and holds every case
to every law, on every runner.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np

from support.matrix import Inputs, Rows


@dataclass(frozen=True)
class Case:
    """One way to use a transform.

    `make` gives a keyed transform, or one with a method `keyed()` that gives the one within. `inputs` makes rows from a
    generator of random numbers and a size: a list of batches, or several by input name. They must hold what hurts: equal times,
    rows at exactly a tick's border, null and absent values, keys of one row and of many, times before 1970. `expected` computes
    the answer without us (DuckDB SQL, plain Python), as dicts.
    """

    name: str
    make: Callable[[], beam.PTransform]
    inputs: Callable[[np.random.Generator, int], Inputs]
    expected: Callable[[Inputs], Rows]
    forgets: bool = True
    """Whether nothing is remembered once the time is over. False only where a definition has no end; then say why."""
    streams: bool = True
    """Whether it takes inputs that never end. False only where a definition needs all rows; then say why."""


def cases() -> list[Case]:
    modules = sorted(Path(__file__).parent.glob("of_*.py"))
    return [case for path in modules for case in importlib.import_module(f"laws.{path.stem}").CASES]


def by_transform() -> dict[str, list[Case]]:
    """The cases by the name of their transform."""
    found: dict[str, list[Case]] = {}
    for case in cases():
        found.setdefault(type(case.make()).__name__, []).append(case)
    return found
