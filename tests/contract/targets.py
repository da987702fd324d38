"""How the suite makes a place for each connector to write to and read from, and which gaps a connector declares.

A new connector needs one entry in `TARGETS`. Without one only what can be said without a place is checked.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import registry as registry_of_schemas
from support import services
from tiebeam import registry
from tiebeam.connectors import Sink, Source


@dataclass(frozen=True)
class Target:
    """The options that a sink and a source of the same place get, and those of a place that cannot be."""

    sink: Callable[[Path], dict[str, Any]]
    source: Callable[[Path], dict[str, Any]]
    impossible: Callable[[Path], dict[str, Any]]


def _folder(extension: str, **reading: Any) -> Target:
    return Target(
        sink=lambda folder: {"path": str(folder / f"{extension} table")},
        source=lambda folder: {"path": str(folder / f"{extension} table"), **reading},
        impossible=lambda folder: {"path": str(_file(folder) / "below")},
    )


def _file(folder: Path) -> Path:
    """A file, where a folder is wanted."""
    file = folder / "file"
    file.write_text("in the way")
    return file


@functools.cache
def _registry() -> str:
    """A schema registry, for as long as the tests run."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(registry_of_schemas.running()).url


def _topic(folder: Path) -> dict[str, Any]:
    """A topic of one partition for each folder, on the broker of the tests; its rows are Avro, which holds types."""
    name = f"contract-{zlib.crc32(str(folder).encode())}"
    return {"servers": services.broker().servers, "format": "avro", "schema_registry": _registry(), "topic": name}


def _to_topic(folder: Path) -> dict[str, Any]:
    return {**_topic(folder), "partitions": 1, "staging": str(folder / "staging"), "ledger": "contract-ledger"}


def _from_topic(folder: Path) -> dict[str, Any]:
    options = _topic(folder)
    topic = options.pop("topic")
    return {**options, "topics": (topic,), "until": "latest"}


TARGETS: dict[str, Target] = {
    "avro": _folder("avro"),
    "csv": _folder("csv", newlines_in_values=True),
    "jsonl": _folder("jsonl"),
    "parquet": _folder("parquet"),
    "kafka": Target(sink=_to_topic, source=_from_topic, impossible=lambda folder: {**_to_topic(folder), "servers": "127.0.0.1:1"}),
    "duckdb": Target(
        sink=lambda folder: {"path": str(folder / "shop.duckdb"), "table": "sales"},
        source=lambda folder: {"path": str(folder / "shop.duckdb"), "table": "sales"},
        impossible=lambda folder: {"path": str(_file(folder) / "shop.duckdb"), "table": "sales"},
    ),
}

# Connectors without a place here, with the reason.
UNPLACED: dict[str, str] = {}

# What a connector does not do, with the reason. Each is an expected failure: when it works after all, the test says so.
GAPS: dict[tuple[str, str], str] = {
    ("kafka", "replace"): "messages that were sent stay: a topic cannot be replaced in one step",
    ("kafka", "odd names"): "a name in Avro is letters, digits and _; others are refused, with the column",
    ("avro", "odd names"): "a name in Avro is letters, digits and _; others are refused before the run, with the column",
    ("duckdb", "durations"): "DuckDB has intervals of months, days and microseconds, which are no durations",
}


def sink(name: str, folder: Path, **more: Any) -> Sink:
    return registry.connector("sink", name)(**TARGETS[name].sink(folder), **more)


def source(name: str, folder: Path, **more: Any) -> Source:
    return registry.connector("source", name)(**TARGETS[name].source(folder), **more)


def named(role: str, *, placed: bool = True) -> list[str]:
    """The connectors that play a role; `placed` leaves out those without a target."""
    return [e.name for e in registry.entries("connectors") if role in e.roles and (e.name in TARGETS or not placed)]


def with_gaps(names: list[str], concern: str) -> list[Any]:
    """Parameters for a test of one concern, where a declared gap is an expected failure."""
    return [
        pytest.param(n, id=n, marks=[pytest.mark.xfail(strict=True, reason=GAPS[n, concern])] if (n, concern) in GAPS else [])
        for n in names
    ]
