"""Tables of BigQuery: made as they are declared, and given columns before the rows that need them are written."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.io._bigquery_client import ANSWER_SECS, Clients, Pauses, TableName, is_
from tiebeam.io._bigquery_types import Column, columns_of, evolved
from tiebeam.rows import RowBatch

_PARTITIONED = {
    "DATE": ("DAY", "MONTH", "YEAR"),
    "TIMESTAMP": ("HOUR", "DAY", "MONTH", "YEAR"),
    "DATETIME": ("HOUR", "DAY", "MONTH", "YEAR"),
}

_altering = threading.Lock()  # of two threads that add columns one would find the other's change first


@dataclass(frozen=True)
class Layout:
    """What a table is made with."""

    partition_by: str | None = None
    partition_unit: str = "day"
    partition_expiration_days: float | None = None
    cluster_by: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    expiration_days: float | None = None
    create: str = "if_needed"
    new_columns: str = "add"
    description: str | None = None

    def body(self, columns: list[Column]) -> dict[str, Any]:
        """The table as the REST API describes it."""
        kinds = {c["name"]: c["type"] for c in columns}
        for where, names in (("key", self.key), ("cluster_by", self.cluster_by), ("partition_by", (self.partition_by,))):
            if missing := [name for name in names if name is not None and name not in kinds]:
                raise ConfigError(Problem(f"the rows have no column {', '.join(missing)}", where, f"they have: {', '.join(kinds)}"))
        told: dict[str, Any] = {
            "schema": {"fields": columns},
            "labels": {"made_by": "tiebeam", **dict(_pair(label) for label in self.labels)},
        }
        if self.partition_by:
            kind, unit = kinds[self.partition_by], self.partition_unit.upper()
            if unit not in _PARTITIONED.get(kind, ()):
                fix = f"a column of {', '.join(_PARTITIONED)}, with one of the units {', '.join(_PARTITIONED.get(kind, ('DAY',))).lower()}"
                raise ConfigError(Problem(f"{self.partition_by} is {kind}, which has no partitions by {unit.lower()}", "partition_by", fix))
            told["timePartitioning"] = {"type": unit, "field": self.partition_by}
            if self.partition_expiration_days:
                told["timePartitioning"]["expirationMs"] = str(int(self.partition_expiration_days * 86_400_000))
        if self.cluster_by:
            told["clustering"] = {"fields": list(self.cluster_by)}
        if self.key:
            told["tableConstraints"] = {"primaryKey": {"columns": list(self.key)}}
        if self.description:
            told["description"] = self.description
        return told


class Tables:
    """What this process knows of the tables it writes."""

    def __init__(self, clients: Clients, layout: Layout):
        self.clients = clients
        self.layout = layout
        self._known: dict[TableName, list[Column]] = {}

    def known(self, name: TableName, fresh: bool = False) -> list[Column] | None:
        """The columns of a table; None when there is none."""
        if not fresh and name in self._known:
            return self._known[name]
        table = self.found(name)
        if table is None:
            self._known.pop(name, None)
            return None
        if table.table_type not in (None, "TABLE"):
            raise ConfigError(Problem(f"{name} is a {table.table_type.lower()}", "table", "write to a table"))
        self._known[name] = [field.to_api_repr() for field in table.schema]
        return self._known[name]

    def found(self, name: TableName) -> Any | None:
        """The table as the service describes it; None when there is none."""

        def get() -> Any:
            try:
                return self.clients.rest.get_table(str(name), retry=None, timeout=ANSWER_SECS)
            except Exception as e:
                if is_(e, 404):
                    return None
                raise

        return self.clients.again(f"table {name}", get)

    def fit(self, name: TableName, batch: RowBatch) -> list[Column]:
        """Makes a table take the rows of a batch; its columns."""
        wanted = columns_of(batch.schema)
        nulls = {field.name.lower() for field, column in zip(batch.schema, batch.columns, strict=True) if column.null_count}
        nulls |= {field.name.lower() for field in batch.schema if pa.types.is_null(field.type)}
        with _altering:
            fresh, pauses = False, Pauses(self.clients.connection.patience_secs)
            while True:
                kept = self.known(name, fresh)
                needed, news = evolved(kept or [], wanted, nulls)
                if kept is not None and not news:
                    return kept
                if not self._change(name, kept, needed, news):  # somebody else was first
                    pauses.wait(f"table {name}", "others change it all the time")
                fresh = True

    def _change(self, name: TableName, kept: list[Column] | None, needed: list[Column], news: list[str]) -> bool:
        """Creates or alters a table; False when somebody else has just done so."""
        if kept is None:
            if self.layout.create == "never":
                raise ConfigError(Problem(f"there is no table {name}", "table", "create it, or create=if_needed"))
            if not needed:
                raise ConfigError(
                    Problem("every column is null, so there is nothing to create the table of", str(name), "create it before")
                )
            return self.create(name, self.layout.body(needed), self.layout.expiration_days)
        if self.layout.new_columns == "refuse":
            raise ConfigError(Problem(f"the table {name} lacks: {', '.join(news)}", "new_columns", "new_columns=add, or alter the table"))
        return self._alter(name, needed)

    def create(self, name: TableName, body: dict[str, Any], expiration_days: float | None) -> bool:
        """Creates a table; False when it is there already."""
        import time

        from google.cloud import bigquery

        if expiration_days:
            body = {**body, "expirationTime": str(int((time.time() + expiration_days * 86_400) * 1000))}
        reference = {"projectId": name.project, "datasetId": name.dataset, "tableId": name.table}
        made = bigquery.Table.from_api_repr({**body, "tableReference": reference})

        def create() -> bool:
            try:
                self.clients.rest.create_table(made, retry=None, timeout=ANSWER_SECS)
            except Exception as e:
                if is_(e, 409):
                    return False
                raise
            return True

        return self.clients.again(f"creating table {name}", create)

    def _alter(self, name: TableName, columns: list[Column]) -> bool:
        from google.cloud import bigquery

        def alter() -> bool:
            table = self.clients.rest.get_table(str(name), retry=None, timeout=ANSWER_SECS)
            if [field.to_api_repr() for field in table.schema] != self._known.get(name):
                return False
            table.schema = [bigquery.SchemaField.from_api_repr(c) for c in columns]
            try:
                self.clients.rest.update_table(table, ["schema"], retry=None, timeout=ANSWER_SECS)  # refused when its etag is another now
            except Exception as e:
                if is_(e, 412):
                    return False
                raise
            return True

        return self.clients.again(f"altering table {name}", alter)


def _pair(label: str) -> tuple[str, str]:
    name, _, value = label.partition("=")
    return name, value
