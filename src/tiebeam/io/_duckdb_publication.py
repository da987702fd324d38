"""Publication in DuckDB: staged Arrow files become rows of a table, and the run an entry of the ledger, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.types as t

from tiebeam import __version__
from tiebeam.errors import ConfigError, Problem
from tiebeam.io._column_types import ConflictError, fits, widest
from tiebeam.io._duckdb import columns_of, first_row, full_name, kind_of, listed, quoted, quoted_table
from tiebeam.io._typed_files import cast, rebuilt
from tiebeam.rows import ROW_CHANGE, ROW_POSITION, ROW_TIME, RowBatch

LEDGER = "tiebeam_ledger"
EXTENSIONS = {"arrow.uuid": pa.string(), "arrow.json": pa.string(), "arrow.bool8": pa.bool_()}
"""The extension types that DuckDB knows, and what a column of them is read as."""

_STAGED, _LAST, _DELETED = "_tiebeam_staged", "_tiebeam_last", "_tiebeam_deleted"


def is_noted(con: Any, run_id: str, table: str) -> bool:
    """Whether the ledger, created when missing, says that this run was published to this table."""
    con.execute(
        f'CREATE TABLE IF NOT EXISTS {LEDGER} (run_id VARCHAR, "table" VARCHAR, rows BIGINT, published_at TIMESTAMPTZ, version VARCHAR, '
        'PRIMARY KEY (run_id, "table"))'
    )
    return first_row(con, f'SELECT 1 FROM {LEDGER} WHERE run_id = ? AND "table" = ?', run_id, full_name(table)) is not None


def noted(con: Any, prefix: str, table: str) -> list[str]:
    """The runs whose names begin so that were published to this table."""
    if kind_of(con, LEDGER) is None:
        return []
    found = con.execute(f'SELECT run_id FROM {LEDGER} WHERE starts_with(run_id, ?) AND "table" = ?', [prefix, full_name(table)])
    return [run_id for (run_id,) in found.fetchall()]


def note(con: Any, run_id: str, table: str, rows: int) -> None:
    con.execute(f"INSERT INTO {LEDGER} VALUES (?, ?, ?, now(), ?)", [run_id, full_name(table), rows, __version__])


@dataclass
class Publication:
    """Brings the rows of staged files into a table."""

    con: Any
    table: str
    mode: str
    key: tuple[str, ...]
    new_columns: str
    where: str

    def apply(self, files: list[Path]) -> None:
        if not files:
            if self.mode == "replace" and kind_of(self.con, self.table):
                self.con.execute(f"DELETE FROM {quoted_table(self.table)}")
            return
        schema = self._schema(files)
        columns = self._fit_table(schema)
        if self.mode == "replace":
            self.con.execute(f"DELETE FROM {quoted_table(self.table)}")
        self.con.register(_STAGED, pa.RecordBatchReader.from_batches(schema, _batches(files, schema)))
        if self.mode == "upsert":
            self._upsert(columns, schema.names)
        else:
            self.con.execute(f"INSERT INTO {quoted_table(self.table)} BY NAME SELECT {listed(columns)} FROM {_STAGED}")

    def _schema(self, files: list[Path]) -> pa.Schema:
        """The schema that holds the rows of all files."""
        schemas = set()
        for file in files:
            if not file.exists():
                raise FileNotFoundError(f"{self.where}: the staged file {file} is gone, and its run was never published")
            with pa.OSFile(str(file)) as source:
                schemas.add(pa.ipc.open_stream(source).schema)
        try:
            schema = widest(sorted(schemas, key=str))
        except ConflictError as e:
            what = f"column {e.column!r} is {e.one} in some rows and {e.other} in others"
            raise self._error(what, "give it one type before writing") from e
        same = {name.lower(): name for name in schema.names}
        for name in schema.names:
            if same[name.lower()] != name:
                what = f"columns {name!r} and {same[name.lower()]!r} differ in case only"
                raise self._error(what, "rename one, DuckDB takes them for one")
        return schema

    def _fit_table(self, schema: pa.Schema) -> list[str]:
        """Makes the table take these rows; returns the columns it takes. A column of nothing but nulls has no type yet, and waits."""
        exists = kind_of(self.con, self.table) is not None
        kept = {name.lower(): kind for name, kind in columns_of(self.con, quoted_table(self.table)).items()} if exists else {}
        wanted = [f for f in schema if not (self.mode == "upsert" and f.name == ROW_CHANGE)]
        for field in wanted:
            held = kept.get(field.name.lower(), field.type)
            if held != field.type and not fits(rebuilt(field.type, _as_read), held):
                what = f"column {field.name!r} is {field.type} in the rows and {held} in the table, which cannot hold it"
                raise self._error(what, f"convert the column before writing, or alter the table {self.table}")
        new = [f.name for f in wanted if f.name.lower() not in kept and not t.is_null(f.type)]
        if new:
            self._add(new, schema, exists)
        elif not exists:
            raise self._error("every column is null, so there is nothing to create the table of", "create the table before")
        return [f.name for f in wanted if f.name.lower() in kept or f.name in new]

    def _add(self, new: list[str], schema: pa.Schema, exists: bool) -> None:
        self.con.register(_STAGED, schema.empty_table())
        types = {name: kind for name, kind, *_ in self.con.execute(f"DESCRIBE {_STAGED}").fetchall()}
        defined = [f"{quoted(name)} {types[name]}" for name in new]
        if not exists:
            if "." in self.table:
                self.con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(self.table.partition('.')[0])}")
            self.con.execute(f"CREATE TABLE {quoted_table(self.table)} ({', '.join(defined)})")
            return
        if self.new_columns == "refuse":
            raise self._error(f"the table has no column {', '.join(map(repr, new))}", "new_columns=add, or leave the column out")
        for definition in defined:
            self.con.execute(f"ALTER TABLE {quoted_table(self.table)} ADD COLUMN {definition}")

    def _upsert(self, columns: list[str], staged: list[str]) -> None:
        deleted = f"coalesce({ROW_CHANGE} = 'delete', false)" if ROW_CHANGE in staged else "false"
        self.con.execute(
            f"CREATE OR REPLACE TEMP TABLE {_LAST} AS SELECT {listed(columns)}, {deleted} AS {_DELETED} FROM {_STAGED} s "
            f"QUALIFY row_number() OVER (PARTITION BY {listed(list(self.key))} ORDER BY {_latest_first(staged)}) = 1"
        )
        others = [f"{quoted(c)} = s.{quoted(c)}" for c in columns if c not in self.key]
        self.con.execute(
            f"MERGE INTO {quoted_table(self.table)} t USING {_LAST} s "
            f"ON {' AND '.join(f't.{quoted(k)} = s.{quoted(k)}' for k in self.key)} "
            f"WHEN MATCHED AND s.{_DELETED} THEN DELETE "
            f"WHEN MATCHED THEN {'UPDATE SET ' + ', '.join(others) if others else 'DO NOTHING'} "
            f"WHEN NOT MATCHED AND NOT s.{_DELETED} THEN INSERT ({listed(columns)}) VALUES ({listed(columns, 's.')})"
        )
        self.con.execute(f"DROP TABLE {_LAST}")

    def _error(self, what: str, fix: str) -> ConfigError:
        return ConfigError(Problem(what, self.where, fix))


def _latest_first(staged: list[str]) -> str:
    """Orders staged rows `s` of one key, the same way however they arrived."""
    order = [ROW_TIME] if ROW_TIME in staged else []
    if ROW_POSITION in staged:  # digits at its end are a number: a.jsonl:10 comes after a.jsonl:9
        order.append(f"regexp_replace({ROW_POSITION}, '[0-9]+$', '')")
        order.append(f"try_cast(regexp_extract({ROW_POSITION}, '[0-9]+$') AS UHUGEINT)")
        order.append(ROW_POSITION)
    return ", ".join(f"{by} DESC NULLS LAST" for by in [*order, "hash(s)"])


def _batches(files: Iterable[Path], schema: pa.Schema) -> Iterator[RowBatch]:
    for file in files:
        with pa.OSFile(str(file)) as source:
            for batch in pa.ipc.open_stream(source):
                yield _conformed(batch, schema)


def _conformed(batch: RowBatch, schema: pa.Schema) -> RowBatch:
    columns = []
    for field in schema:
        column = batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        columns.append(cast(column, field.type))
    return RowBatch.from_arrays(columns, schema=schema)


def _as_read(kind: pa.DataType) -> pa.DataType:
    return EXTENSIONS.get(kind.extension_name, kind) if isinstance(kind, pa.BaseExtensionType) else kind
