"""BigQuery: tables read and written in Arrow, through the Storage APIs and load jobs, exactly once.

Native, on google-cloud-bigquery and google-cloud-bigquery-storage: install `tiebeam[gcp]`. https://cloud.google.com/bigquery/docs
"""

from __future__ import annotations

import contextlib
import functools
import re
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

import apache_beam as beam
from apache_beam.transforms.window import TimestampedValue

from tiebeam import gcs
from tiebeam.connectors import Sink, Source
from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.io import _bigquery_partitions as partitions
from tiebeam.io import _bigquery_reader as reader
from tiebeam.io import _bigquery_writer as writer
from tiebeam.io._bigquery_client import ANSWER_SECS, Clients, Connection, TableName
from tiebeam.io._bigquery_letters import LetterTable
from tiebeam.io._bigquery_tables import Layout, Tables
from tiebeam.io._event_time import event_times
from tiebeam.io._typed_files import positions, with_positions
from tiebeam.options import Secret, option
from tiebeam.rows import ROW_TIME, RowBatch, concat, cut, timestamp_of, with_column
from tiebeam.staging import Staged, Writer
from tiebeam.steps import BatchFn, apply_batches

PING_SECS = 5.0

_TABLE = re.compile(r"(?:[a-z0-9.:-]+\.)?\w+\.(?:[\w-]|\{[A-Za-z_]\w*\})+")
_LABEL = re.compile(r"[a-z_][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}")


