"""How the suite makes a place for each connector to write to and read from, and which gaps a connector declares.

A new connector needs one entry in `TARGETS`. Without one only what can be said without a place is checked.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
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
    """The options that a sink and a source of the same place get, and those of a place that cannot be; what names the place."""

    sink: Callable[[Path], dict[str, Any]]
    source: Callable[[Path], dict[str, Any]]
    impossible: Callable[[Path], dict[str, Any]]
    connector: str = ""
    """The connector, where the name of the place is another."""
    fixture: str = ""
    """The fixture of the service that the place is in."""
    shown: Callable[[Path], str] = str
    """What stands for the place where a connector is shown."""


def _folder(extension: str, **reading: Any) -> Target:
    return Target(
        sink=lambda folder: {"path": str(folder / f"{extension} table")},
        source=lambda folder: {"path": str(folder / f"{extension} table"), **reading},
        impossible=lambda folder: {"path": str(_file(folder) / "below")},
    )


def _on_gs(extension: str, **reading: Any) -> Target:
    """The folder of a table in Cloud Storage: the suite once more, for what is another way to read, write and publish there."""
    return Target(
        sink=lambda folder: {"path": f"gs://contract{folder}/{extension} table"},
        source=lambda folder: {"path": f"gs://contract{folder}/{extension} table", **reading},
        impossible=lambda folder: {"path": f"gs://no-such-bucket{folder}"},
        connector=extension,
        fixture="gcs",
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
    "kafka": Target(sink=_to_topic, source=_from_topic, impossible=lambda folder: {**_to_topic(folder), "servers": "127.0.0.1:1"}),
    "duckdb": Target(
        sink=lambda folder: {"path": str(folder / "shop.duckdb"), "table": "sales"},
        source=lambda folder: {"path": str(folder / "shop.duckdb"), "table": "sales"},
        impossible=lambda folder: {"path": str(_file(folder) / "shop.duckdb"), "table": "sales"},
    ),
}

# Further places of connectors that have one above.
VARIANTS: dict[str, Target] = {
    "avro on gs": _on_gs("avro"),
    "csv on gs": _on_gs("csv", newlines_in_values=True),
    "jsonl on gs": _on_gs("jsonl"),
    "parquet on gs": _on_gs("parquet"),
}

# Connectors without a place here, with the reason.
UNPLACED: dict[str, str] = {
    "pubsub": "its rows are JSON, and its place is a service: tests/io/test_pubsub.py says what it promises",
}

# What a connector does not do, with the reason. Each is an expected failure: when it works after all, the test says so.
GAPS: dict[tuple[str, str], str] = {
    ("bigquery", "nested"): "an array of BigQuery is never null: one that was comes back empty",
    ("bigquery", "durations"): "INTERVAL cannot be written by the Storage API: such a column is refused, with what to do",
    ("bigquery", "odd names"): "a name in BigQuery is letters, digits and _; others are refused, with the column",
    ("kafka", "replace"): "messages that were sent stay: a topic cannot be replaced in one step",
    ("kafka", "odd names"): "a name in Avro is letters, digits and _; others are refused, with the column",
    ("avro", "odd names"): "a name in Avro is letters, digits and _; others are refused before the run, with the column",
    ("avro on gs", "odd names"): "as avro",
    ("duckdb", "durations"): "DuckDB has intervals of months, days and microseconds, which are no durations",
}


def target(name: str) -> Target:
    return TARGETS[name] if name in TARGETS else VARIANTS[name]


def sink(name: str, folder: Path, **more: Any) -> Sink:
    return registry.connector("sink", target(name).connector or name)(**target(name).sink(folder), **more)


def source(name: str, folder: Path, **more: Any) -> Source:
    return registry.connector("source", target(name).connector or name)(**target(name).source(folder), **more)


def named(role: str, *, placed: bool = True) -> list[str]:
    """The connectors that play a role; `placed` leaves out those without a target, and adds further places of the others."""
    names = [e.name for e in registry.entries("connectors") if role in e.roles]
    if not placed:
        return names
    return [n for n in names if n in TARGETS] + [n for n, place in VARIANTS.items() if place.connector in names]


def with_gaps(names: list[str], concern: str) -> list[Any]:
    """Parameters for a test of one concern, where a declared gap is an expected failure."""
    return [
        pytest.param(n, id=n, marks=[pytest.mark.xfail(strict=True, reason=GAPS[n, concern])] if (n, concern) in GAPS else [])
        for n in names
    ]
