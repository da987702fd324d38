"""How rows become visible in BigQuery: staged in PENDING streams or in tables beside, and published once, or sent at once.

    streams   stage: rows are appended to a PENDING stream per writer and table;  publish: a batch commit of all of them
    tables    stage: Parquet is loaded into a table of the piece's own;           publish: one transaction moves all rows, by SQL
    direct    rows go to the default stream and are visible at once; what is sent again is there twice, or, with a key, an upsert again

docs/decisions/0010-bigquery-commits.md says why, and what happens when it dies in between.
"""

from __future__ import annotations

import functools
import io
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tiebeam import gcs
from tiebeam.commits import writer_of
from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.io import _bigquery_changes as changes
from tiebeam.io import _bigquery_jobs as jobs
from tiebeam.io import _bigquery_partitions as partitions
from tiebeam.io import _bigquery_streams as streams
from tiebeam.io._bigquery_client import ANSWER_SECS, Clients, Connection, TableName, digest
from tiebeam.io._bigquery_tables import Layout, Tables
from tiebeam.io._bigquery_types import Column, arrow_type, where_fitted
from tiebeam.rows import ROW_CHANGE, RowBatch
from tiebeam.staging import Staged

STAGED_DAYS = 7
_PREFIX = "_tiebeam_staged_"
_PLACE = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Target:
    """What is written, where, and how; all that a worker needs."""

    connection: Connection
    table: str
    step: str
    mode: str
    method: str | None
    delivery: str
    key: tuple[str, ...]
    layout: Layout
    max_tables: int
    staging: str | None = None
    """A folder gs://… that large loads pass through; who loads must be able to read it."""

    @property
    def direct(self) -> bool:
        return self.delivery == "at_least_once"

    def by_streams(self, run_id: str) -> bool:
        """Whether a commit goes by streams: those of an input without end do, unless told otherwise; whole runs are loaded."""
        if self.mode != "append" or self.partition:
            return False
        return (self.method or ("storage_write" if writer_of(run_id) else "load_job")) == "storage_write"

    @property
    def clients(self) -> Clients:
        return self.connection.open()

    @property
    def home(self) -> TableName:
        """The table, or one that stands for all tables of its pattern."""
        return TableName.of(partitions.split(self.table)[0], self.clients.project)

    @property
    def destination(self) -> str:
        """The table with its partition, as commits are named by: two partitions have each their own."""
        return str(TableName.of(self.table, self.clients.project))

    @functools.cached_property
    def partition(self) -> partitions.Partition | None:
        """The only partition that is written, if one is named."""
        decorator = partitions.split(self.table)[1]
        return partitions.Partition.of(decorator) if decorator is not None else None

    @property
    def ledger(self) -> jobs.Ledger:
        return jobs.Ledger(self.clients, self.home)

    def name_of(self, run_id: str) -> str:
        return digest(run_id, self.destination)

    @functools.cached_property
    def columns_in_name(self) -> tuple[str, ...]:
        return tuple(_PLACE.findall(self.table))