class ReadFromBigQuery(Source):
    """Reads a table, or what a query finds, in parallel streams of the Storage Read API.

    Out: the columns as the service hands them to Arrow (JSON and GEOGRAPHY as text, NUMERIC decimal(38, 9)); `row_position` is
        `table/stream:row`, and names a row within one run.
    Errors: rows whose `event_time` is null are refused as `bad_event_time`.
    Time: all rows are of one moment: `snapshot_time`, or when the run begins. `row_time` is the column `event_time`, a date or a timestamp.

    Example:
        >>> ReadFromBigQuery("shop.sales", where="amount > 0")
        ReadFromBigQuery(table='shop.sales', where='amount > 0')
    """

    table: str | None = option(
        None, help="Table, `dataset.table` or `project.dataset.table`; or else a query", example="shop.sales", place="bigquery_table"
    )
    query: str | None = option(None, help="SELECT whose rows are read, instead of a table", example="SELECT * FROM shop.sales")
    columns: tuple[str, ...] = option((), help="Columns to read; default: all", example="shop,day,amount")
    where: str | None = option(None, help="Which rows to read, a condition in SQL", example="day >= '2026-11-01'")
    snapshot_time: str | None = option(None, help="Read the table as it was then, at most seven days ago", example="2026-11-24T00:00:00Z")
    event_time: str | None = option(None, help="Column that becomes row_time: a date or a timestamp", example="sold_at")
    cursor: str | None = option(
        None,
        help="Column that grows with every change: a run reads only rows above where the last one ended",
        example="updated_at",
    )
    cursor_overlap_secs: int = option(
        0, help="How far below the cursor rows are read again, for those that were committed late; needs upsert", unit="seconds", low=0
    )
    streams: int = option(0, help="How many streams are read side by side at most; 0: as many as BigQuery thinks best", low=0, high=1000)
    temp_dataset: str | None = option(
        None, help="Where the rows of a query are kept for a day; default: the service's own place", example="scratch"
    )
    project: str | None = option(None, help="Project that pays, and that tables without one are in", example="my-project")
    region: str | None = option(None, help="Where queries run", example="EU")
    credentials: Secret | None = option(None, help="Key of a service account, as JSON; default: those of the environment")
    bigquery_endpoint: str | None = option(None, help="Another address of the REST service; default: BIGQUERY_EMULATOR_HOST, or Google's")
    bigquery_storage_endpoint: str | None = option(
        None, help="Another address of the Storage service; default: BIGQUERY_STORAGE_EMULATOR_HOST, or Google's", example="127.0.0.1:9060"
    )
    patience_secs: float = option(60.0, help="How long a call that fails for now is tried again", unit="seconds", low=0)

    def check(self) -> Iterable[Problem]:
        yield from self.connection.problems()
        if (self.table is None) == (self.query is None):
            yield Problem("give exactly one of table and query", "table", "table=shop.sales, or query='SELECT …'")
        if self.table is not None and ("{" in self.table or not _TABLE.fullmatch(self.table)):
            yield Problem(f"{self.table!r} is no name of a table", "table", "dataset.table, or project.dataset.table")
        if self.query is not None and (self.columns or self.where or self.snapshot_time):
            yield Problem("a query says itself what is read", "query", "leave out columns, where and snapshot_time")
        if self.snapshot_time is not None and _moment(self.snapshot_time) is None:
            yield Problem(f"{self.snapshot_time!r} is no time", "snapshot_time", "write 2026-11-24T00:00:00Z")
        if self.cursor is not None and self.snapshot_time:
            yield Problem("the past holds nothing new", "snapshot_time", "leave it out, or the cursor")

    @functools.cached_property
    def connection(self) -> Connection:
        return _connection(self)

    def ping(self) -> None:
        clients = _ready(self.connection)
        if self.query is not None:
            reader.check_query(clients, self.query)
            return
        name = TableName.of(self.table or "", clients.project)
        if (table := Tables(clients, Layout()).found(name)) is None:
            raise ConfigError(Problem(f"there is no table {name}", "table", "dataset.table, or project.dataset.table"))
        columns = [field.name for field in table.schema]
        for where, names in (("columns", self.columns), ("event_time", filter(None, [self.event_time]))):
            if missing := [n for n in names if n.partition(".")[0] not in columns]:
                raise ConfigError(Problem(f"there is no column {', '.join(missing)}", where, f"there are: {', '.join(columns)}"))

    def origin(self) -> str:
        return self.query or str(TableName.of(self.table or "", self.connection.open().project))

    def newest(self, after: str | None) -> tuple[str | None, int]:
        clients = self.connection.open()
        held = reader.nested(self.query) if self.query else TableName.of(self.table or "", clients.project).sql
        return reader.newest(clients, held, self.cursor or "", after, self.where)

    def fingerprint(self) -> str | None:
        if self.table is None:
            return None
        clients = self.connection.open()
        table = Tables(clients, Layout()).found(TableName.of(self.table, clients.project))
        if table is None:
            return None
        streaming = table.streaming_buffer.estimated_rows if table.streaming_buffer else 0
        return f"{table.modified}-{table.num_rows}-{table.num_bytes}-{streaming}"

    def sample(self, rows: int) -> RowBatch | None:
        name, session = self._session(streams=1)
        parts: list[RowBatch] = []
        for i, stream in enumerate(session.streams):
            for result in self.read_stream((stream, i, session.schema, name), self.label):
                if isinstance(result, RowBatch):
                    parts.append(result.slice(0, rows - sum(p.num_rows for p in parts)))
                if sum(p.num_rows for p in parts) >= rows:
                    return concat(parts)
        return concat(parts) if parts else None

    def read(self, begin: Any) -> beam.PCollection:
        streams = begin | "Begin" >> beam.Create([0]) | "Open session" >> beam.ParDo(_OpenFn(self))
        streams.element_type = beam.typehints.Tuple[str, int, bytes, str]
        return apply_batches(streams | "Spread streams" >> beam.Reshuffle(), "Read rows", _ReadFn(self.label, self))

    def streams_to_read(self) -> Iterator[tuple[str, int, bytes, str]]:
        """The streams of a new session: each with its number, its schema, and the table."""
        name, session = self._session(self.streams)
        for i, stream in enumerate(session.streams):
            yield stream, i, session.schema, name

    def _session(self, streams: int) -> tuple[str, reader.Session]:
        clients = self.connection.open()
        new = reader.within(self.cursor or "", self.span) if self.span else None
        if self.query is not None:
            into = TableName(clients.project, self.temp_dataset, f"_tiebeam_query_{uuid.uuid4().hex}") if self.temp_dataset else None
            sql = f"SELECT * FROM {reader.nested(self.query)} WHERE {new}" if new else self.query
            name, wanted = reader.run_query(clients, sql, into), reader.Wanted(streams=streams)
        else:
            name = TableName.of(self.table or "", clients.project)
            moment = _moment(self.snapshot_time) if self.snapshot_time else None
            where = " AND ".join(f"({w})" for w in (self.where, new) if w)
            wanted = reader.Wanted(self.columns, where, moment, streams)
        return str(name), reader.open_session(clients, name, wanted)

    def read_stream(self, element: tuple[str, int, bytes, str], step: str) -> Iterator[RowBatch | Letters]:
        """Reads one stream."""
        stream, number, schema, table = element
        read = 0
        for batch in reader.read_stream(self.connection.open(), stream, schema):
            placed = with_positions(batch, positions(f"{table}/{number}", read, batch.num_rows))
            read += batch.num_rows
            for result in self._timed(placed, step):
                yield from (result,) if isinstance(result, Letters) else cut(result)

    def _timed(self, batch: RowBatch, step: str) -> Iterator[RowBatch | Letters]:
        if self.event_time is None:
            yield batch
            return
        times = event_times(batch.column(self.event_time), "iso", "UTC")
        batch = with_column(batch, ROW_TIME, times)
        if times.null_count:
            bad = batch.filter(times.is_null())
            yield letters_of_rows(step, bad, "bad_event_time", [f"{self.event_time} is null or no time"] * bad.num_rows)
            batch = batch.filter(times.is_valid())
        yield batch


