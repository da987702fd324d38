"""How the suite makes a place for each connector to write to and read from, and which gaps a connector declares.

A new connector needs one entry in `TARGETS`. Without one only what can be said without a place is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tiebeam import registry
from tiebeam.connectors import Sink, Source


@dataclass(frozen=True)
class Target:
    """The options that a sink and a source of the same place get, and those of a place that cannot be; what names the place."""

    sink: Callable[[Path], dict[str, Any]]
    source: Callable[[Path], dict[str, Any]]
    impossible: Callable[[Path], dict[str, Any]]
    shown: Callable[[Path], str] = str


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


EMULATORS: dict[str, Any] = {}
"""Services that run, by the connector that needs one: tests/contract/conftest.py starts them for its tests."""


def _table(folder: Path) -> dict[str, Any]:
    """A table in a dataset of its own on the emulator."""
    return {"table": f"{_dataset(folder)}.sales", **_emulator()}


def _emulator() -> dict[str, Any]:
    running = EMULATORS["bigquery"]
    return {"bigquery_endpoint": running.rest, "bigquery_storage_endpoint": running.storage, "patience_secs": 20.0}


def _dataset(folder: Path) -> str:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    name = f"d_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    where = {"api_endpoint": EMULATORS["bigquery"].rest}
    bigquery.Client("lab", AnonymousCredentials(), client_options=where).create_dataset(name, exists_ok=True)
    return name


TARGETS: dict[str, Target] = {
    "bigquery": Target(
        sink=_table,
        source=_table,
        impossible=lambda folder: {"table": "nowhere.sales", **_emulator()},
        shown=_dataset,
    ),
    "avro": _folder("avro"),
    "csv": _folder("csv", newlines_in_values=True),
    "jsonl": _folder("jsonl"),
    "parquet": _folder("parquet"),
    "duckdb": Target(
        sink=lambda folder: {"path": str(folder / "shop.duckdb"), "table": "sales"},
        source=lambda folder: {"path": str(folder / "shop.duckdb"), "table": "sales"},
        impossible=lambda folder: {"path": str(_file(folder) / "shop.duckdb"), "table": "sales"},
    ),
}

# Connectors without a place here, with the reason.
UNPLACED: dict[str, str] = {
    "kafka": "its rows are JSON, and its place is a broker: tests/io/test_kafka.py and test_kafka_faults.py say what it promises",
}

# What a connector does not do, with the reason. Each is an expected failure: when it works after all, the test says so.
GAPS: dict[tuple[str, str], str] = {
    ("bigquery", "nested"): "an array of BigQuery is never null: one that was comes back empty",
    ("bigquery", "durations"): "INTERVAL cannot be written by the Storage API: such a column is refused, with what to do",
    ("bigquery", "odd names"): "a name in BigQuery is letters, digits and _; others are refused, with the column",
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
