"""What an earlier release remembered is read and folded on; see support/golden.py."""

from __future__ import annotations

import pytest

from laws.cases import Case, cases
from support import golden, matrix
from support.folding import collected
from tiebeam.rows import ROW_TIME
from tiebeam.transforms._fold import END, Tables

STREAMING = [case for case in cases() if case.streams]
FILES = [
    pytest.param(case, path, id=path.stem)
    for case in STREAMING
    for path in sorted(golden.FOLDER.glob(golden.path_of(case, 0).stem[:-1] + "*"))
]


@pytest.mark.parametrize(("case", "path"), FILES)
def test_state_of_every_release_is_folded_on(case: Case, path):
    kept, fold = golden.read(path), golden.fold_of(case).fold

    def trimmed(tables: Tables) -> Tables:
        return {name: fold.condense(name, fold.trim(name, rows)) for name, rows in tables.items()}

    first = collected(fold.fold({}, trimmed(kept.before), kept.upto).rows)
    rest = collected(fold.fold(golden.remembered(fold, kept), trimmed(kept.after), END).rows)
    inputs = {name: [t[name] for t in (kept.before, kept.after) if name in t] for name in fold.keys}
    given = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    assert matrix.canonical(first + rest) == matrix.canonical(case.expected(given))
    assert kept.state, "a case whose state is empty half-way says nothing"
    assert all(ROW_TIME in rows.schema.names for rows in kept.before.values())


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in STREAMING])
def test_the_state_of_this_release_is_kept(case):
    assert golden.path_of(case, golden.fold_of(case).fold.version).exists(), "cd tests && python -m support.golden"
