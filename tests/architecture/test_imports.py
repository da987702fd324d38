"""Who imports whom: an edge that is not in the table is an error."""

from __future__ import annotations

import ast
import sys

import pytest

from architecture import house

MODULES = house.modules()
IDS = [m.name for m in MODULES]


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_every_edge_within_tiebeam_is_allowed(module):
    assert module.room in house.MAY_IMPORT, f"{module.name}: a new room or kernel module must be entered in house.py"
    wrong = [f"line {i.line}: {i.name}" for i in house.imports(module) if i.name.split(".")[0] == "tiebeam" and not allowed(module, i)]
    assert not wrong, f"{module.name} may not import\n" + "\n".join(wrong)


def allowed(module, imported):
    _, _, inner = imported.name.partition(".")
    target, _, sibling = inner.partition(".")
    if not target:
        return True  # tiebeam itself: the version
    if target == module.room and target in house.ROOMS:
        return sibling.startswith("_") or not sibling
    rooms = house.MAY_IMPORT[module.room] | (house.MAY_IMPORT_LATE.get(module.room, set()) if imported.late else set())
    return target in rooms and not (target in house.ROOMS and sibling.startswith("_") and module.room != "cli")


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_every_package_from_outside_is_allowed_where_it_stands(module):
    wrong = []
    for i in house.imports(module):
        package = i.name.split(".")[0]
        known = package == "tiebeam" or package in sys.stdlib_module_names
        late = i.late and package in house.OUTSIDE_LATE.get(module.room, set())
        if not known and not late and package not in house.OUTSIDE.get(module.room, set()):
            wrong.append(f"line {i.line}: {i.name}")
    assert not wrong, f"{module.name} may not import, or only inside functions\n" + "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_imports_are_absolute(module):
    relative = [n.lineno for n in ast.walk(module.tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert not relative, f"{module.name}, lines {relative}"


def test_a_vendor_client_has_one_home_in_io():
    """A package of one outside system is imported by the files of one connector only."""
    homes: dict[str, set[str]] = {}
    for module in MODULES:
        if module.room == "io":
            for i in house.imports(module):
                package, *parts = i.name.split(".")
                if package == "google":  # many systems: google.cloud.bigquery, google.pubsub_v1; what they share is no system
                    package = ".".join(["google", *parts[: 1 + (parts[:1] == ["cloud"])]])
                if package in house.SHARED_IN_IO:
                    continue
                if i.name.split(".")[0] in house.OUTSIDE_LATE["io"]:
                    homes.setdefault(package, set()).add(module.path.stem.strip("_").split("_")[0])
    assert not {package: names for package, names in homes.items() if len(names) > 1 and package != "duckdb"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.name not in ("options.py",) and m.room != "lab"], ids=lambda m: m.name)
def test_only_options_and_the_lab_read_the_environment(module):
    """The lab stands outside jobs: it looks for programs, and gives processes their environment."""
    readers = [
        f"line {n.lineno}"
        for n in ast.walk(module.tree)
        if isinstance(n, ast.Attribute) and n.attr in ("environ", "environb", "getenv", "putenv")
    ]
    assert not readers, f"{module.name}: {readers}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.room not in ("pipelines", "options")], ids=lambda m: m.name)
def test_only_pipelines_declare_jobs_and_run_them(module):
    wrong = []
    for n in ast.walk(module.tree):
        if isinstance(n, ast.ImportFrom) and n.module == "tiebeam.options":
            wrong += [f"line {n.lineno}: {a.name}" for a in n.names if a.name in ("JobOptions", "role", "parse")]
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in ("run", "wait_until_finish"):
            caller = ast.unparse(n.func.value)
            if caller not in ("subprocess", "_job"):
                wrong.append(f"line {n.lineno}: {caller}.{n.func.attr}()")
    assert not wrong, f"{module.name}: {wrong}"


def test_the_table_names_nothing_that_is_gone():
    names = {m.room for m in MODULES} | set(house.ROOMS)
    assert set(house.MAY_IMPORT) <= names
    assert all(targets <= names for targets in (*house.MAY_IMPORT.values(), *house.MAY_IMPORT_LATE.values()))
