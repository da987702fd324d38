"""Messages of Pub/Sub: what was pulled, as columns; each let through once; and then rows.

A message that the service delivers again is known by its id, or by an attribute of the publisher's. Ids are kept in state, dealt to a
fixed number of keys, until the job has run on for the horizon: the time during which it stood still does not count, for just then the
service has waited to deliver again what was not acknowledged.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import StrUtf8Coder
from apache_beam.transforms.userstate import BagStateSpec
from apache_beam.transforms.window import TimestampedValue

from tiebeam.dead_letters import Letters
from tiebeam.io._event_time import event_times
from tiebeam.io._lines import Refused
from tiebeam.io._payloads import AvroPayloads, CsvPayloads, EventTime, JsonPayloads, Payloads, RawPayloads, refused, rows_of
from tiebeam.rows import RESERVED, ROW_POSITION, ROW_TIME, RowBatch, RowBatchCoder, timestamp_of, with_column
from tiebeam.steps import BatchFn

METADATA = ("message_id", "publish_time", "ordering_key", "attributes", "delivery_attempt")
SHARDS = 16
STANDSTILL_SECS = 60
BLOCKS = 64

_TIME = RESERVED[ROW_TIME]
_PAIRS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
MESSAGES = pa.schema(
    [
        ("message_id", pa.string()),
        ("unique", pa.string()),
        ("data", pa.binary()),
        ("attributes", _PAIRS),
        ("ordering_key", pa.string()),
        ("publish_time", _TIME),
        ("delivery_attempt", pa.int32()),
        (ROW_TIME, _TIME),
        (ROW_POSITION, pa.string()),
    ]
)

_local = threading.local()


def batch_of(messages: list[Any], subscription: str, id_attribute: str | None, event_time: EventTime | None) -> RowBatch:
    """Messages as they were received. Their time is that of an attribute, where it is one, else when they were published."""
    inner = [received.message for received in messages]
    ids = [message.message_id for message in inner]
    unique = ids
    if id_attribute is not None:
        unique = [f"={m.attributes[id_attribute]}" if id_attribute in m.attributes else m.message_id for m in inner]
    published = pa.array([m.publish_time.seconds * 1_000_000 + m.publish_time.nanos // 1_000 for m in inner], pa.int64()).cast(_TIME)
    times = published
    if event_time is not None:
        times = pc.coalesce(_told_times(inner, event_time), published)
    columns = [
        pa.array(ids, pa.string()),
        pa.array(unique, pa.string()),
        pa.array([m.data for m in inner], pa.binary()),
        pa.array([[{"name": name, "value": m.attributes[name]} for name in sorted(m.attributes)] for m in inner], _PAIRS),
        pa.array([m.ordering_key for m in inner], pa.string()),
        published,
        pa.array([received.delivery_attempt for received in messages], pa.int32()),
        times,
        pa.array([f"{subscription}/{i}" for i in ids], pa.string()),
    ]
    return RowBatch.from_arrays(columns, schema=MESSAGES)


def _told_times(inner: list[Any], event_time: EventTime) -> pa.Array:
    texts = pa.array([m.attributes.get(event_time.column) for m in inner], pa.string())
    return event_times(texts, event_time.form, event_time.zone)


class DealFn(beam.DoFn):
    """Deals messages to keys by what tells them from others, so that a message meets itself."""

    def process(self, batch):
        shards = np.fromiter((zlib.crc32(u.encode()) % SHARDS for u in batch.column("unique").to_pylist()), np.int64, batch.num_rows)
        for shard in np.unique(shards):
            yield int(shard), batch.filter(pa.array(shards == shard))


class OnceFn(beam.DoFn):
    """Lets each message through once within a horizon.

    State: per key the ids that were seen, with the job's own time in seconds; forgotten when a later message of the key comes.
    """

    SEEN = BagStateSpec("seen", RowBatchCoder())
    CLOCK = BagStateSpec("clock", StrUtf8Coder())
    """The time of day when it was last looked at, and how long the job had run by then."""

    def __init__(self, horizon_secs: int):
        self.horizon_secs = horizon_secs

    def process(self, keyed, seen=beam.DoFn.StateParam(SEEN), clock=beam.DoFn.StateParam(CLOCK)):
        _, batch = keyed
        now = _advanced(list(clock.read()), time.time())
        clock.clear()
        clock.add(json.dumps(now))
        blocks = list(seen.read())
        fresh = first_ones(batch, blocks)
        if len(blocks) > BLOCKS or (blocks and min(block.column("at")[0].as_py() for block in blocks) < now[1] - 2 * self.horizon_secs):
            seen.clear()
            for block in _compacted(blocks, now[1] - self.horizon_secs):
                seen.add(block)
        if fresh.num_rows:
            ids = fresh.column("unique")
            seen.add(RowBatch.from_arrays([ids, pa.array(np.full(len(ids), int(now[1])))], names=["unique", "at"]))
            yield TimestampedValue(fresh, timestamp_of(fresh))


def _advanced(clock: list[str], now: float) -> tuple[float, float]:
    """The clock of the job: a standstill counts little."""
    if not clock:
        return now, 0.0
    then, ran = json.loads(clock[0])
    return now, ran + min(max(0.0, now - then), STANDSTILL_SECS)


def first_ones(batch: RowBatch, seen: list[RowBatch]) -> RowBatch:
    """The messages that are neither in what was seen nor twice in the batch itself."""
    ids = batch.column("unique")
    places = pa.table({"unique": ids, "n": np.arange(len(ids))}).group_by("unique").aggregate([("n", "min")])
    mask = np.zeros(len(ids), bool)
    mask[places.column("n_min").to_numpy()] = True
    if seen:
        known = pa.concat_arrays([block.column("unique") for block in seen])
        mask &= ~pc.is_in(ids, value_set=known).to_numpy(zero_copy_only=False)
    return batch if mask.all() else batch.filter(pa.array(mask))


def _compacted(blocks: list[RowBatch], since: float) -> list[RowBatch]:
    table = pa.Table.from_batches(blocks).filter(pc.field("at") >= int(since)).sort_by("at").combine_chunks()
    return [block for block in table.to_batches() if block.num_rows]


@dataclass(frozen=True)
class MessageRows:
    """How messages become rows."""

    step: str
    format: str = "json"
    columns: tuple[tuple[str, pa.DataType], ...] = ()
    delimiter: str = ","
    avro_schema: str | None = None
    event_time: EventTime | None = None
    time_attribute: EventTime | None = None
    attributes: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()

    def parse(self, batch: RowBatch) -> Iterator[RowBatch | Letters]:
        """Rows of messages, and dead letters."""
        payloads = self._payloads()
        source = batch.column(ROW_POSITION)[0].as_py().rpartition("/")[0]
        batch, letters = self._sound(batch, payloads, source)
        yield from letters
        if not batch.num_rows:
            return
        values, names, times = batch.column("data").to_pylist(), batch.column(ROW_POSITION), batch.column(ROW_TIME)
        taken = np.zeros(batch.num_rows, bool)
        for item in rows_of(payloads, values, names, times, source, self.step, self.event_time):
            if isinstance(item, Letters):
                taken |= pc.is_in(names, value_set=item.batch.column(ROW_POSITION)).to_numpy(zero_copy_only=False)
                yield item
            else:
                rows, lines = item
                taken[lines] = True
                yield self._beside(rows, batch.take(pa.array(lines)))
        if not taken.all():
            left = np.flatnonzero(~taken).tolist()
            blank = Refused(left, ["no_value"] * len(left), ["the message holds nothing but blanks"] * len(left))
            yield refused(payloads, values, names, times, source, self.step, blank)

    def decode(self, originals: list[bytes], positions: list[str | None], step: str) -> Iterator[RowBatch | Letters]:
        """Parses dead letters again; their times and attributes are not at hand."""
        times = pa.nulls(len(originals), _TIME)
        for item in rows_of(self._payloads(), originals, pa.array(positions, pa.string()), times, "", step, self.event_time):
            yield item if isinstance(item, Letters) else item[0]

    def _sound(self, batch: RowBatch, payloads: Payloads, source: str) -> tuple[RowBatch, list[Letters]]:
        """Without the messages that hold nothing, and those whose attribute is no time."""
        bad: dict[int, tuple[str, str]] = {}
        if self.time_attribute is not None:
            pairs = batch.column("attributes").to_pylist()
            texts = [next((p["value"] for p in of if p["name"] == self.time_attribute.column), None) for of in pairs]
            times = event_times(pa.array(texts, pa.string()), self.time_attribute.form, self.time_attribute.zone)
            for i in np.flatnonzero(times.is_null().to_numpy(zero_copy_only=False)).tolist():
                bad[i] = "bad_event_time", self.time_attribute.trouble(texts[i])
        if self.format != "raw":
            for i in np.flatnonzero(pc.binary_length(batch.column("data")).to_numpy(zero_copy_only=False) == 0).tolist():
                bad[i] = "no_value", "the message has no data"
        if not bad:
            return batch, []
        lines = sorted(bad)
        told = Refused(lines, [bad[i][0] for i in lines], [bad[i][1] for i in lines])
        values, names, times = batch.column("data").to_pylist(), batch.column(ROW_POSITION), batch.column(ROW_TIME)
        kept = np.ones(batch.num_rows, bool)
        kept[lines] = False
        return batch.filter(pa.array(kept)), [refused(payloads, values, names, times, source, self.step, told)]

    def _beside(self, rows: RowBatch, messages: RowBatch) -> RowBatch:
        """Rows with what else their messages say."""
        if self.attributes:
            pairs = [{p["name"]: p["value"] for p in of} for of in messages.column("attributes").to_pylist()]
            for name in self.attributes:
                rows = with_column(rows, name, pa.array([of.get(name) for of in pairs], pa.string()))
        for name in self.metadata:
            rows = with_column(rows, f"pubsub_{name}", messages.column(name))
        return rows

    def _payloads(self) -> Payloads:
        """The parser of this thread: what one thread learns is not for another in the middle of a block."""
        known = vars(_local).setdefault("parsers", {})
        if self not in known:
            known[self] = self._new()
        return known[self]

    def _new(self) -> Payloads:
        match self.format:
            case "json":
                return JsonPayloads(pa.schema(list(self.columns)))
            case "csv":
                return CsvPayloads(pa.schema(list(self.columns)), self.delimiter)
            case "avro":
                return AvroPayloads(json.loads(self.avro_schema or "null"))
            case _:
                return RawPayloads()


class ParseFn(BatchFn):
    """Rows and dead letters, out of messages, which are no rows yet and not counted as such."""

    def __init__(self, step: str, rows: MessageRows):
        super().__init__(step)
        self.rows = rows

    def apply(self, element: RowBatch) -> Iterator[RowBatch | Letters]:
        yield from self.rows.parse(element)

    def process(self, element):
        for result in self.emit(self.apply(element)):
            yield TimestampedValue(result, timestamp_of(result)) if isinstance(result, RowBatch) else result
