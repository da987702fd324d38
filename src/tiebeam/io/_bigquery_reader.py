"""Reading from BigQuery: a session of the Storage Read API over one state of a table, whose streams are read side by side, in Arrow.

https://cloud.google.com/bigquery/docs/reference/storage: a session keeps its state for six hours, and a stream that breaks off is read on
from the row that comes next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from tiebeam.connectors import Span
from tiebeam.errors import ConfigError, Problem
from tiebeam.io._bigquery_client import ANSWER_SECS, Clients, Pauses, TableName, is_transient, told
from tiebeam.rows import RowBatch

_CURSORS = ("INTEGER", "DATE", "DATETIME", "TIMESTAMP", "NUMERIC", "BIGNUMERIC")


@dataclass(frozen=True)
class Wanted:
    """Which rows and columns of a table are read, of which moment, in how many streams at most."""

    columns: tuple[str, ...] = ()
    where: str | None = None
    at: datetime | None = None
    streams: int = 0


@dataclass(frozen=True)
class Session:
    """A session: the names of its streams, and the schema of their batches."""

    streams: list[str]
    schema: bytes


def open_session(clients: Clients, table: TableName, wanted: Wanted) -> Session:
    """Opens a session over the present state of a table, or that of a moment."""
    from google.cloud.bigquery_storage_v1 import types

    options = types.ReadSession.TableReadOptions(selected_fields=list(wanted.columns), row_restriction=wanted.where or "")
    asked = types.ReadSession(table=table.path, data_format=types.DataFormat.ARROW, read_options=options)
    if wanted.at is not None:
        asked.table_modifiers.snapshot_time = wanted.at
    made = clients.again(
        f"reading {table}",
        lambda: clients.reading.create_read_session(
            parent=f"projects/{clients.project}", read_session=asked, max_stream_count=wanted.streams, retry=None, timeout=ANSWER_SECS
        ),
    )
    return Session([stream.name for stream in made.streams], bytes(made.arrow_schema.serialized_schema))


def read_stream(clients: Clients, stream: str, schema: bytes) -> Iterator[RowBatch]:
    """Reads a stream to its end, going on where it broke off."""
    kinds = pa.ipc.read_schema(pa.py_buffer(schema))
    read = 0
    pauses = Pauses(clients.connection.patience_secs)
    while True:
        try:
            for answer in clients.reading.read_rows(read_stream=stream, offset=read, retry=None, timeout=3600):
                batch = pa.ipc.read_record_batch(pa.py_buffer(answer.arrow_record_batch.serialized_record_batch), kinds)
                read += batch.num_rows
                pauses = Pauses(clients.connection.patience_secs)
                yield batch
            return
        except Exception as e:
            if not is_transient(e):
                raise told(e, stream) from e
            pauses.wait(f"reading {stream}", e)


def run_query(clients: Clients, sql: str, into: TableName | None) -> TableName:
    """Runs a query; the table that holds its rows, which goes after a day."""
    import time

    from google.cloud import bigquery

    config = bigquery.QueryJobConfig(labels={"made_by": "tiebeam"})
    if into is not None:
        config.destination, config.write_disposition = str(into), "WRITE_TRUNCATE"

    def run() -> Any:
        job = clients.rest.query(sql, job_config=config, retry=None, job_retry=None, timeout=ANSWER_SECS)
        job.result(retry=None, max_results=1)
        return job

    job = clients.again("the query", run)
    found = TableName(job.destination.project, job.destination.dataset_id, job.destination.table_id)
    if into is not None:
        from datetime import UTC

        table = clients.again("the query", lambda: clients.rest.get_table(str(into), retry=None, timeout=ANSWER_SECS))
        table.expires = datetime.fromtimestamp(time.time() + 86_400, UTC)
        clients.again("the query", lambda: clients.rest.update_table(table, ["expires"], retry=None, timeout=ANSWER_SECS))
    return found


def newest(clients: Clients, held: str, cursor: str, after: str | None, where: str | None) -> tuple[str | None, int]:
    """The greatest value of a cursor above `after` in a table or query, as text, and how many rows have none; raises ConfigError."""
    column = _quoted(cursor)
    above = f"({column} > {_literal(after)} OR {column} IS NULL)" if after is not None else "TRUE"
    sql = f"SELECT MAX({column}) AS newest, COUNTIF({column} IS NULL) AS nulls FROM {held} WHERE {above} AND ({where or 'TRUE'})"

    def run() -> Any:
        return clients.rest.query(sql, retry=None, job_retry=None, timeout=ANSWER_SECS).result(retry=None, timeout=3600)

    try:
        found = clients.again("the cursor", run)
    except ConfigError as e:
        raise ConfigError(Problem(e.problems[0].what, "cursor", "name a column that can be compared")) from None
    kind = found.schema[0].field_type
    if kind not in _CURSORS:
        raise ConfigError(Problem(f"{cursor} is {kind}", "cursor", f"name a column of {', '.join(_CURSORS)}"))
    [row] = found
    return _text(row["newest"]), row["nulls"]


def within(cursor: str, span: Span) -> str:
    """The rows of a span, as a condition in SQL."""
    above = f"{_quoted(cursor)} > {_literal(span.after)} AND " if span.after is not None else ""
    return f"{above}{_quoted(cursor)} <= {_literal(span.upto)}"


def nested(query: str) -> str:
    """A query as a table of another, whatever comment it ends in."""
    return f"({query.rstrip().removesuffix(';')}\n)"


def _quoted(column: str) -> str:
    return ".".join(f"`{part}`" for part in column.split("."))


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.isoformat() if isinstance(value, date) else f"{value:f}" if isinstance(value, Decimal) else str(value)


def _literal(text: str) -> str:
    """A value of a cursor in SQL; BigQuery takes text for the time that it is compared with."""
    if re.fullmatch(r"-?\d+", text) and -(2**63) <= int(text) < 2**63:
        return text
    return f"BIGNUMERIC '{text}'" if re.fullmatch(r"-?\d+(\.\d+)?", text) else f"'{text}'"


def check_query(clients: Clients, sql: str) -> None:
    """Has the service check a query without running it; raises ConfigError."""
    from google.cloud import bigquery

    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    try:
        clients.again("the query", lambda: clients.rest.query(sql, job_config=config, retry=None, job_retry=None, timeout=ANSWER_SECS))
    except ConfigError as e:
        raise ConfigError(Problem(e.problems[0].what, "query", "correct the query")) from None
