"""Which connectors and pipelines there are: found by name, imported only when used.

A connector is a module with a class `ReadFrom…` (a Source), a class `WriteTo…` (a Sink), or both; a pipeline a module
with `Options`, `build` and `run`. Ours are listed here; other people's register themselves by entry points of the groups
`tiebeam.connectors` and `tiebeam.pipelines`, whose value is the module.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

from tiebeam.errors import ConfigError, Problem

CONNECTORS = {
    "avro": "tiebeam.io.avro",
    "bigquery": "tiebeam.io.bigquery",
    "csv": "tiebeam.io.csv",
    "duckdb": "tiebeam.io.duckdb",
    "jsonl": "tiebeam.io.jsonl",
    "kafka": "tiebeam.io.kafka",
    "parquet": "tiebeam.io.parquet",
    "pubsub": "tiebeam.io.pubsub",
}
PIPELINES = {
    "ingest": "tiebeam.pipelines.ingest",
    "live": "tiebeam.pipelines.live",
    "replay": "tiebeam.pipelines.replay",
    "retail": "tiebeam.pipelines.retail",
    "rollup": "tiebeam.pipelines.rollup",
    "sessions": "tiebeam.pipelines.sessions",
}
TARGETS = {
    "airflow": "tiebeam.templates.airflow",
    "dataflow": "tiebeam.templates.dataflow",
    "flink": "tiebeam.templates.flink",
    "spark": "tiebeam.templates.spark",
}
_PREFIX = {"source": "ReadFrom", "sink": "WriteTo"}


@dataclass(frozen=True)
class Entry:
    """What can be said of a module without importing it: its name, its first line, the roles a connector can play."""

    name: str
    module: str
    summary: str
    roles: tuple[str, ...] = ()


@cache
def modules(group: str) -> dict[str, str]:
    """Names and modules of a group, `connectors`, `pipelines` or `targets`: ours, then those of entry points."""
    ours = {"connectors": CONNECTORS, "pipelines": PIPELINES, "targets": TARGETS}[group]
    others = {e.name: e.value for e in metadata.entry_points(group=f"tiebeam.{group}")}
    return dict(sorted({**others, **ours}.items()))


def entries(group: str) -> list[Entry]:
    """Describes every module of a group by reading its source, without running it."""
    return [_entry(name, module) for name, module in modules(group).items()]


def _entry(name: str, module: str) -> Entry:
    try:
        spec = util.find_spec(module)
        tree = ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else None
    except (ImportError, OSError, SyntaxError) as e:
        return Entry(name, module, f"cannot be loaded: {e}")
    if tree is None:
        return Entry(name, module, f"cannot be loaded: no module {module}")
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    roles = tuple(role for role, prefix in _PREFIX.items() if any(c.startswith(prefix) for c in classes))
    return Entry(name, module, (ast.get_docstring(tree) or "").partition("\n")[0], roles)


def connector(role: str, name: str) -> type:
    """The Source or Sink class of a connector; raises ConfigError with the nearest name when there is none."""
    module = _load("connectors", name, role)
    for attribute in vars(module).values():
        if isinstance(attribute, type) and attribute.__module__ == module.__name__ and attribute.__name__.startswith(_PREFIX[role]):
            return attribute
    able = [e.name for e in entries("connectors") if role in e.roles]
    raise ConfigError(Problem(f"the connector {name!r} cannot be a {role}", fix=f"one that can: {', '.join(able)}"))


def pipeline(name: str) -> ModuleType:
    """The module of a pipeline; raises ConfigError with the nearest name when there is none."""
    return _load("pipelines", name, "pipeline")


def target(name: str) -> ModuleType:
    """The module of templates for a platform; raises ConfigError with the nearest name when there is none."""
    return _load("targets", name, "target")


def _load(group: str, name: str, what: str) -> ModuleType:
    known = modules(group)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(Problem(f"there is no {what} called {name!r}", fix=hint))
    try:
        return importlib.import_module(known[name])
    except ImportError as e:
        raise ConfigError(Problem(f"{name!r} cannot be loaded: {e}", fix=f"see the module {known[name]}")) from e
