"""DuckDB: tables of one database file, the embedded warehouse.

Needs `duckdb`, which is installed with tiebeam. While a process writes a DuckDB file nobody else may open it: who finds
it locked waits `wait_secs`, then says which process holds it. https://duckdb.org/docs/stable/connect/concurrency
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t
from apache_beam.transforms.window import TimestampedValue

from tiebeam.connectors import Sink, Source
from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.io._duckdb import columns_of, connect, first_row, full_name, kind_of, quoted, quoted_table, reaching, transaction
from tiebeam.io._duckdb_publication import EXTENSIONS, LEDGER, Publication, is_noted, note, noted
from tiebeam.io._event_time import event_times, where_possible
from tiebeam.io._typed_files import cast, joined, rebuilt, with_positions
from tiebeam.options import option
from tiebeam.rows import MAX_BATCH_ROWS, ROW_TIME, RowBatch, cut, one_batch, timestamp_of, with_column
from tiebeam.staging import Staged
from tiebeam.steps import BatchFn, apply_batches

STALE_SECS = 24 * 3600

_ROWID = "_tiebeam_rowid"
_INFINITY = 2**63 - 1

_publishing = threading.Lock()


class ReadFromDuckDB(Source):
    """Reads a table in parallel ranges, or a query as one stream.

    Out: the columns as DuckDB hands them to Arrow (UUID and JSON as text, TIMESTAMPTZ in UTC); `row_position`
        is `path#table:rowid` for a table, and absent for a query or a view.
    Errors: rows whose `event_time` is null or infinite are refused as `bad_event_time`; a database that is written while its ranges are
        read stops the run.
    Time: `row_time` is the column `event_time`, a date or a timestamp; one without zone counts as UTC.

    Example:
        >>> ReadFromDuckDB("shop.duckdb", "sales", event_time="sold_at")
        ReadFromDuckDB(path='shop.duckdb', table='sales', event_time='sold_at')
    """

    path: str = option(help="Database file", example="shop.duckdb", place="local")
    table: str | None = option(None, help="Table or view, `table` or `schema.table`; or else a query", example="sales")
    query: str | None = option(None, help="SELECT whose rows are read, instead of a table", example="SELECT * FROM sales WHERE amount > 0")
    event_time: str | None = option(None, help="Column that becomes row_time: a date or a timestamp", example="sold_at")
    rows_per_range: int = option(1_228_800, help="Rows of a table that one worker reads at a time", unit="rows", low=1)
    wait_secs: int = option(60, help="How long a file that another process has locked is waited for", unit="seconds", low=0)

    def check(self) -> Iterable[Problem]:
        yield from _check_path(self.path)
        if (self.table is None) == (self.query is None):
            yield Problem("give exactly one of table and query", "table", "table=sales, or query='SELECT …'")

    def ping(self) -> None:
        with reaching(self.path), connect(self.path, read_only=True) as con:
            columns = columns_of(con, self._relation())
        if self.event_time is None:
            return
        if self.event_time not in columns:
            raise ConfigError(Problem(f"there is no column {self.event_time!r}", "event_time", f"there are: {', '.join(columns)}"))
        kind = columns[self.event_time]
        if not (t.is_timestamp(kind) or t.is_date(kind)):
            fix = f"use a query with CAST({quoted(self.event_time)} AS TIMESTAMPTZ)"
            raise ConfigError(Problem(f"column {self.event_time!r} is {kind}, neither a date nor a timestamp", "event_time", fix))

    def sample(self, rows: int) -> RowBatch | None:
        with reaching(self.path), connect(self.path, read_only=True) as con:
            parts = [b for b in self._batches(con, f"LIMIT {rows:d}", self.label) if isinstance(b, RowBatch)]
        return one_batch(pa.Table.from_batches(parts)) if parts else None

    def fingerprint(self) -> str | None:
        """Reads every row: a file's date would change with any other table in it."""
        with reaching(self.path), connect(self.path, read_only=True) as con:
            rows, sum_of_hashes = first_row(con, f"SELECT count(*), sum(hash(*COLUMNS(*))::HUGEINT) FROM {self._relation()}")
        return f"{rows}-{sum_of_hashes}"

    def read(self, begin: Any) -> beam.PCollection:
        ranges = begin | "Begin" >> beam.Create([0]) | "Plan ranges" >> beam.ParDo(_PlanFn(self)).with_output_types(tuple[int, int, int])
        return apply_batches(ranges | "Spread ranges" >> beam.Reshuffle(), "Read rows", _ReadFn(self.label, self))

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """First rowid, the rowid behind the last (0: read everything as one stream), and the state of the file."""
        with connect(self.path, read_only=True, wait_secs=self.wait_secs) as con:
            state = _state(self.path)
            if not self._has_rowids(con):
                yield 0, 0, state
                return
            (last,) = first_row(con, f"SELECT max(rowid) FROM {self._relation()}")
        for start in range(0, 0 if last is None else last + 1, self.rows_per_range):
            yield start, start + self.rows_per_range, state

    def read_range(self, start: int, end: int, state: int, step: str) -> Iterator[RowBatch | Letters]:
        """Reads one range; raises TransientError when the file is no longer what it was when ranges were planned."""
        with connect(self.path, read_only=True, wait_secs=self.wait_secs) as con:
            if end and _state(self.path) != state:
                raise TransientError(f"{self.path} was written while its ranges were read; run again when nobody writes it")
            yield from self._batches(con, f"WHERE rowid >= {start:d} AND rowid < {end:d}" if end else "", step)

    def _batches(self, con: Any, restriction: str, step: str) -> Iterator[RowBatch | Letters]:
        rowids = f"rowid AS {_ROWID}, " if self._has_rowids(con) else ""
        # sql(), not execute(), which copies the whole result into memory first
        found = con.sql(f"SELECT {rowids}* FROM {self._relation()} {restriction}")
        for batch in found.to_arrow_reader(MAX_BATCH_ROWS):
            for result in self._timed(self._placed(batch), step):
                yield from (result,) if isinstance(result, Letters) else cut(result)

    def _placed(self, batch: RowBatch) -> RowBatch:
        if _ROWID not in batch.schema.names:
            return batch
        return with_positions(batch.drop_columns([_ROWID]), joined(f"{self.path}#{self.table}:", batch.column(_ROWID)))

    def _timed(self, batch: RowBatch, step: str) -> Iterator[RowBatch | Letters]:
        if self.event_time is None:
            yield batch
            return
        times = event_times(batch.column(self.event_time), "iso", "UTC")
        times = pc.if_else(pc.equal(pc.abs(times.cast(pa.int64())), _INFINITY), None, times)
        batch = with_column(batch, ROW_TIME, times)
        if times.null_count:
            bad = batch.filter(times.is_null())
            yield letters_of_rows(step, bad, "bad_event_time", [f"{self.event_time} is null or infinite"] * bad.num_rows)
            batch = batch.filter(times.is_valid())
        yield batch

    def _relation(self) -> str:
        return quoted_table(self.table) if self.table is not None else f"({(self.query or '').strip().rstrip(';')}\n)"

    def _has_rowids(self, con: Any) -> bool:
        if self.table is None or kind_of(con, self.table) != "BASE TABLE":
            return False
        return "rowid" not in map(str.lower, columns_of(con, self._relation()))