class _Writer:
    """What all writers share: rows are dealt to tables, given the types of their columns, and refused where they have no place."""

    def __init__(self, target: Target):
        self.target = target
        self.clients = target.clients
        self.tables = Tables(target.clients, target.layout)
        self.places: dict[TableName, Any] = {}
        self.partitioned_by: str | None = None

    def write(self, batch: RowBatch) -> Iterator[Letters]:
        for name, rows in self._dealt(batch):
            if isinstance(name, str):
                yield letters_of_rows(self.target.step, rows, name, [self._reason(name)] * rows.num_rows)
                continue
            kept = rows
            if self.target.key:
                keyless = functools.reduce(pc.or_, (_nulls(rows, k) for k in self.target.key))
                if pc.any(keyless).as_py():
                    bad = rows.filter(keyless)
                    yield letters_of_rows(self.target.step, bad, "no_key", [self._reason("no_key")] * bad.num_rows)
                    kept = rows.filter(pc.invert(keyless))
            if kept.num_rows:
                yield from self._write(name, kept)

    def _write(self, name: TableName, rows: RowBatch) -> Iterator[Letters]:
        told = rows.drop_columns([ROW_CHANGE]) if self.target.mode == "upsert" and ROW_CHANGE in rows.schema.names else rows
        columns = self.tables.fit(name, told)
        stored, bad, reasons = _stored(told, columns)
        if reasons:
            yield letters_of_rows(self.target.step, rows.filter(bad), "unfit", [reasons[i] for i in sorted(reasons)])
            good = pc.invert(bad)
            rows, stored = rows.filter(good), stored.filter(good)
        if self.target.partition and stored.num_rows:
            inside = self._inside(self.target.partition, name, stored)
            if not pc.all(inside).as_py():
                bad_rows = rows.filter(pc.invert(inside))
                yield letters_of_rows(self.target.step, bad_rows, "wrong_partition", [self._reason("wrong_partition")] * bad_rows.num_rows)
                rows, stored = rows.filter(inside), stored.filter(inside)
        if stored.num_rows:
            for refused in self.put(name, rows, stored, columns):
                bad_rows = rows.take(pa.array(refused.rows, pa.int64()))
                yield letters_of_rows(self.target.step, bad_rows, "refused", refused.reasons)

    def _inside(self, partition: partitions.Partition, name: TableName, stored: RowBatch) -> pa.Array:
        """Which rows lie in the partition that is written."""
        if self.partitioned_by is None:
            self.partitioned_by = partition.column_of(self.tables.found(name))
        held = self.partitioned_by in stored.schema.names
        return partition.holds(stored.column(self.partitioned_by)) if held else pa.repeat(False, stored.num_rows)

    def put(self, name: TableName, rows: RowBatch, stored: RowBatch, columns: list[Column]) -> Iterable[streams.Refused]:
        """Stages rows of one table, which has these columns now; which rows the service refuses."""
        raise NotImplementedError

    def _dealt(self, batch: RowBatch) -> Iterator[tuple[TableName | str, RowBatch]]:
        """The tables that rows go to, or the reason why they have none."""
        if not self.target.columns_in_name:
            yield self.target.home, batch
            return
        lacking = [c for c in self.target.columns_in_name if c not in batch.schema.names]
        if lacking:
            yield "no_table", batch
            return
        try:
            parts = [pc.fill_null(batch.column(c).cast(pa.string()), "") for c in self.target.columns_in_name]
        except pa.ArrowException as e:
            raise ConfigError(Problem(f"a value that is no text cannot be part of a name: {e}", "table", "name another column")) from None
        names = pc.binary_join_element_wise(*parts, "\0") if len(parts) > 1 else parts[0]
        for value in pc.unique(names).to_pylist():
            rows = batch.filter(pc.equal(names, value))
            values = value.split("\0")
            if len(values) != len(self.target.columns_in_name) or not all(re.fullmatch(r"[\w-]+", v) for v in values):
                yield "no_table", rows
                continue
            told = dict(zip(self.target.columns_in_name, values, strict=True))
            name = TableName.of(self.target.table.format_map(told), self.clients.project)
            if name not in self.places and len(self.places) >= self.target.max_tables:
                yield "too_many_tables", rows
            else:
                self.places.setdefault(name, None)
                yield name, rows

    def _reason(self, word: str) -> str:
        return {
            "no_key": f"the key ({', '.join(self.target.key)}) is null or absent",
            "no_table": f"{self.target.table} needs values of letters, digits, _ and - in {', '.join(self.target.columns_in_name)}",
            "wrong_partition": f"{self.partitioned_by} does not lie in the partition that is written, {self.target.table}",
            "too_many_tables": f"the rows of a bundle name more than {self.target.max_tables} tables (max_tables)",
        }[word]

    def close(self) -> list[Staged]:
        raise NotImplementedError

    def abort(self) -> None:
        pass


@dataclass
class _Stream:
    """A stream, and the columns that its table had when it was opened."""

    name: str
    appender: streams.Appender
    columns: list[Column]


