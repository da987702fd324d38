"""Kafka to sums per minute, category and kind, to Parquet: a stream, a bounded input, a bare loop, and Beam element by element.

The broker runs on the same two cores and is not counted; the topic has four partitions and is full when the clock starts.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import comparing, events, windowed_sum
from benchmarks.measuring import WORK, Cost, measure, python, say, show

TOPIC = "events"
PARTITIONS = 4
MOST_FOR_BEAM = 300_000
CENTURY_SECS = 100 * 365 * 24 * 3600  # the events are of the past: no clock may close their windows


def tiebeam_stream(servers: str, target: str, size: int) -> None:
    """On Prism, drained when all was read."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from tiebeam import runners, steps
    from tiebeam.io.kafka import ReadFromKafka
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.lab import prism
    from tiebeam.transforms.aggregate import Aggregate, Sum

    p = beam.Pipeline(options=PipelineOptions(prism.obtain().flags()))
    reading = ReadFromKafka(servers, (TOPIC,), event_time="ts", lag_secs=CENTURY_SECS, poll_secs=0.01)
    sums = p | "Read" >> reading | Aggregate(by=("category", "kind"), window="1m", total=Sum("amount"))
    sums | WriteToParquet(target, commit_secs=1)

    def drain() -> None:
        while steps.tally().get(("Read", steps.ROWS_OUT), 0) < size:
            time.sleep(0.01)
        runners.DRAIN.set()

    threading.Thread(target=drain, daemon=True).start()
    p.run().wait_until_finish()


def tiebeam_batch(servers: str, target: str, size: int) -> None:
    import apache_beam as beam

    from tiebeam.io.kafka import ReadFromKafka
    from tiebeam.io.parquet import WriteToParquet
    from tiebeam.transforms.aggregate import Aggregate, Sum

    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | ReadFromKafka(servers, (TOPIC,), event_time="ts", until="latest")
        rows | Aggregate(by=("category", "kind"), window="1m", total=Sum("amount")) | WriteToParquet(target)


def bare_loop(servers: str, target: str, size: int) -> None:
    """What Python can do: fetch, parse by blocks, sum. No watermark, no checkpoint, no dead letters."""
    import polars as pl

    parts, values, left = [], [], size
    keys = [
        pl.col("ts").str.to_datetime(time_zone="UTC").dt.truncate("1m").dt.replace_time_zone(None).alias("window_start"),
        "category",
        "kind",
    ]
    types = {"ts": pl.String, "category": pl.String, "kind": pl.String, "amount": pl.Float64}
    consumer = _consumer(servers)
    while left:
        messages = consumer.consume(1000, 1.0)
        values += [message.value() for message in messages]
        left -= len(messages)
        if len(values) >= 65_536 or not left:
            parts.append(pl.read_ndjson(b"\n".join(values), schema=types).group_by(keys).agg(total=pl.col("amount").sum()))
            values = []
    pl.concat(parts).group_by("window_start", "category", "kind").agg(pl.col("total").sum()).write_parquet(f"{target}/sums.parquet")


def beam_rows(servers: str, target: str, size: int) -> None:
    """The same job as Beam's own elements, one per message; read by a DoFn, as Beam's Kafka source needs Java."""
    import datetime
    import json

    import apache_beam as beam
    import pyarrow as pa
    from apache_beam.transforms.window import FixedWindows, TimestampedValue

    def messages(_):
        consumer, left = _consumer(servers), size
        while left:
            found = consumer.consume(1000, 1.0)
            left -= len(found)
            yield from (message.value() for message in found)

    def timed(event):
        at = datetime.datetime.fromisoformat(event["ts"]).timestamp()
        return TimestampedValue(((event["category"], event["kind"]), event["amount"]), at)

    def named(pair, window=beam.DoFn.WindowParam):
        (category, kind), total = pair
        return {"window_start": window.start.to_utc_datetime(), "category": category, "kind": kind, "total": total}

    schema = pa.schema([("window_start", pa.timestamp("us")), ("category", pa.string()), ("kind", pa.string()), ("total", pa.float64())])
    with beam.Pipeline(runner="FnApiRunner") as p:
        values = p | beam.Create([0]) | beam.FlatMap(messages)
        sums = values | beam.Map(json.loads) | beam.Map(timed) | beam.WindowInto(FixedWindows(60)) | beam.CombinePerKey(sum)
        sums | beam.Map(named) | beam.io.WriteToParquet(f"{target}/sums", schema, file_name_suffix=".parquet")