class _PlanFn(beam.DoFn):
    """Cuts a table into ranges."""

    def __init__(self, source: ReadFromDuckDB):
        self.source = source

    def process(self, _):
        yield from self.source.ranges()


class _ReadFn(BatchFn):
    """Reads ranges; batches with event times are stamped with their earliest."""

    def __init__(self, step: str, source: ReadFromDuckDB):
        super().__init__(step)
        self.source = source

    def apply(self, element: tuple[int, int, int]) -> Iterator[RowBatch | Letters]:
        yield from self.source.read_range(*element, self.step)

    def process(self, element):
        for result in super().process(element):
            timed = self.source.event_time is not None and isinstance(result, RowBatch)
            yield TimestampedValue(result, timestamp_of(result)) if timed else result


class WriteToDuckDB(Sink):
    """Writes rows to a table: staged as Arrow files beside the database, then published in one transaction.

    In: any schema. Columns are matched by name, and the first run creates the table. A type that DuckDB does not have becomes
        the nearest one: float16 FLOAT, decimal256 DECIMAL of at most 38 digits, duration INTERVAL.
    Errors: rows are refused as `no_key` (upsert without a key value) and `unfit` (more than 38 digits). Rows of a type that
        the table's column cannot hold stop the run before anything is changed.
    Delivery: exactly once: the same transaction notes the run in the table `tiebeam_ledger`.
    Time: of the rows of a run with one key the last by (`row_time`, `row_position`) wins; so does the run published last. With
        `row_change` = delete that row is deleted (upsert only, where `row_change` itself is not stored).

    Example:
        >>> WriteToDuckDB("shop.duckdb", "mart.sales", mode="upsert", key=("shop", "day"))
        WriteToDuckDB(path='shop.duckdb', table='mart.sales', mode='upsert', key=('shop', 'day'))
    """

    modes: ClassVar[tuple[str, ...]] = ("append", "upsert", "replace")
    takes_changes: ClassVar[bool] = True
    takes_unbounded: ClassVar[bool] = True
    tells_runs: ClassVar[bool] = True

    path: str = option(help="Database file; created when missing", example="shop.duckdb", place="local")
    table: str = option(help="Table, `table` or `schema.table`; created when missing", example="mart.sales")
    mode: str = option("append", help="Add rows, update them by key, or replace all rows of the table", choices=modes)
    key: tuple[str, ...] = option((), help="Columns that name a row, for upsert", example="shop,day")
    new_columns: str = option("add", help="What to do with a column that the table lacks", choices=("add", "refuse"))
    wait_secs: int = option(60, help="How long a file that another process has locked is waited for", unit="seconds", low=0)

    def check(self) -> Iterable[Problem]:
        yield from _check_path(self.path)
        if (self.mode == "upsert") != bool(self.key):
            yield Problem("upsert needs a key, and other modes take none", "key", "name the columns that tell rows apart, with mode=upsert")
        if full_name(self.table) == full_name(LEDGER):
            yield Problem(f"{LEDGER} is the list of published runs", "table", "write to another table")

    def location(self) -> str:
        return f"{self.path}#{self.table}"

    def ping(self) -> None:
        folder = next(p for p in Path(self.path).absolute().parents if p.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(Problem(f"{folder} is no folder that can be written", self.path))
        if not Path(self.path).exists():
            return
        with reaching(self.path), connect(self.path, read_only=False) as con:
            kind = kind_of(con, self.table)
            columns = columns_of(con, quoted_table(self.table)) if kind else {}
        if kind == "VIEW":
            raise ConfigError(Problem(f"{self.table} is a view", self.path, "write to a table"))
        known = {name.lower() for name in columns}
        if missing := [k for k in self.key if kind and k.lower() not in known]:
            raise ConfigError(Problem(f"the table {self.table} has no column {', '.join(missing)}", "key", f"it has: {', '.join(columns)}"))

    def writer(self, run_id: str) -> _Writer:
        return _Writer(self, self._folder(run_id))

    def publish(self, run_id: str, staged: list[Staged]) -> bool:
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        where = self.location()
        with _publishing, connect(self.path, read_only=False, wait_secs=self.wait_secs) as con, transaction(con, where):
            first = not is_noted(con, run_id, self.table)
            if first:
                publication = Publication(con, self.table, self.mode, self.key, self.new_columns, where)
                publication.apply([Path(s.handle) for s in staged])
                note(con, run_id, self.table, sum(s.rows for s in staged))
        self._sweep(run_id)
        return first

    def is_published(self, run_id: str) -> bool:
        if not Path(self.path).exists():
            return False
        with _publishing, connect(self.path, read_only=False, wait_secs=self.wait_secs) as con:
            return is_noted(con, run_id, self.table)

    def runs(self, prefix: str) -> list[str]:
        if not Path(self.path).exists():
            return []
        with _publishing, connect(self.path, read_only=False, wait_secs=self.wait_secs) as con:
            return noted(con, prefix, self.table)

    def discard(self, run_id: str) -> None:
        shutil.rmtree(self._folder(run_id), ignore_errors=True)
        for folder in (self._folder(run_id).parent, _staging(self.path)):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _folder(self, run_id: str) -> Path:
        return _staging(self.path) / _file_name(run_id) / _file_name(full_name(self.table))

    def _sweep(self, run_id: str) -> None:
        """Removes what this run has staged for the table, and all of runs that have staged nothing for a day: they are dead."""
        for run in _staging(self.path).glob("*"):
            with contextlib.suppress(OSError):  # others sweep too
                if max(p.stat().st_mtime for p in (run, *run.rglob("*"))) < time.time() - STALE_SECS:
                    shutil.rmtree(run, ignore_errors=True)
        self.discard(run_id)


class _Writer:
    """Stages a bundle: one file per schema, under names that nobody else uses."""

    def __init__(self, sink: WriteToDuckDB, folder: Path):
        self.sink = sink
        self.folder = folder
        self.name = uuid.uuid4().hex
        self.files: dict[pa.Schema, _StagedFile] = {}

    def write(self, batch: RowBatch) -> Iterator[Letters]:
        stored, unfit = _storable(batch)
        keyless = functools.reduce(pc.or_, (_nulls(batch, k) for k in self.sink.key), pa.repeat(False, batch.num_rows))
        bad = pc.or_(keyless, unfit)
        if pc.any(bad).as_py():
            yield from self._refuse(batch, keyless, "no_key", f"the key ({', '.join(self.sink.key)}) is null or absent")
            yield from self._refuse(batch, pc.and_not(unfit, keyless), "unfit", "a number has more digits than DuckDB can hold, 38")
            stored = stored.filter(pc.invert(bad))
        if stored.num_rows:
            self._file(stored.schema).write(stored)

    def close(self) -> list[Staged]:
        pieces = [file.close() for file in self.files.values()]
        for folder in (self.folder, *self.folder.parents[:3]) if pieces else ():
            _sync(folder)
        return pieces

    def abort(self) -> None:
        for file in self.files.values():
            file.remove()

    def _refuse(self, batch: RowBatch, bad: pa.Array, reason: str, detail: str) -> Iterator[Letters]:
        # slices, since filter() knows no views
        rows = [batch.slice(i, 1) for i in pc.indices_nonzero(bad).to_pylist()]
        if rows:
            yield letters_of_rows(self.sink.label, one_batch(pa.Table.from_batches(rows)), reason, [detail] * len(rows))

    def _file(self, schema: pa.Schema) -> _StagedFile:
        if schema not in self.files:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.files[schema] = _StagedFile(self.folder / f"{self.name}-{len(self.files)}.arrow", schema)
        return self.files[schema]


class _StagedFile:
    """One staged file: an Arrow IPC stream, the format that lets dictionaries change from batch to batch."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path = path
        self.rows = 0
        self.file = path.open("xb")
        self.stream = pa.ipc.new_stream(self.file, schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    def write(self, batch: RowBatch) -> None:
        self.stream.write_batch(batch)
        self.rows += batch.num_rows

    def close(self) -> Staged:
        self.stream.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return Staged(str(self.path), self.rows, self.path.stat().st_size)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
            self.path.unlink(missing_ok=True)


def _storable(batch: RowBatch) -> tuple[RowBatch, pa.Array]:
    """Gives every column a type that DuckDB has, and marks the rows that lose a value by it."""
    lost = pa.repeat(False, batch.num_rows)
    stored = batch
    for field in batch.schema:
        kind = rebuilt(field.type, _nearest)
        if kind != field.type:
            given = batch.column(field.name)
            taken = where_possible(functools.partial(cast, kind=kind), given)
            lost = pc.or_(lost, pc.and_(taken.is_null(), given.is_valid()))
            stored = with_column(stored, field.name, taken)
    return stored, lost


def _nearest(kind: pa.DataType) -> pa.DataType:
    if t.is_float16(kind):
        return pa.float32()
    if t.is_decimal256(kind):
        return pa.decimal128(min(kind.precision, 38), min(kind.scale, 38))
    if t.is_string_view(kind):
        return pa.string()
    if t.is_binary_view(kind):
        return pa.binary()
    unknown = isinstance(kind, pa.BaseExtensionType) and kind.extension_name not in EXTENSIONS
    return _nearest(kind.storage_type) if unknown else kind


def _nulls(batch: RowBatch, column: str) -> pa.Array:
    return batch.column(column).is_null() if column in batch.schema.names else pa.repeat(True, batch.num_rows)


def _check_path(path: str) -> Iterator[Problem]:
    if "://" in path or not path.strip():
        yield Problem(f"{path!r} is not on a local disk, where DuckDB keeps its files", "path", "give a local path")


def _staging(path: str) -> Path:
    return Path(f"{path}.staging")


def _file_name(name: str) -> str:
    safe = quote(name, safe="").replace(".", "%2E")
    return safe if len(safe) <= 100 else f"{safe[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _state(path: str) -> int:
    """A number that changes when the database is written."""
    stats = [p.stat() if p.exists() else None for p in (Path(path), Path(f"{path}.wal"))]
    return zlib.crc32(repr([s and (s.st_ino, s.st_size, s.st_mtime_ns) for s in stats]).encode())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
