"""Sends the purchases of `retail` to Kafka, in the order of their time and at a chosen speed, for `live`.

Every 5,000th purchase is held back until others two weeks younger have been sent, and the broken lines of `retail` are sent among them.
The process ends when all is sent or when it is told to stop, and leaves word of what it has sent.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tiebeam.io.kafka import WriteToKafka
from tiebeam.pipelines import _retail_data
from tiebeam.rows import RowBatch

HELD_BACK = 5_000
HELD_ROWS = 60_000  # two weeks of purchases
BLOCK = 2_000
BROKEN_EVERY = 100_000

_COLUMNS = ("household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value")


def sink(servers: str, topic: str, partitions: int) -> WriteToKafka:
    """Where the purchases are sent: raw messages, those of one household to one partition."""
    return WriteToKafka(servers, topic, format="raw", key="household", delivery="at_least_once", partitions=partitions)


def purchases(rows: int) -> pl.DataFrame:
    """The first purchases of the year, in the order in which they are sent."""
    moment = pl.col("transaction_timestamp").alias("moment")
    whole = _retail_data.transactions().select(*_COLUMNS, moment).sort("moment", maintain_order=True)
    place = pl.int_range(pl.len())
    late = (place % HELD_BACK == HELD_BACK - 1) & (place + HELD_ROWS < pl.len())
    sent_at = pl.when(late).then(place + HELD_ROWS).otherwise(place)
    return whole.with_columns(late.alias("held_back"), sent_at.alias("sent_at")).sort("sent_at", maintain_order=True).head(rows)


def send(servers: str, topic: str, partitions: int, rows: int, per_second: int, told: str, stopped: Any) -> None:
    """Sends purchases until there are no more, or until `stopped` is set; writes to the file `told` how many."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process says when it stops
    writer = sink(servers, topic, partitions).writer("live")
    count = {"rows": 0, "held_back": 0, "broken": 0}
    broken = [line for _, line in _retail_data.planted() if not line.startswith(b"{") or b"NaN" in line or b"\xff" in line]
    began = time.monotonic()
    for block in _blocks(rows):
        if stopped.is_set():
            break
        lines, households = _lines(block), block["household_id"].cast(pl.String).to_list()
        if count["rows"] // BROKEN_EVERY < (count["rows"] + block.height) // BROKEN_EVERY:
            lines.append(broken[count["broken"] % len(broken)])
            households.append("nobody")
            count["broken"] += 1
        for _ in writer.write(RowBatch.from_pydict({"value": lines, "household": households})):
            raise ValueError("a purchase is too large for a message")
        count["rows"] += block.height
        count["held_back"] += int(block["held_back"].sum())
        ahead = count["rows"] / per_second - (time.monotonic() - began)
        if ahead > 0:
            stopped.wait(ahead)
    writer.close()
    draft = Path(told).with_suffix(".draft")
    draft.write_text(json.dumps(count))
    draft.replace(told)


def _blocks(rows: int) -> Iterator[pl.DataFrame]:
    yield from purchases(rows).iter_slices(BLOCK)


def _lines(block: pl.DataFrame) -> list[bytes]:
    at = pl.col("moment").dt.strftime("%Y-%m-%dT%H:%M:%SZ").alias("at")
    return block.select(*_COLUMNS, at).write_ndjson().encode().split(b"\n")[:-1]