CONTENDERS: dict[str, Callable[[str, str, int], None]] = {f.__name__: f for f in (tiebeam_stream, tiebeam_batch, bare_loop, beam_rows)}


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size."""
    from tiebeam.lab import kafka

    for size in sizes:
        expected = WORK / "windowed_sum" / "duckdb"
        comparing.empty(expected)
        windowed_sum.duckdb(str(comparing.events_file(size)), str(expected))
        with tempfile.TemporaryDirectory(dir=WORK) as folder, kafka.obtain().cluster(Path(folder)) as broker:
            fill(broker.servers, comparing.events_file(size), size)
            costs = {name: _cost(name, broker.servers, size, times, expected) for name in CONTENDERS if name != "beam_rows"}
        beam_size = min(size, MOST_FOR_BEAM)
        comparing.empty(expected)
        windowed_sum.duckdb(str(comparing.events_file(beam_size)), str(expected))
        with tempfile.TemporaryDirectory(dir=WORK) as folder, kafka.obtain().cluster(Path(folder)) as broker:
            fill(broker.servers, comparing.events_file(beam_size), beam_size)
            costs["beam_rows"] = _cost("beam_rows", broker.servers, beam_size, 1, expected)
        _table(size, beam_size, costs, f"kafka_{size}" if save else None)


def _cost(name: str, servers: str, size: int, times: int, expected: Path) -> Cost:
    say(f"kafka, {size:,} events: {name}")
    target = WORK / "kafka" / name
    cost = measure(python("benchmarks.kafka", name, servers, target, size), times, before=lambda: comparing.empty(target))
    comparing.same(windowed_sum.CONTENT.format(expected), windowed_sum.CONTENT.format(target), f"kafka: {name}")
    return cost


def _table(size: int, beam_size: int, costs: dict[str, Cost], save_as: str | None) -> None:
    rows = []
    for name, cost in costs.items():
        count = beam_size if name == "beam_rows" else size
        figures = [f"{count:,}", f"{cost.secs:.2f}", f"{count / cost.secs:,.0f}", f"{count / cost.cpu_secs:,.0f}", f"{cost.peak_mb:.0f}"]
        rows.append([name.replace("_", " "), *figures])
    title = f"Kafka to sums per minute: JSON events of {events.LINE_BYTES} bytes, {PARTITIONS} partitions"
    show(title, ["", "events", "seconds", "events/s", "events/CPU s", "peak MB"], rows, save_as)


def _consumer(servers: str):  # type: ignore[no-untyped-def]
    """A consumer of all partitions, with the settings that tiebeam uses."""
    import confluent_kafka

    settings = {"queued.max.messages.kbytes": 8192, "queued.min.messages": 30_000, "fetch.queue.backoff.ms": 5}
    consumer = confluent_kafka.Consumer({"bootstrap.servers": servers, "group.id": "bench", **settings})
    consumer.assign([confluent_kafka.TopicPartition(TOPIC, n, confluent_kafka.OFFSET_BEGINNING) for n in range(PARTITIONS)])
    return consumer


def make_topic(servers: str) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(30)


def send(producer, line: bytes, number: int, **more) -> None:  # type: ignore[no-untyped-def]
    """Sends the event of a number to its partition, as soon as the producer has room."""
    while True:
        try:
            return producer.produce(TOPIC, line, partition=number % PARTITIONS, **more)
        except BufferError:
            producer.poll(0.1)


def fill(servers: str, file: Path, size: int) -> None:
    """Sends the events to partitions in turn, as producers with clocks of their own would."""
    import confluent_kafka

    say(f"kafka: sending {size:,} events")
    make_topic(servers)
    sending = confluent_kafka.Producer({"bootstrap.servers": servers, "linger.ms": 50, "queue.buffering.max.messages": 500_000})
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            send(sending, line.rstrip(), number)
    if sending.flush(120):
        raise SystemExit("the broker did not take all events")


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4]))
