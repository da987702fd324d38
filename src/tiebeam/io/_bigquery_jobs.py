"""Jobs that happen once, and the ledger of commits, the table `_tiebeam_commits` beside the tables that are written.

A job's id is taken once in a project: whoever starts it again is told that it is there, and waits for it. So an id made of the name of a
commit lets one of many win, and a job that ran and was not heard of is found. https://cloud.google.com/bigquery/docs/running-jobs

The ledger has two lines for a commit: `begun` with the streams that make it up, `done` when they are visible. A script that moves rows
writes its line in the same transaction. For streams, which have no transaction with a table, the streams themselves say what is visible.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tiebeam import __version__
from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.io import _bigquery_streams as streams
from tiebeam.io._bigquery_client import ANSWER_SECS, Clients, Pauses, TableName, is_, is_transient, message_of, told
from tiebeam.io._bigquery_tables import Layout, Tables
from tiebeam.io._bigquery_types import Column, arrow_type
from tiebeam.rows import RowBatch

LEDGER = "_tiebeam_commits"
ATTEMPTS = 10
JOB_SECS = 6 * 3600

_COLUMNS: list[Column] = [
    {"name": "name", "type": "STRING", "mode": "REQUIRED", "description": "Digest of the commit and its destination"},
    {"name": "run_id", "type": "STRING", "mode": "NULLABLE"},
    {"name": "destination", "type": "STRING", "mode": "NULLABLE"},
    {"name": "phase", "type": "STRING", "mode": "REQUIRED", "description": "begun or done"},
    {"name": "pieces", "type": "STRING", "mode": "NULLABLE", "description": "The streams of the commit, as JSON"},
    {"name": "row_count", "type": "INTEGER", "mode": "NULLABLE"},
    {"name": "noted_at", "type": "TIMESTAMP", "mode": "NULLABLE"},
    {"name": "version", "type": "STRING", "mode": "NULLABLE"},
]
_made: set[TableName] = set()
_NAMES = ", ".join(c["name"] for c in _COLUMNS)
_BRIEF = {"jobRateLimitExceeded", "rateLimitExceeded", "backendError", "internalError", "jobBackendError", "jobInternalError", "stopped"}
_CONTENDED = "concurrent update"  # a transaction is aborted when another changes the same table


def once(clients: Clients, base: str, start: Callable[[str], Any], what: str) -> bool:
    """Has a job succeed once under an id made of `base`: whether it was `start(job_id)` here, or one that ran before.

    One that has failed stays failed, so the next attempt has an id of its own. Raises TransientError and ConfigError.
    """
    error: dict[str, Any] | None = {}
    pauses = Pauses(JOB_SECS)
    for attempt in range(ATTEMPTS):
        job, ours = _started(clients, f"tiebeam_{base}_{attempt}", start, what)
        error = _outcome(clients, job, what)
        if error is None:
            return ours
        if ours and error.get("reason") not in _BRIEF and _CONTENDED not in str(error.get("message")):
            raise ConfigError(Problem(f"BigQuery refuses: {message_of(error.get('message', error))}", what, "see the reason"))
        if ours:
            pauses.wait(what, error.get("message"))
    raise TransientError(f"{what}: failed {ATTEMPTS} times, last: {(error or {}).get('message')}")


def settle(clients: Clients, base: str, what: str) -> None:
    """Waits for jobs of `base` that somebody started and did not see end."""
    for attempt in range(ATTEMPTS):
        try:
            job = clients.again(what, lambda: clients.rest.get_job(f"tiebeam_{base}_{attempt}", retry=None, timeout=ANSWER_SECS))  # noqa: B023
        except Exception as e:
            if isinstance(e.__cause__, Exception) and is_(e.__cause__, 404):
                return
            raise
        _outcome(clients, job, what)


def _started(clients: Clients, job_id: str, start: Callable[[str], Any], what: str) -> tuple[Any, bool]:
    """The job of this id, and whether it was started here."""
    pauses = Pauses(clients.connection.patience_secs)
    while True:
        try:
            return start(job_id), True
        except Exception as e:
            trouble: Exception = e
        try:
            return clients.rest.get_job(job_id, retry=None, timeout=ANSWER_SECS), not is_(trouble, 409)
        except Exception as e:
            if not is_(e, 404):
                trouble = e
            elif not (is_transient(trouble) or is_(trouble, 409) or is_(trouble, 404)):
                raise told(trouble, what) from trouble
        pauses.wait(what, trouble)


def _outcome(clients: Clients, job: Any, what: str) -> dict[str, Any] | None:
    """Waits for a job; what it failed of, or None."""
    pauses = Pauses(JOB_SECS)
    while job.state != "DONE":
        pauses.wait(what, "the job runs")
        clients.again(what, lambda: job.reload(retry=None, timeout=ANSWER_SECS))
    return job.error_result


def query(clients: Clients, base: str, sql: str, what: str, **parameters: str) -> bool:
    """A query or script that happens once."""
    from google.cloud import bigquery

    named = [bigquery.ScalarQueryParameter(name, "STRING", value) for name, value in parameters.items()]
    config = bigquery.QueryJobConfig(query_parameters=named, labels={"made_by": "tiebeam"})

    def start(job_id: str) -> Any:
        return clients.rest.query(sql, job_id=job_id, job_config=config, retry=None, job_retry=None, timeout=ANSWER_SECS)

    return once(clients, base, start, what)


@dataclass(frozen=True)
class Note:
    """What the ledger says of a commit."""

    pieces: list[str]
    done: bool


class Ledger:
    """The commits of a dataset."""

    def __init__(self, clients: Clients, beside: TableName):
        self.clients = clients
        self.table = beside.beside(LEDGER)

    def make(self) -> None:
        """Creates the ledger unless it is there."""
        if self.table in _made:
            return
        layout = Layout(cluster_by=("name",), description="Commits of tiebeam: what is begun, and what is done")
        Tables(self.clients, layout).create(self.table, layout.body(_COLUMNS), None)
        _made.add(self.table)

    def note(self, name: str) -> Note | None:
        """What is noted of a commit; None when nothing is."""
        rows = self._ask(f"SELECT phase, pieces FROM {self.table.sql} WHERE name = @name", name=name)
        if not rows:
            return None
        begun = [json.loads(row["pieces"]) for row in rows if row["phase"] == "begun" and row["pieces"]]
        return Note(begun[0] if begun else [], any(row["phase"] == "done" for row in rows))

    def runs(self, prefix: str, destination: str) -> dict[str, bool]:
        """The runs whose names begin so that were begun, and whether the ledger says that they are done."""
        rows = self._ask(
            f"SELECT run_id, LOGICAL_OR(name IN (SELECT name FROM {self.table.sql} WHERE phase = 'done')) AS done FROM {self.table.sql} "
            "WHERE STARTS_WITH(run_id, @prefix) AND destination = @destination GROUP BY run_id",
            prefix=prefix,
            destination=destination,
        )
        return {row["run_id"]: row["done"] for row in rows}

    def _ask(self, sql: str, **parameters: str) -> list[Any]:
        """What a query finds in the ledger: nothing, where there is none."""
        from google.cloud import bigquery

        named = [bigquery.ScalarQueryParameter(name, "STRING", value) for name, value in parameters.items()]
        config = bigquery.QueryJobConfig(query_parameters=named, use_query_cache=False)

        def asked() -> list[Any]:
            try:
                job = self.clients.rest.query(sql, job_config=config, retry=None, job_retry=None, timeout=ANSWER_SECS)
                return list(job.result(retry=None, timeout=ANSWER_SECS))
            except Exception as e:
                if is_(e, 404) or (LEDGER in str(e) and "does not exist" in str(e)):
                    return []
                raise

        return self.clients.again(f"ledger {self.table}", asked)

    def begin(self, name: str, run_id: str, destination: str, pieces: list[str], rows: int) -> Note:
        """Notes that a commit is begun, with these pieces, unless it was begun with others: what is noted then."""
        sql = (
            f"INSERT INTO {self.table.sql} ({_NAMES}) "
            f"VALUES (@name, @run_id, @destination, 'begun', @pieces, {rows:d}, CURRENT_TIMESTAMP(), @version)"
        )
        told = dict(name=name, run_id=run_id, destination=destination, pieces=json.dumps(pieces), version=__version__)
        for generation in range(ATTEMPTS):
            query(self.clients, f"begin_{name}_{generation}", sql, f"beginning a commit in {self.table}", **told)
            if noted := self.note(name):
                return noted
        raise ConfigError(
            Problem(f"the lines of {run_id} vanish from the ledger", str(self.table), "do not delete lines while it is written")
        )

    def tell(self, name: str, phase: str, run_id: str, destination: str, rows: int) -> None:
        """Writes a line; said twice it is as if said once."""
        values = [name, run_id, destination, phase, None, rows, datetime.now(UTC), __version__]
        fields = [pa.field(c["name"], arrow_type(c)) for c in _COLUMNS]
        line = RowBatch.from_arrays([pa.array([v], f.type) for v, f in zip(values, fields, strict=True)], schema=pa.schema(fields))
        appender = streams.Appender(self.clients, f"{self.table.path}/streams/_default", streams.as_arrow, exact=False)
        try:
            if refused := appender.append(line):
                raise ConfigError(
                    Problem(f"the ledger takes no line: {refused[0].reasons[0]}", str(self.table), "is it a table of tiebeam?")
                )
        finally:
            appender.close()

    def in_transaction(self, name: str, statements: list[str], rows: int, what: str) -> bool:
        """Runs statements and notes the commit as done, all or nothing, and once; whether it was done here."""
        line = (
            f"INSERT INTO {self.table.sql} (name, phase, row_count, noted_at, version) "
            f"VALUES ('{name}', 'done', {rows:d}, CURRENT_TIMESTAMP(), '{__version__}')"
        )
        script = ";\n".join(["BEGIN TRANSACTION", *statements, line, "COMMIT TRANSACTION"]) + ";"
        return query(self.clients, f"commit_{name}", script, what)
