"""Steps that only `retail` has: local time, spells, campaigns matched to purchases, tables computed at once, tables stored twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam import pvalue

from tiebeam.connectors import Sink
from tiebeam.errors import ConfigError, Problem
from tiebeam.io.duckdb import WriteToDuckDB
from tiebeam.io.parquet import WriteToParquet
from tiebeam.options import declared
from tiebeam.pipelines._retail_data import TIME_ZONE
from tiebeam.rows import RESERVED, ROW_TIME, RowBatch, batches, with_column
from tiebeam.steps import ROWS_IN, BatchFn, apply_batches, count
from tiebeam.transforms.frames import MapBatches
from tiebeam.transforms.lookup import Lookup

NOT_LISTED = "NOT LISTED"
USUAL_BASKETS = 5
"""What a household's usual basket is can be said once there are so many."""
REDEEMED = pa.schema([("redeemed", pa.date32())])
_PARTITIONS = {"department_days": ("month",)}


def tell_day(purchases: RowBatch) -> RowBatch:
    """Tells day, weekday (1 is Monday) and hour of purchases in the shops' own time zone, and keeps what is used from here on."""
    local = pc.local_timestamp(purchases["transaction_timestamp"].cast(pa.timestamp("us", tz=TIME_ZONE)))
    told = {
        "day": local.cast(pa.date32()),
        "weekday": pc.day_of_week(local, count_from_zero=False).cast(pa.int8()),
        "hour": pc.hour(local).cast(pa.int8()),
        "revenue": purchases["sales_value"],
        ROW_TIME: purchases["transaction_timestamp"].cast(RESERVED[ROW_TIME]),
    }
    return RowBatch.from_pydict({name: purchases[name] for name in ("household_id", "basket_id", "product_id")} | told)


def tell_month(rows: RowBatch) -> RowBatch:
    """Adds the month of a day, as `2017-03`: Parquet files are kept in a folder per month."""
    return with_column(rows, "month", pc.strftime(rows["day"].cast(pa.timestamp("s")), format="%Y-%m"))


def tell_redeemed(redemptions: RowBatch) -> RowBatch:
    """Dates on which households redeemed a coupon, as rows of the first moment of that day."""
    midnight = redemptions["redemption_date"].cast(pa.timestamp("us"))
    first = pc.assume_timezone(midnight, TIME_ZONE).cast(RESERVED[ROW_TIME])
    return RowBatch.from_pydict({"household_id": redemptions["household_id"], "redeemed": redemptions["redemption_date"], ROW_TIME: first})


def tell_week_since(baskets: RowBatch) -> RowBatch:
    """Tells in which week after a redeemed coupon a basket was bought (from 1; null: none lately), and what it was beside the usual one."""
    days = pc.subtract(baskets["day"].cast(pa.int32()), baskets["redeemed"].cast(pa.int32()))
    week = pc.if_else(pc.less(days, 28), pc.add(pc.divide(days, 7), 1), None).cast(pa.int8())
    known = pc.greater_equal(baskets["earlier"], USUAL_BASKETS)
    told = {"week": week, "revenue": baskets["revenue"], "ratio": pc.if_else(known, baskets["ratio"], None)}
    return RowBatch.from_pydict({"household_id": baskets["household_id"]} | told)


def tell_spell(sessions: RowBatch) -> RowBatch:
    """A session of a household's baskets, with the first and the last day of it in the shops' own time zone."""

    def day(column: str) -> pa.Array:
        return pc.local_timestamp(sessions[column].cast(pa.timestamp("us", tz=TIME_ZONE))).cast(pa.date32())

    days = {"first_day": day("session_start"), "last_day": day("session_end")}
    return RowBatch.from_pydict({name: sessions[name] for name in ("household_id", "baskets", "revenue")} | days)


class DescribeProducts(beam.PTransform):
    """Adds columns of the table of products; a product that is not in it is in the department NOT LISTED."""

    def __init__(self, products: beam.PCollection, *columns: str):
        super().__init__()
        self.products, self.columns = products, columns

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        described = rows | "Look up" >> Lookup(self.products, on="product_id", columns=self.columns)
        return described | "Not listed" >> MapBatches(_not_listed, frame="arrow")


def _not_listed(rows: RowBatch) -> RowBatch:
    return with_column(rows, "department", pc.fill_null(rows["department"], NOT_LISTED))


