"""Reads without a pipeline: a source part by part, as its workers do, and what a warehouse holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb

from tiebeam.dead_letters import Letters
from tiebeam.io._file_source import FilePart, FileSource
from tiebeam.rows import RowBatch


def parts_of(source: FileSource) -> list[FilePart]:
    return [part for file in source.files() for part in source.parts(file.path, file.size)]


def sort(items: Iterable[RowBatch | Letters]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and dead letters, each as dicts; every batch is held to the law that it has a row."""
    rows, letters = [], []
    for item in items:
        batch = item.batch if isinstance(item, Letters) else item
        assert batch.num_rows
        (letters if isinstance(item, Letters) else rows).extend(batch.to_pylist())
    return rows, letters


def read(source: FileSource, parts: list[FilePart] | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows and the dead letters of a source, in the order of their positions."""
    ready = source.prepared(source.files())
    rows, letters = sort(item for part in parts or parts_of(source) for item in ready.deliver(part, "Read"))
    return sorted(rows, key=place), sorted(letters, key=place)


def place(row: dict[str, Any]) -> tuple[str, int]:
    path, _, offset = (row.get("row_position") or ":0").rpartition(":")
    return path, int(offset) if offset.isdigit() else 0


def tables(path: Path) -> dict[str, list[str]]:
    """The tables of a DuckDB file, with all of their rows as text, in order; ledgers left out."""
    with duckdb.connect(str(path), read_only=True) as warehouse:
        names = [name for (name,) in warehouse.sql("SELECT table_name FROM duckdb_tables() WHERE NOT internal ORDER BY 1").fetchall()]
        return {name: sorted(map(str, warehouse.sql(f'FROM "{name}"').fetchall())) for name in names if "ledger" not in name.lower()}
