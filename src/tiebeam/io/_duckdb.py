"""DuckDB files: opens them, waits for them, names what is in them. The only module that imports `duckdb`."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tiebeam.errors import ConfigError, Problem, TransientError


@contextlib.contextmanager
def connect(path: str, *, read_only: bool, wait_secs: float = 0) -> Iterator[Any]:
    """Opens a database, waiting while another process holds it; raises TransientError that says which one does."""
    deadline = time.monotonic() + wait_secs
    while True:
        try:
            con = _attempt(path, read_only)
            break
        except TransientError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)
    with contextlib.closing(con):
        con.execute("SET SESSION TimeZone = 'UTC'")
        yield con


def _attempt(path: str, read_only: bool) -> Any:
    import duckdb

    try:
        return duckdb.connect(path, read_only=read_only)
    except duckdb.ConnectionException as e:  # a process has a file open in one way only
        if read_only:
            return duckdb.connect(path)
        raise TransientError(f"{path} is open for reading only in this process ({os.getpid()})") from e
    except duckdb.IOException as e:
        holder = re.search(r"held in (.+?) \(PID (\d+)\)", str(e))
        if not holder:
            raise
        command = _command(int(holder[2])) or holder[1]
        raise TransientError(f"{path} is locked by process {holder[2]}: {command}") from e


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    return ""


@contextlib.contextmanager
def reaching(path: str) -> Iterator[None]:
    """Turns what DuckDB says before a run into errors of configuration."""
    import duckdb

    try:
        yield
    except (TransientError, duckdb.Error) as e:
        raise ConfigError(Problem(str(e), path)) from e


@contextlib.contextmanager
def transaction(con: Any, where: str) -> Iterator[None]:
    """Commits everything or nothing. What the table refuses is an error of configuration: trying again would not help."""
    import duckdb

    con.begin()
    try:
        yield
        con.commit()
    except BaseException as e:
        with contextlib.suppress(duckdb.Error):
            con.rollback()
        if isinstance(e, duckdb.TransactionException):
            raise TransientError(f"{where}: {e}") from e
        if isinstance(e, (duckdb.IntegrityError, duckdb.DataError, duckdb.NotSupportedError, duckdb.DependencyException)):
            raise ConfigError(Problem(f"the table refuses the rows: {e}", where)) from e
        raise


def columns_of(con: Any, relation: str) -> dict[str, pa.DataType]:
    """Names and types of the columns, as Arrow reads them."""
    schema = con.sql(f"SELECT * FROM {relation} LIMIT 0").to_arrow_reader().schema
    return dict(zip(schema.names, schema.types, strict=True))


def kind_of(con: Any, table: str) -> str | None:
    """BASE TABLE or VIEW; None when there is none of that name."""
    found = first_row(
        con,
        "SELECT table_type FROM information_schema.tables "
        "WHERE table_catalog = current_database() AND lower(table_schema || '.' || table_name) = ?",
        full_name(table),
    )
    return found and found[0]


def first_row(con: Any, query: str, *values: Any) -> Any:
    """The first row of a small result, or None. All of it is fetched, since an unfinished result blocks its connection."""
    return next(iter(con.execute(query, values).fetchall()), None)


def full_name(table: str) -> str:
    """The one name of a table: with its schema, in small letters, which is how DuckDB compares names."""
    return (table if "." in table else f"main.{table}").lower()


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quoted_table(table: str) -> str:
    return ".".join(map(quoted, table.split(".", 1)))


def listed(columns: list[str], prefix: str = "") -> str:
    """Columns in SQL, `"a", "b"`."""
    return ", ".join(prefix + quoted(c) for c in columns)
