"""docs/metrics.md names every metric in our namespace, and no other: as a batch job and a stream report them."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from support.shelf import WriteToShelf
from support.streams import CODER, Part, Scripted
from tiebeam.delivery import Delivery
from tiebeam.io._endless import ReadEndless
from tiebeam.io.csv import ReadFromCsv
from tiebeam.io.parquet import WriteToParquet
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.steps import BY_STEP, NAMESPACE
from tiebeam.transforms.aggregate import Aggregate, Count
from tiebeam.transforms.conform import Conform, Contract
from tiebeam.transforms.filter import Filter
from tiebeam.transforms.lookup import Lookup

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
CONTRACT = """
kind: DataContract
apiVersion: v3.0.2
id: numbers
version: 1.0.0
status: active
schema:
  - name: numbers
    properties:
      - {name: n, logicalType: integer}
"""


def test_the_table_of_metrics_is_what_is_reported(prism, tmp_path):
    table = re.findall(r"^\| `([a-z_]+)(?: [A-Z]+)?` \| (counter|gauge) \|", PAGE.read_text(), re.MULTILINE)
    documented = set(table)
    assert len(table) == len(documented)
    reported, by_step = set(), set()
    for result in (a_batch_job(tmp_path), a_batch_job(tmp_path), a_stream(tmp_path, prism.flags())):
        for kind in ("counter", "gauge"):
            for metric in result.metrics().query()[f"{kind}s"]:
                found = {NAMESPACE: reported, BY_STEP: by_step}.get(metric.key.metric.namespace, set())
                found.add((metric.key.metric.name.partition(" ")[0], kind))
    assert reported == documented
    assert by_step == {(name, kind) for name, kind in documented if kind == "counter"} - {("already_published", "counter")}


def a_batch_job(folder: Path) -> beam.runners.runner.PipelineResult:
    """One row is malformed, one has no match, one is filtered; a column is lost."""
    (folder / "in.csv").write_text("n,other\n1,a\n2,b\n3,c\nx,d\n")
    contract = Contract.parse(CONTRACT)
    p = beam.Pipeline(runner="FnApiRunner")
    with Delivery(p, str(folder / "rejected"), run_id="batch"):
        rows = p | ReadFromCsv(str(folder / "in.csv"), schema="n bigint, other varchar")
        names = p | beam.Create([RowBatch.from_pydict({"n": [1, 2], "name": ["one", "two"]})])
        fitted = rows | Conform(replace(contract, new_columns="drop_value"))
        _ = fitted | Lookup(names, on=("n",), columns=("name",), how="inner") | Filter("n < 2") | WriteToParquet(str(folder / "batch"))
    return p.run()


def a_stream(folder: Path, flags: list[str]) -> beam.runners.runner.PipelineResult:
    """Each second a row comes, every other one far too late, and each by itself: many bundles, between which windows end."""
    schema = pa.schema([("n", pa.int64()), (ROW_TIME, pa.timestamp("us", tz="UTC"))])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    pieces = []
    for n in range(320):
        row = RowBatch.from_pydict({"n": [n], ROW_TIME: [start + timedelta(seconds=n - 150 * (n % 2))]}, schema)
        pieces.append((int((start + timedelta(seconds=n)).timestamp()) * 1_000_000, CODER.encode(row)))
    source = Scripted((Part(tuple(pieces)),))
    p = beam.Pipeline(options=PipelineOptions(flags))
    with Delivery(p, WriteToShelf(str(folder / "late"), commit_secs=1), run_id="stream"):
        rows = p | ReadEndless(source, poll_secs=0.01)
        _ = rows | Aggregate(window="10s", n=Count()) | WriteToShelf(str(folder / "stream"), commit_secs=1)
    result = p.run()
    result.wait_until_finish()
    return result