class StreamWriter(_Writer):
    """Stages rows in PENDING streams, one for each table, and one more when the table has changed meanwhile."""

    def __init__(self, target: Target):
        super().__init__(target)
        self.ended: list[_Stream] = []

    def put(self, name: TableName, rows: RowBatch, stored: RowBatch, columns: list[Column]) -> Iterable[streams.Refused]:
        place = self.places.get(name)
        if place and place.columns != columns:
            self.ended.append(place)
            place = None
        if place is None:
            stream = streams.create(self.clients, name)
            place = self.places[name] = _Stream(stream, streams.Appender(self.clients, stream, streams.as_arrow, exact=True), columns)
        return place.appender.append(stored)

    def close(self) -> list[Staged]:
        staged = []
        for stream in [*self.ended, *filter(None, self.places.values())]:
            stream.appender.close()
            if rows := stream.appender.taken:
                streams.finalize(self.clients, stream.name, rows)
                staged.append(Staged(stream.name, rows, stream.appender.bytes, {"by": "stream"}))
        return staged

    def abort(self) -> None:
        for stream in [*self.ended, *filter(None, self.places.values())]:  # what is not committed is removed by the service
            stream.appender.close()


class DirectWriter(_Writer):
    """Sends rows to the default stream, where they are visible at once: as they are, or as changes by primary key."""

    def __init__(self, target: Target):
        super().__init__(target)
        self.rows = 0

    def put(self, name: TableName, rows: RowBatch, stored: RowBatch, columns: list[Column]) -> Iterable[streams.Refused]:
        place = self.places.get(name)
        if place is None or place.columns != columns:
            if place:
                place.appender.close()
            stream = f"{name.path}/streams/_default"
            encode = changes.Encoder(columns) if self.target.mode == "upsert" else streams.as_arrow
            place = self.places[name] = _Stream(stream, streams.Appender(self.clients, stream, encode, exact=False), columns)
        if self.target.mode == "upsert":
            stored = changes.marked(stored, rows)
        refused = place.appender.append(stored)
        self.rows += stored.num_rows - sum(len(r.rows) for r in refused)
        return refused

    def close(self) -> list[Staged]:
        self.abort()
        return [Staged(uuid.uuid4().hex, self.rows, 0, {"by": "direct"})] if self.rows else []

    def abort(self) -> None:
        for stream in filter(None, self.places.values()):
            stream.appender.close()


@dataclass
class _Loaded:
    """Rows of one table on their way into a staging table."""

    columns: list[Column]
    parts: list[RowBatch] = field(default_factory=list)
    bytes: int = 0


