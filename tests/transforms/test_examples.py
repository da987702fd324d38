"""Every public transform shows how it is used, and what it shows is so."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import apache_beam as beam
import pytest

from tiebeam import transforms

MODULES = sorted(path.stem for path in Path(transforms.__file__).parent.glob("[a-z]*.py"))


def public_transforms(module) -> list[type]:
    found = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, beam.PTransform)]
    return [cls for cls in found if cls.__module__ == module.__name__ and not cls.__name__.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_hold(name):
    module = importlib.import_module(f"tiebeam.transforms.{name}")
    assert doctest.testmod(module).failed == 0
    assert public_transforms(module)
    for cls in public_transforms(module):
        assert any(test.examples for test in doctest.DocTestFinder().find(cls, module=module)), f"{cls.__name__} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_the_docstring_tells_what_goes_in_and_comes_out(name):
    for cls in public_transforms(importlib.import_module(f"tiebeam.transforms.{name}")):
        said = inspect.getdoc(cls) or ""
        assert "In:" in said, cls.__name__
        assert "Out:" in said, cls.__name__
