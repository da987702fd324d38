"""The shape of the house: sizes, names, docstrings, prints, and the folders a visitor sees first."""

from __future__ import annotations

import ast
import doctest
import importlib

import pytest

from architecture import house

MODULES = house.modules()
IDS = [m.name for m in MODULES]


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_files_are_small_enough(module):
    private = module.path.stem.startswith("_") and module.path.stem != "__init__"
    limit = (house.MAX_PRIVATE_LINES if private else {}).get(module.room) or house.MAX_LINES.get(module.room, house.MAX_KERNEL_LINES)
    lines = len(module.path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit or module.name in house.OVERSIZE, f"{module.name} has {lines} lines, more than {limit}"


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_functions_are_small_enough(module):
    large = [
        f"{n.name}: {n.end_lineno - n.lineno + 1} lines"
        for n in ast.walk(module.tree)
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
        and n.end_lineno - n.lineno + 1 > house.MAX_FUNCTION_LINES
        and f"{module.name}:{n.name}" not in house.OVERSIZE
    ]
    assert not large, f"{module.name}: {large}"


def test_exceptions_to_sizes_are_still_needed():
    names = {m.name for m in MODULES}
    assert {key.partition(":")[0] for key in house.OVERSIZE} <= names


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_modules_are_named_after_things(module):
    assert module.path.stem.strip("_") not in house.FORBIDDEN_NAMES


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_every_module_says_what_it_is(module):
    docstring = ast.get_docstring(module.tree)
    assert docstring, module.name
    assert docstring.splitlines()[0].endswith((".", ":")), f"{module.name}: the first line is one sentence"


def public_classes():
    for module in MODULES:
        if module.room in ("io", "transforms") and not module.path.stem.startswith("_"):
            for n in module.tree.body:
                if isinstance(n, ast.ClassDef) and not n.name.startswith("_"):
                    yield pytest.param(module, n, id=f"{module.name}:{n.name}")


@pytest.mark.parametrize(("module", "node"), public_classes())
def test_every_public_class_says_what_it_does(module, node):
    docstring = ast.get_docstring(node)
    assert docstring, f"{module.name}: {node.name}"
    inherits = " ".join(ast.unparse(b) for b in node.bases)
    if "PTransform" in inherits or node.name.startswith(("ReadFrom", "WriteTo")):
        assert "Example:" in docstring, f"{module.name}: {node.name} shows no example"
        assert ">>>" in docstring, f"{module.name}: the example of {node.name} is not executed"


DOCTESTED = [m for m in MODULES if ">>> " in m.path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", DOCTESTED, ids=lambda m: m.name)
def test_examples_in_docstrings_are_true(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "tiebeam." + module.name.removesuffix(".py").replace("/", ".")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize("module", [m for m in MODULES if m.room not in ("cli", "pipelines", "terminal")], ids=lambda m: m.name)
def test_only_the_command_line_prints(module):
    prints = [n.lineno for n in ast.walk(module.tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
    assert not prints, f"{module.name}, lines {prints}"


@pytest.mark.parametrize("room", ["io", "transforms", "pipelines", "templates"])
def test_the_rooms_are_seen_from_the_root(room):
    link = house.ROOT / room
    assert link.is_symlink(), f"{room} is no link at the root"
    assert str(link.readlink()) == f"src/tiebeam/{room}"
    assert (link / "__init__.py").is_file()
