"""Dead letters in a table of BigQuery: how a replay takes them, each once, and how it knows what to run again.

shop.rejected             the letters, as a sink writes them
shop.rejected_replaying   those that a replay has taken: there from when it begins until they have left the first table
shop.rejected_notes       name and text: the options of the jobs that the letters came from
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tiebeam.dead_letters import SCHEMA
from tiebeam.errors import ConfigError, Problem
from tiebeam.io import _bigquery_reader as reader
from tiebeam.io import _bigquery_streams as streams
from tiebeam.io._bigquery_client import ANSWER_SECS, Clients, TableName, is_
from tiebeam.io._bigquery_tables import Layout, Tables
from tiebeam.io._bigquery_types import arrow_type
from tiebeam.rows import RowBatch

_NAMES = ("run_id", "step", "row_position", "original", "attempt")
"""What tells one letter from another."""
_NOTES = [
    {"name": "name", "type": "STRING", "mode": "REQUIRED"},
    {"name": "text", "type": "STRING", "mode": "REQUIRED"},
    {"name": "noted_at", "type": "TIMESTAMP", "mode": "REQUIRED"},
]


class LetterTable:
    """A table of dead letters, with what a replay needs beside it."""

    def __init__(self, clients: Clients, table: TableName):
        self.clients = clients
        self.table = table
        self.taken = table.beside(f"{table.table}_replaying")
        self.notes = table.beside(f"{table.table}_notes")
        self.tables = Tables(clients, Layout())

    def keep_note(self, name: str, text: str) -> None:
        """Keeps a text under a name."""
        self.tables.create(self.notes, Layout().body(_NOTES), None)
        fields = [pa.field(c["name"], arrow_type(c)) for c in _NOTES]
        line = RowBatch.from_pylist([{"name": name, "text": text, "noted_at": datetime.now(UTC)}], schema=pa.schema(fields))
        appender = streams.Appender(self.clients, f"{self.notes.path}/streams/_default", streams.as_arrow, exact=False)
        try:
            if refused := appender.append(line):
                raise ConfigError(Problem(f"a note is refused: {refused[0].reasons[0]}", str(self.notes), "is it a table of tiebeam?"))
        finally:
            appender.close()

    def note(self, name: str) -> str | None:
        """The text kept last under a name."""
        if self.tables.found(self.notes) is None:
            return None
        found = [row for batch in self._rows(self.notes) for row in batch.to_pylist() if row["name"] == name]
        return max(found, key=lambda row: row["noted_at"])["text"] if found else None

    def take(self) -> tuple[str, list[dict[str, Any]]] | None:
        """The name and the letters of a replay that has not ended, else of a new one over all that are there; None when there are none."""
        if self.tables.found(self.taken) is None:
            if self.tables.found(self.table) is None:
                return None
            self._run(f"SELECT * FROM {self.table.sql}", into=self.taken)
        letters = self._letters()
        if not letters:
            self._drop()
            return None
        named = hashlib.sha256(repr(sorted(repr([letter[n] for n in _NAMES]) for letter in letters)).encode()).hexdigest()
        return f"replay-{named[:12]}", letters

    def retire(self) -> None:
        """Removes the letters that were taken; those that came meanwhile stay."""
        same = " AND ".join(f"t.{n} = l.{n}" if n in ("original", "attempt") else f"IFNULL(t.{n}, '') = IFNULL(l.{n}, '')" for n in _NAMES)
        self._run(f"DELETE FROM {self.table.sql} l WHERE EXISTS (SELECT 1 FROM {self.taken.sql} t WHERE {same})")
        self._drop()

    def _letters(self) -> list[dict[str, Any]]:
        seen: dict[str, dict[str, Any]] = {}
        for batch in self._rows(self.taken):
            if missing := set(SCHEMA.names) - set(batch.schema.names):
                what = f"{self.table} is no table of dead letters: it has no column {', '.join(sorted(missing))}"
                raise ConfigError(Problem(what, "dead_letters", "name the table that a run wrote its dead letters to"))
            for row in batch.select(SCHEMA.names).to_pylist():
                seen.setdefault(repr([row[n] for n in _NAMES]), row)  # a run that failed and was run again left them twice
        return list(seen.values())

    def _rows(self, table: TableName) -> Iterator[RowBatch]:
        session = reader.open_session(self.clients, table, reader.Wanted())
        for stream in session.streams:
            yield from reader.read_stream(self.clients, stream, session.schema)

    def _run(self, sql: str, into: TableName | None = None) -> None:
        from google.cloud import bigquery

        config = bigquery.QueryJobConfig(labels={"made_by": "tiebeam"})
        if into is not None:
            config.destination, config.write_disposition = str(into), "WRITE_EMPTY"

        def run() -> None:
            try:
                job = self.clients.rest.query(sql, job_config=config, retry=None, job_retry=None, timeout=ANSWER_SECS)
                job.result(retry=None)
            except Exception as e:
                if not (into is not None and is_(e, 409)):  # it is there: the answer of an earlier attempt was lost
                    raise

        self.clients.again(f"dead letters in {self.table}", run)

    def _drop(self) -> None:
        self.clients.again(
            f"dropping {self.taken}",
            lambda: self.clients.rest.delete_table(str(self.taken), retry=None, timeout=ANSWER_SECS, not_found_ok=True),
        )
