"""State as a release left it, kept in files that every release to come must read: tests/golden/state.

A file holds what was remembered of a case of the laws half-way through its rows, and these rows, before and after. To write
the files that are missing, after a new case or a new `version` of a fold:

    cd tests && python -m support.golden

A file that is there is never written again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laws.cases import Case, cases
from support.folding import named
from support.matrix import Inputs
from tiebeam.rows import RowBatch, RowBatchCoder
from tiebeam.transforms._fold import Fold, Tables, fact, mark, micros_of, tables_of
from tiebeam.transforms._keyed import Keyed

FOLDER = Path(__file__).parents[1] / "golden" / "state"
CODER = RowBatchCoder()


@dataclass(frozen=True)
class Golden:
    """Rows before `upto`, the state that they left in a release whose fold had `version`, and the rows behind them."""

    version: int
    upto: int
    before: Tables
    state: Tables
    after: Tables


def path_of(case: Case, version: int) -> Path:
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', case.name.lower()).strip('-')}-v{version}.batches"


def fold_of(case: Case) -> Keyed:
    transform = case.make()
    return transform if isinstance(transform, Keyed) else transform.keyed()


def half_way(keyed: Keyed, inputs: Inputs) -> Golden:
    """Folds the first half of the time at once."""
    fold = keyed.fold
    rows = {name: tables_of(mark(batch, name=name) for batch in batches)[name] for name, batches in named(fold, inputs).items()}
    times = np.concatenate([micros_of(batch) for batch in rows.values()])
    upto = (int(np.median(times)) // keyed.tick + 1) * keyed.tick
    before, after = (
        {name: part for name, batch in rows.items() if (part := batch.filter((micros_of(batch) < upto) == first)).num_rows}
        for first in (True, False)
    )
    trimmed = {name: fold.condense(name, fold.trim(name, batch)) for name, batch in before.items()}
    folded = fold.fold({}, trimmed, upto)
    list(folded.rows)
    return Golden(fold.version, upto, before, folded.state, after)


def write(path: Path, golden: Golden) -> None:
    parts = [("before", golden.before), ("state", golden.state), ("after", golden.after)]
    facts = dict(version=golden.version, upto=golden.upto)
    marked = [mark(rows, role=role, name=name, **facts) for role, tables in parts for name, rows in tables.items()]
    with path.open("wb") as file:
        for encoded in map(CODER.encode, marked):
            file.write(len(encoded).to_bytes(8, "big") + encoded)


def read(path: Path) -> Golden:
    content, batches = path.read_bytes(), list[RowBatch]()
    while content:
        size = int.from_bytes(content[:8], "big")
        batches.append(CODER.decode(content[8 : 8 + size]))
        content = content[8 + size :]
    before, state, after = (tables_of(b for b in batches if fact(b, "role") == role) for role in ("before", "state", "after"))
    return Golden(int(fact(batches[0], "version")), int(fact(batches[0], "upto")), before, state, after)


def remembered(fold: Fold, golden: Golden) -> Tables:
    return golden.state if golden.version == fold.version else fold.upgrade(golden.version, golden.state)


if __name__ == "__main__":
    for case in cases():
        keyed = fold_of(case)
        path = path_of(case, keyed.fold.version)
        if case.streams and not path.exists():
            write(path, half_way(keyed, case.inputs(np.random.default_rng(5), 40)))
            print(path)