class SpentOnCovered(beam.PTransform):
    """Adds up what households spent on the products that campaigns cover, before and during each, batch by batch.

    In: purchases; beside them the table `covered` of products per campaign, with the days to look at.
    Out: parts of sums: campaign_id, household_id, before, during; several per household.
    """

    def __init__(self, covered: beam.PCollection):
        super().__init__()
        self.covered = covered

    def expand(self, purchases: beam.PCollection) -> beam.PCollection:
        return apply_batches(purchases, "Match", _SpentFn(self.label), pvalue.AsIter(self.covered))


class _SpentFn(BatchFn):
    def apply(self, batch: RowBatch, covered: list[RowBatch]) -> Iterator[RowBatch]:
        products, purchases = frame_of(list(covered)), frame_of([batch.select(["household_id", "product_id", "day", "revenue"])])
        if products is None or purchases is None:
            return
        earlier, revenue = pl.col("day") < pl.col("start_date"), pl.col("revenue")
        spent = (
            purchases.lazy()
            .join(products.lazy(), on="product_id")
            .filter(pl.col("day").is_between("before_start", "end_date"))
            .with_columns(before=pl.when(earlier).then(revenue), during=pl.when(~earlier).then(revenue))
            .group_by("campaign_id", "household_id")
            .agg(pl.col("before", "during").sum())
        )
        yield from rows_of(spent.collect())


class AtOnce(beam.PTransform):
    """Computes a table from one or several whole tables.

    In: a PCollection of row batches, or a tuple of them. Each reaches the function as one Polars frame, its rows in no
        particular order; a table without rows as None, and when that is the first one nothing comes out.
    State: all rows of the tables, in one worker's memory.
    """

    def __init__(self, compute: Callable[..., pl.DataFrame]):
        super().__init__()
        self.compute = compute

    def expand(self, tables: beam.PCollection | tuple[beam.PCollection, ...]) -> beam.PCollection:
        named = tables if isinstance(tables, tuple) else (tables,)
        begin = named[0].pipeline | "Begin" >> beam.Create([0])
        return apply_batches(begin, "Compute", _ComputeFn(self.label, self.compute), *map(pvalue.AsIter, named))


class _ComputeFn(BatchFn):
    def __init__(self, step: str, compute: Callable[..., pl.DataFrame]):
        super().__init__(step)
        self.compute = compute

    def apply(self, _: Any, *tables: list[RowBatch]) -> Iterator[RowBatch]:
        frames = [frame_of(list(table)) for table in tables]
        count(self.step, ROWS_IN, sum(f.height for f in frames if f is not None))
        if frames[0] is not None:
            yield from rows_of(self.compute(*frames))


class Store(beam.PTransform):
    """Writes a table twice: as Parquet files into a folder of its name, and into the warehouse; and to a third place, if there is one.

    Delivery: exactly once: all replace what was there, at the end of the run.
    """

    def __init__(self, folder: str, warehouse: str, table: str, sink: Sink | None = None):
        super().__init__()
        self.folder, self.warehouse, self.table, self.sink = folder.rstrip("/"), warehouse, table, sink

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        partition_by = _PARTITIONS.get(self.table, ())
        rows | "Parquet" >> WriteToParquet(f"{self.folder}/{self.table}", mode="replace", partition_by=partition_by)
        if self.sink is not None:
            rows | "Sink" >> sink_of(self.sink, self.table)
        return rows | "DuckDB" >> WriteToDuckDB(self.warehouse, self.table, mode="replace")


def sink_of(sink: Sink, table: str) -> Sink:
    """A sink for one table: `{table}` in its options is the table's name."""
    told = {o.name: getattr(sink, o.name) for o in declared(type(sink))}
    named = {name: value.replace("{table}", table) if isinstance(value, str) else value for name, value in told.items()}
    if named == told:
        fix = "say {table} where its name belongs, such as --sink_table='shop.{table}'"
        raise ConfigError(Problem("all tables would go to one place", "--sink", fix))
    return type(sink)(**{**named, "mode": "replace"})


def frame_of(parts: list[RowBatch]) -> pl.DataFrame | None:
    """One frame of the batches of a table; None when there are none."""
    return pl.from_arrow(pa.Table.from_batches(parts)) if parts else None  # type: ignore[return-value]


def rows_of(frame: pl.DataFrame) -> Iterator[RowBatch]:
    """The rows of a frame in plain Arrow types: Polars hands out large strings."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    plain = [pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema]
    return batches(table.cast(pa.schema(plain)))