class _OpenFn(beam.DoFn):
    """Opens a session, and hands on its streams."""

    def __init__(self, source: ReadFromBigQuery):
        self.source = source

    def process(self, _):
        yield from self.source.streams_to_read()


class _ReadFn(BatchFn):
    """Reads streams; batches with event times are stamped with their earliest."""

    def __init__(self, step: str, source: ReadFromBigQuery):
        super().__init__(step)
        self.source = source

    def apply(self, element: tuple[str, int, bytes, str]) -> Iterator[RowBatch | Letters]:
        yield from self.source.read_stream(element, self.step)

    def process(self, element):
        for result in super().process(element):
            timed = self.source.event_time is not None and isinstance(result, RowBatch)
            yield TimestampedValue(result, timestamp_of(result)) if timed else result


class WriteToBigQuery(Sink):
    """Writes rows to tables: staged out of sight, then published once, by a commit of streams or in one transaction.

    In: any schema that BigQuery has types for (docs/bigquery.md). Columns are matched by name; missing ones are added, and REQUIRED ones
        that rows leave empty become NULLABLE, before the rows are written.
    Errors: rows are refused as `unfit` (a value that its column cannot hold), `no_key`, `no_table`, `too_many_tables`, `wrong_partition`,
        and `refused` with the reason of the service; the other rows of the batch go on.
    Delivery: exactly once. `method=storage_write`, the way of inputs without end, appends to PENDING streams and commits them;
        `load_job`, the way of whole runs, loads Parquet into tables beside, and one transaction moves all rows. `delivery=at_least_once`
        sends to the default stream: rows are visible at once, and may be there twice after a crash.
    Time: upserts: of rows with one key the last by (`row_time`, `row_position`) wins; `row_change` = delete deletes. With `load_job` that
        holds within a commit, and the commit published last wins; with `storage_write` (change data capture) it holds for ever.

    Example:
        >>> WriteToBigQuery("shop.sales", mode="upsert", key=("shop", "day"))
        WriteToBigQuery(table='shop.sales', mode='upsert', key=('shop', 'day'))
    """

    modes: ClassVar[tuple[str, ...]] = ("append", "upsert", "replace")
    takes_changes: ClassVar[bool] = True
    takes_unbounded: ClassVar[bool] = True
    tells_runs: ClassVar[bool] = True

    table: str = option(
        help="Table, `dataset.table`; {column} in its name is the row's value, and $20261127 behind it names a partition",
        example="shop.sales_{region}",
        place="bigquery_table",
    )
    mode: str = option("append", help="Add rows, update them by key, or replace all rows of the table or of its partition", choices=modes)
    key: tuple[str, ...] = option((), help="Columns that name a row, for upsert; the primary key of a table made here", example="shop,day")
    method: str | None = option(
        None, help="How rows get there; default: storage_write for inputs without end, else load_job", choices=("storage_write", "load_job")
    )
    delivery: str = option(
        "exactly_once", help="Whether a row may be written twice after a crash", choices=("exactly_once", "at_least_once")
    )
    staging: str | None = option(
        None,
        help="Folder of a bucket that loads pass through, but for small ones; default: they are sent along",
        example="gs://bucket/staging",
    )
    new_columns: str = option("add", help="What to do when the table lacks columns that rows have", choices=("add", "refuse"))
    create: str = option("if_needed", help="Whether a table that is not there is created", choices=("if_needed", "never"))
    partition_by: str | None = option(None, help="Column by which a table made here is partitioned: a date or a time", example="day")
    partition_unit: str = option("day", help="How much one partition holds", choices=("hour", "day", "month", "year"))
    partition_expiration_days: float | None = option(None, help="How long partitions are kept", unit="days", low=0)
    cluster_by: tuple[str, ...] = option((), help="Columns by which a table made here is clustered, at most four", example="shop,product")
    labels: tuple[str, ...] = option((), help="Labels of a table made here, name=value", example="team=sales")
    expiration_days: float | None = option(None, help="How long a table made here is kept", unit="days", low=0)
    max_tables: int = option(100, help="How many tables {column} may name in one bundle", low=1, high=10_000)
    project: str | None = option(None, help="Project that pays, and that tables without one are in", example="my-project")
    region: str | None = option(None, help="Where jobs run", example="EU")
    credentials: Secret | None = option(None, help="Key of a service account, as JSON; default: those of the environment")
    bigquery_endpoint: str | None = option(None, help="Another address of the REST service; default: BIGQUERY_EMULATOR_HOST, or Google's")
    bigquery_storage_endpoint: str | None = option(
        None, help="Another address of the Storage service; default: BIGQUERY_STORAGE_EMULATOR_HOST, or Google's", example="127.0.0.1:9060"
    )
    patience_secs: float = option(60.0, help="How long a call that fails for now is tried again", unit="seconds", low=0)

    def check(self) -> Iterable[Problem]:
        yield from _connection(self).problems()
        if not _TABLE.fullmatch(partitions.split(self.table)[0]):
            yield Problem(f"{self.table!r} is no name of a table", "table", "dataset.table, or project.dataset.table")
        if (self.mode == "upsert") != bool(self.key):
            yield Problem("upsert needs a key, and other modes take none", "key", "name the columns that tell rows apart, with mode=upsert")
        for where, names, most in (("key", self.key, 16), ("cluster_by", self.cluster_by, 4)):
            if len(names) > most:
                yield Problem(f"BigQuery takes at most {most} columns", where, "leave some out")
        for label in self.labels:
            if not _LABEL.fullmatch(label):
                yield Problem(f"{label!r} is no label", "labels", "name=value, of small letters, digits, _ and -")
        if self.staging is not None and not gcs.is_gcs(self.staging):
            yield Problem(f"{self.staging!r} is not on Cloud Storage, where BigQuery reads from", "staging", "gs://bucket/folder")
        yield from self._troubles_of_delivery()
        yield from partitions.problems(self.table, self.mode, by_streams=self.method == "storage_write" or self.delivery != "exactly_once")

    def _troubles_of_delivery(self) -> Iterator[Problem]:
        once = self.delivery == "exactly_once"
        if self.mode == "replace" and (self.method == "storage_write" or not once):
            yield Problem("a table is replaced by a transaction", "method", "method=load_job, with delivery=exactly_once")
        if self.mode == "upsert" and self.method == "storage_write" and once:
            what = "upserts by the Storage Write API are change data capture, which is sent at once and perhaps again"
            yield Problem(what, "delivery", "delivery=at_least_once (the same rows sent again change nothing), or method=load_job")
        if not once and self.method == "load_job":
            yield Problem("load jobs are exactly once", "delivery", "leave out delivery, or use method=storage_write")

    @property
    def target(self) -> writer.Target:
        layout = Layout(
            partition_by=self.partition_by,
            partition_unit=self.partition_unit,
            partition_expiration_days=self.partition_expiration_days,
            cluster_by=self.cluster_by,
            key=self.key,
            labels=self.labels,
            expiration_days=self.expiration_days,
            create=self.create,
            new_columns=self.new_columns,
        )
        return writer.Target(
            connection=_connection(self),
            table=self.table,
            step=self.label,
            mode=self.mode,
            method=self.method,
            delivery=self.delivery,
            key=self.key,
            layout=layout,
            max_tables=self.max_tables,
            staging=self.staging,
        )

    def location(self) -> str:
        return f"{self.project}.{self.table}" if self.project else self.table

    def ping(self) -> None:
        clients = _ready(_connection(self))
        home = self.target.home
        clients.again(
            f"dataset {home.dataset}",
            lambda: clients.rest.get_dataset(f"{home.project}.{home.dataset}", retry=None, timeout=ANSWER_SECS),
            PING_SECS,
        )
        if self.staging is not None and (trouble := gcs.trouble(f"{self.staging.rstrip('/')}/", writing=True)):
            raise ConfigError(Problem(f"{self.staging} cannot be written: {trouble}", "staging", "check the bucket and the rights"))
        columns = Tables(clients, Layout()).known(home) if "{" not in self.table else None
        self._check_partition(clients)
        if columns is None:
            return
        known = {c["name"].lower() for c in columns}
        if missing := [k for k in self.key if k.lower() not in known]:
            raise ConfigError(Problem(f"the table {home} has no column {', '.join(missing)}", "key", f"it has: {', '.join(sorted(known))}"))

    def _check_partition(self, clients: Clients) -> None:
        """Raises ConfigError unless the table has partitions like the one named, or will be made so."""
        if (partition := self.target.partition) is None:
            return
        if (table := Tables(clients, Layout()).found(self.target.home)) is not None:
            partition.column_of(table)
        elif self.partition_by is None or self.partition_unit.upper() != partition.unit:
            what = f"there is no table {self.target.home}, and it would be made without partitions by {partition.unit.lower()}"
            raise ConfigError(Problem(what, "partition_by", f"name its column, with partition_unit={partition.unit.lower()}"))

    def writer(self, run_id: str) -> Writer:
        target = self.target
        if target.direct:
            return writer.DirectWriter(target)
        return writer.StreamWriter(target) if target.by_streams(run_id) else writer.LoadWriter(target, run_id)

    def publish(self, run_id: str, staged: list[Staged]) -> bool:
        return True if self.target.direct else writer.publish(self.target, run_id, staged)

    def is_published(self, run_id: str) -> bool:
        return True if self.target.direct else writer.is_published(self.target, run_id)

    def runs(self, prefix: str) -> list[str]:
        if "{" in self.table and self.target.by_streams(prefix):
            what = "streams of several tables are committed one after the other, so one run may be published in part"
            raise ConfigError(Problem(what, "method", "keep a cursor with method=load_job, or in one table"))
        return writer.runs(self.target, prefix)

    def letter_table(self) -> LetterTable:
        """The table as one of dead letters, for a replay (`--dead_letters=bigquery:TABLE`)."""
        target = self.target
        return LetterTable(target.clients, target.home)

    def discard(self, run_id: str) -> None:
        with contextlib.suppress(Exception):
            writer.discard(self.target, run_id)


def _connection(of: Any) -> Connection:
    return Connection(
        project=of.project,
        endpoint=of.bigquery_endpoint,
        storage_endpoint=of.bigquery_storage_endpoint,
        credentials=of.credentials,
        location=of.region,
        patience_secs=of.patience_secs,
    )


def _ready(connection: Connection) -> Clients:
    """Clients of a service that answers; raises ConfigError soon when it does not."""
    clients = connection.open()
    try:
        clients.again("BigQuery", lambda: list(clients.rest.list_datasets(max_results=1, retry=None, timeout=PING_SECS)), PING_SECS)
    except TransientError as e:
        where = clients.endpoint or "bigquery.googleapis.com"
        raise ConfigError(Problem(f"BigQuery cannot be reached at {where}: {e}", "bigquery_endpoint", "check the address")) from None
    return clients


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