class LoadWriter(_Writer):
    """Stages rows as Parquet, loaded into a table of its own for every piece, which the service removes when it is forgotten."""

    LOAD_BYTES = 256 << 20
    SMALL_BYTES = 8 << 20
    """What is sent along with its job, even where there is a folder for staging."""

    def __init__(self, target: Target, run_id: str):
        super().__init__(target)
        self.name = target.name_of(run_id)
        self.staged: list[Staged] = []

    def put(self, name: TableName, rows: RowBatch, stored: RowBatch, columns: list[Column]) -> Iterable[streams.Refused]:
        place = self.places.get(name)
        if place and (place.columns != columns or place.bytes >= self.LOAD_BYTES):
            self._load(name, place)
            place = None
        if place is None:
            place = self.places[name] = _Loaded(columns)
        if self.target.mode == "upsert":
            stored = changes.ordered(stored, rows)
        place.parts.append(stored)
        place.bytes += stored.nbytes
        return ()

    def close(self) -> list[Staged]:
        for name, place in self.places.items():
            if place and place.parts:
                self._load(name, place)
        return self.staged

    def abort(self) -> None:
        for piece in self.staged:
            _drop(self.clients, TableName.of(piece.handle, self.clients.project))

    def _load(self, name: TableName, place: _Loaded) -> None:
        import pyarrow.parquet as pq
        from google.cloud import bigquery

        staging = name.beside(f"{_PREFIX}{self.name}_{uuid.uuid4().hex}")
        rows = pa.concat_tables([pa.Table.from_batches([part]) for part in place.parts], promote_options="default")
        columns = place.columns + (changes.ORDER_COLUMNS if self.target.mode == "upsert" else [])
        wanted = [{**c, "mode": "REPEATED" if c.get("mode") == "REPEATED" else "NULLABLE"} for c in columns]
        self.tables.create(staging, {"schema": {"fields": wanted}, "labels": {"made_by": "tiebeam"}}, STAGED_DAYS)
        file = io.BytesIO()
        pq.write_table(rows, file, compression="zstd")
        size = file.getbuffer().nbytes
        uri = f"{_staged_at(self.target, self.name)}{uuid.uuid4().hex}.parquet" if self.target.staging and size > self.SMALL_BYTES else None
        listed = bigquery.ParquetOptions.from_api_repr({"enableListInference": True})
        config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND", parquet_options=listed)

        def start(job_id: str) -> Any:
            if uri:
                return self.clients.rest.load_table_from_uri(
                    uri, str(staging), job_id=job_id, job_config=config, retry=None, timeout=ANSWER_SECS
                )
            file.seek(0)
            return self.clients.rest.load_table_from_file(
                file, str(staging), job_id=job_id, job_config=config, size=size, num_retries=0, timeout=ANSWER_SECS
            )

        try:
            if uri:
                gcs.put(uri, file.getvalue())
            jobs.once(self.clients, f"load_{staging.table.removeprefix(_PREFIX)}", start, f"loading into {staging}")
        finally:
            if uri:
                gcs.remove(uri)
        self.staged.append(
            Staged(str(staging), rows.num_rows, rows.nbytes, {"by": "table", "table": str(name), "columns": rows.column_names})
        )
        self.places[name] = None


def _staged_at(target: Target, name: str) -> str:
    """How the paths of a run's files begin."""
    return f"{(target.staging or '').rstrip('/')}/{_PREFIX}{name}_"


def _stored(batch: RowBatch, columns: list[Column]) -> tuple[RowBatch, pa.Array, dict[int, str]]:
    """A batch as the table's columns hold it, those that it has; which rows cannot be held, and why."""
    given = {name.lower(): i for i, name in enumerate(batch.schema.names)}
    bad, reasons = pa.repeat(False, batch.num_rows), dict[int, str]()
    arrays, names = [], []
    for column in columns:
        if (index := given.get(column["name"].lower())) is None or pa.types.is_null(batch.schema.types[index]):
            continue
        array, misfits, troubles = where_fitted(batch.column(index), column)
        if troubles:
            bad, reasons = pc.or_(bad, misfits), {**troubles, **reasons}
        arrays.append(array)
        names.append(column["name"])
    if not arrays:
        raise ConfigError(Problem("every column is null, so no row has anything to write", "table", "leave such rows out"))
    schema = pa.schema([pa.field(n, arrow_type(next(c for c in columns if c["name"] == n))) for n in names])
    return RowBatch.from_arrays(arrays, schema=schema), bad, reasons


def _nulls(batch: RowBatch, column: str) -> pa.Array:
    return batch.column(column).is_null() if column in batch.schema.names else pa.repeat(True, batch.num_rows)


# ---- publication


def publish(target: Target, run_id: str, staged: list[Staged]) -> bool:
    """Makes pieces visible, once; False when they were."""
    name, ledger = target.name_of(run_id), target.ledger
    by_table = [s for s in staged if s.facts["by"] == "table"]
    if staged and not by_table:
        return _publish_streams(target, run_id, name, staged)
    ledger.make()
    first, rows = False, sum(s.rows for s in staged)
    if not ((noted := ledger.note(name)) and noted.done):
        ledger.tell(name, "begun", run_id, target.destination, rows)
        first = ledger.in_transaction(name, _statements(target, by_table), rows, f"publishing in {target.home}")
    for piece in by_table:
        _drop(target.clients, TableName.of(piece.handle, target.clients.project))
    return first


