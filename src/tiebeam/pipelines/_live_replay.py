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

from tiebeam.pipelines import _retail_data

SUMS = ["revenue", "items", "purchases"]
TYPES: dict[str, Any] = {"day": pl.Datetime("us", "UTC"), "revenue": pl.Decimal(38, 2), "items": pl.Int64, "purchases": pl.Int64}
HELD_BACK = 5_000
HELD_ROWS = 60_000  # two weeks of purchases
BLOCK = 2_000
BROKEN_EVERY = 100_000

_COLUMNS = ("household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value")


def create_topic(servers: str, topic: str, partitions: int) -> None:
    """Creates the topic, after the one of that name is gone."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    if topic in admin.list_topics(timeout=15).topics:
        admin.delete_topics([topic], operation_timeout=15)[topic].result()
    for attempt in range(50):
        try:
            admin.create_topics([NewTopic(topic, partitions, 1)], operation_timeout=15)[topic].result()
            return
        except Exception:  # the old topic is still being deleted
            if attempt == 49:
                raise
            time.sleep(0.2)


def purchases(rows: int) -> pl.DataFrame:
    """The first purchases of the year, in the order in which they are sent."""
    moment = pl.col("transaction_timestamp").alias("moment")
    whole = _retail_data.transactions().select(*_COLUMNS, moment).sort("moment", maintain_order=True)
    place = pl.int_range(pl.len())
    late = (place % HELD_BACK == HELD_BACK - 1) & (place + HELD_ROWS < pl.len())
    sent_at = pl.when(late).then(place + HELD_ROWS).otherwise(place)
    return whole.with_columns(late.alias("held_back"), sent_at.alias("sent_at")).sort("sent_at", maintain_order=True).head(rows)


def by_day(rows: pl.DataFrame) -> pl.DataFrame:
    """Sums by day of New York; `moment` says when each purchase was."""
    day = pl.col("moment").dt.convert_time_zone(_retail_data.TIME_ZONE).dt.truncate("1d").dt.convert_time_zone("UTC").alias("day")
    money = pl.col("sales_value").cast(pl.Decimal(38, 2)).sum().alias("revenue")
    return typed(rows.group_by(day).agg(money, pl.col("quantity").sum().alias("items"), pl.len().alias("purchases")))


def typed(sums: pl.DataFrame) -> pl.DataFrame:
    """Sums in the types in which they are compared."""
    return sums.select(pl.col(name).cast(kind) for name, kind in TYPES.items())


def send(servers: str, topic: str, partitions: int, rows: int, per_second: int, told: str, stopped: Any) -> None:
    """Sends purchases until there are no more, or until `stopped` is set; writes to the file `told` how many."""
    import confluent_kafka

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process says when it stops
    producer = confluent_kafka.Producer({"bootstrap.servers": servers, "log_level": 2, "linger.ms": 20, "enable.idempotence": True})
    count = {"rows": 0, "held_back": 0, "broken": 0}
    broken = [line for _, line in _retail_data.planted() if not line.startswith(b"{") or b"NaN" in line or b"\xff" in line]
    began = time.monotonic()
    for block in _blocks(rows):
        if stopped.is_set():
            break
        for household, line in zip(block["household_id"].to_list(), _lines(block), strict=True):
            producer.produce(topic, line, str(household), partition=household % partitions)
        if count["rows"] // BROKEN_EVERY < (count["rows"] + block.height) // BROKEN_EVERY:
            producer.produce(topic, broken[count["broken"] % len(broken)], partition=0)
            count["broken"] += 1
        count["rows"] += block.height
        count["held_back"] += int(block["held_back"].sum())
        producer.poll(0)
        ahead = count["rows"] / per_second - (time.monotonic() - began)
        if ahead > 0:
            stopped.wait(ahead)
    if producer.flush(120):
        raise TimeoutError("the broker did not take the last purchases")
    draft = Path(told).with_suffix(".draft")
    draft.write_text(json.dumps(count))
    draft.replace(told)


def _blocks(rows: int) -> Iterator[pl.DataFrame]:
    yield from purchases(rows).iter_slices(BLOCK)


def _lines(block: pl.DataFrame) -> list[bytes]:
    at = pl.col("moment").dt.strftime("%Y-%m-%dT%H:%M:%SZ").alias("at")
    return block.select(*_COLUMNS, at).write_ndjson().encode().split(b"\n")[:-1]
