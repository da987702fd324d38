"""Partitions: `sales$20261127` is the day in a table, as in https://cloud.google.com/bigquery/docs/managing-partitioned-table-data."""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import ConfigError, Problem

_FORMS = {4: ("YEAR", "%Y"), 6: ("MONTH", "%Y%m"), 8: ("DAY", "%Y%m%d"), 10: ("HOUR", "%Y%m%d%H")}


def split(table: str) -> tuple[str, str | None]:
    """A table, and what stands behind its `$`, if that is there."""
    name, dollar, decorator = table.partition("$")
    return name, decorator if dollar else None


@dataclass(frozen=True)
class Partition:
    """A span of time: its first and its last microsecond."""

    decorator: str
    unit: str
    first: datetime
    last: datetime

    @classmethod
    def of(cls, decorator: str) -> Partition:
        """Reads YYYY, YYYYMM, YYYYMMDD or YYYYMMDDHH; raises ValueError."""
        unit, form = _FORMS.get(len(decorator), ("", ""))
        if not unit or not (decorator.isascii() and decorator.isdigit()):
            raise ValueError(decorator)
        first = datetime.strptime(decorator, form)
        last = first.replace(minute=59, second=59, microsecond=999_999)
        if unit != "HOUR":
            last = last.replace(hour=23)
        if unit == "YEAR":
            last = last.replace(month=12)
        if unit in ("YEAR", "MONTH"):
            last = last.replace(day=calendar.monthrange(last.year, last.month)[1])
        return cls(decorator, unit, first, last)

    def column_of(self, table: Any) -> str:
        """The column by which a table has such partitions; raises ConfigError where it has none."""
        found = getattr(table, "time_partitioning", None)
        column: str | None = getattr(found, "field", None)
        unit = found.type_ if found is not None and column else None
        if column is None or unit != self.unit:
            how = f"partitions by {unit.lower()}" if unit else "no partitions by a column of time"
            what = f"the table has {how}, and ${self.decorator} is one by {self.unit.lower()}"
            raise ConfigError(Problem(what, "table", "name a partition of the table's own unit, or leave out what is behind $"))
        return column

    def holds(self, values: pa.Array) -> pa.Array:
        """Which times and dates lie in it."""
        first, last = (pa.scalar(end.date() if pa.types.is_date(values.type) else end, values.type) for end in (self.first, self.last))
        return pc.fill_null(pc.and_(pc.greater_equal(values, first), pc.less_equal(values, last)), False)

    def where(self, table: Any) -> str:
        """The condition, in SQL, for rows of a table to lie in it."""
        column = self.column_of(table)
        kind = next(field.field_type for field in table.schema if field.name == column)
        ends = [end.date() if kind == "DATE" else f"{end}+00" if kind == "TIMESTAMP" else end for end in (self.first, self.last)]
        return f"`{column}` BETWEEN {kind} '{ends[0]}' AND {kind} '{ends[1]}'"


def problems(table: str, mode: str, *, by_streams: bool) -> Iterator[Problem]:
    """What is wrong with the partition that a table's name ends with."""
    name, decorator = split(table)
    if decorator is None:
        return
    try:
        Partition.of(decorator)
    except ValueError:
        fix = f"{name}$YYYY, {name}$YYYYMM, {name}$YYYYMMDD or {name}$YYYYMMDDHH"
        yield Problem(f"{decorator!r} names no partition", "table", fix)
    if "{" in table:
        yield Problem("a partition is one of a single table, and here rows name theirs", "table", "leave out {column}, or what is behind $")
    if mode == "upsert":
        yield Problem("an upsert finds its rows by key, in all partitions", "mode", "mode=append or replace, or leave out what is behind $")
    if by_streams:
        yield Problem("a partition is written by a transaction", "method", "method=load_job, with delivery=exactly_once")