def _publish_streams(target: Target, run_id: str, name: str, staged: list[Staged]) -> bool:
    handles, rows, ledger = [s.handle for s in staged], sum(s.rows for s in staged), target.ledger
    if writer_of(run_id) is None:  # a whole run may be staged again under its name, by somebody who starts it again
        ledger.make()
        noted = ledger.note(name)
        if noted and noted.done:
            return False
        handles = ledger.begin(name, run_id, target.destination, handles, rows).pieces
    try:
        first = streams.commit(target.clients, handles)
    except streams.GoneError as e:
        if (noted := ledger.note(name)) and noted.done:
            return False
        what = f"the streams of {run_id} are gone, and nothing says that they were committed: {e}"
        fix = f"look whether its {rows:,} rows are there; if not, delete its line in {ledger.table} and run again"
        raise ConfigError(Problem(what, str(target.home), fix)) from None
    ledger.make()
    ledger.tell(name, "done", run_id, target.destination, rows)
    return first


def is_published(target: Target, run_id: str) -> bool:
    """Whether a commit is visible: the ledger says so, or the streams that it was begun with do."""
    noted = target.ledger.note(target.name_of(run_id))
    if noted is None or noted.done:
        return noted is not None
    return bool(noted.pieces) and all(streams.is_committed(target.clients, stream) for stream in noted.pieces)


def runs(target: Target, prefix: str) -> list[str]:
    """The runs whose names begin so that are visible, after waiting for those that are being published by a job of the service."""
    out = []
    for run_id, done in target.ledger.runs(prefix, target.destination).items():
        if not done:
            jobs.settle(target.clients, f"commit_{target.name_of(run_id)}", f"publishing in {target.home}")
        if done or is_published(target, run_id):
            out.append(run_id)
    return out


def discard(target: Target, run_id: str) -> None:
    """Removes what a run has staged, unless its publication was begun. Streams that nobody commits go by themselves."""
    name = target.name_of(run_id)
    if target.ledger.note(name) is None:
        _forget(target, name)


def _forget(target: Target, name: str) -> None:
    if target.staging:
        gcs.each(gcs.remove, [found.path for found in gcs.below(_staged_at(target, name))])
    prefix, clients = f"{_PREFIX}{name}_", target.clients
    home = target.home
    listed = clients.again("staging tables", lambda: list(clients.rest.list_tables(f"{home.project}.{home.dataset}", retry=None)))
    for table in listed:
        if table.table_id.startswith(prefix):
            _drop(clients, home.beside(table.table_id))


def _drop(clients: Clients, table: TableName) -> None:
    clients.again(f"dropping {table}", lambda: clients.rest.delete_table(str(table), retry=None, timeout=ANSWER_SECS, not_found_ok=True))


def _statements(target: Target, pieces: list[Staged]) -> list[str]:
    """The SQL that moves staged rows into their tables."""
    by_table: dict[str, list[tuple[str, list[str]]]] = {}
    for piece in pieces:
        by_table.setdefault(piece.facts["table"], []).append((piece.handle, piece.facts["columns"]))
    home = Tables(target.clients, target.layout).found(target.home) if target.mode == "replace" and not target.columns_in_name else None
    if home is not None:
        by_table.setdefault(str(target.home), [])
    out = []
    for table, staged in sorted(by_table.items()):
        if target.mode == "replace":
            out.append(f"DELETE FROM `{table}` WHERE {target.partition.where(home) if target.partition else 'TRUE'}")
        columns = list(dict.fromkeys(c for _, held in staged for c in held))
        if not columns:
            continue
        union = " UNION ALL ".join(f"SELECT {_selected(columns, held)} FROM `{staging}`" for staging, held in staged)
        if target.mode == "upsert":
            out.append(changes.merge(table, target.key, columns, union))
        else:
            out.append(f"INSERT INTO `{table}` ({_listed(columns)}) {union}")
    return out


def _listed(columns: list[str]) -> str:
    return ", ".join(f"`{c}`" for c in columns)


def _selected(columns: list[str], held: list[str]) -> str:
    return ", ".join(f"`{c}`" if c in held else f"NULL AS `{c}`" for c in columns)
