"""Rows: the element of every PCollection between our steps is a `RowBatch`, an Arrow record batch.

A batch has one schema and at least one row. Results never depend on how rows are cut into batches, nor on the
order in which batches arrive. Three column names are reserved, and optional:

    row_time      timestamp[us, UTC]  event time
    row_change    string              insert, update, delete or snapshot
    row_position  string              the source's own position, unique per row: path:offset, topic/partition/offset

Importing this module registers the coder: from then on Beam never pickles a batch.
Format: Arrow IPC streaming format (https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format).
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam import coders
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from pyarrow import RecordBatch as RowBatch

ROW_TIME = "row_time"
ROW_CHANGE = "row_change"
ROW_POSITION = "row_position"
RESERVED = {
    ROW_TIME: pa.timestamp("us", tz="UTC"),
    ROW_CHANGE: pa.string(),
    ROW_POSITION: pa.string(),
}

MAX_BATCH_ROWS = 65_536
MAX_BATCH_BYTES = 16 << 20

# Without Arrow's threads: handing a small buffer to one costs more than compressing it.
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ = pa.ipc.IpcReadOptions(use_threads=False)


class RowBatchCoder(coders.Coder):
    """Encodes one record batch as one Arrow IPC stream, schema included, its buffers compressed with LZ4.

    Beam may decode any element alone, on another machine, so the schema goes with each batch: some hundred bytes
    in front of megabytes. Why LZ4: docs/decisions/0003-row-batch-coder.md.
    """

    def encode(self, value: RowBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema, options=_LZ4) as stream:
            stream.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> RowBatch:
        return pa.ipc.open_stream(pa.py_buffer(encoded), options=_READ).read_next_batch()

    def estimate_size(self, value: RowBatch) -> int:
        return value.nbytes

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self):
        return RowBatch

    def __eq__(self, other) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


coders.registry.register_coder(RowBatch, RowBatchCoder)


def cut(batch: RowBatch, max_rows: int = MAX_BATCH_ROWS) -> Iterator[RowBatch]:
    """Yields zero-copy slices of at most `max_rows` rows; nothing for an empty batch."""
    for start in range(0, batch.num_rows, max_rows):
        yield batch.slice(start, max_rows)


def batches(table: pa.Table, max_rows: int = MAX_BATCH_ROWS) -> Iterator[RowBatch]:
    """Yields the non-empty record batches of a table, each of at most `max_rows` rows."""
    for batch in table.to_batches(max_chunksize=max_rows):
        if batch.num_rows:
            yield batch


def empty(schema: pa.Schema) -> RowBatch:
    """A batch without rows, never an element: it stands for its schema where one is worked out."""
    return RowBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)


def one_batch(table: pa.Table) -> RowBatch:
    """Makes one record batch of a table; raises ValueError when a column is too large for one (2 GB of text, say)."""
    parts = [part for part in table.combine_chunks().to_batches() if part.num_rows]
    if not parts:
        return empty(table.schema)
    if len(parts) > 1:
        raise ValueError(f"{table.num_rows:,} rows ({table.nbytes:,} bytes) do not fit in one record batch")
    return parts[0]


def concat(parts: list[RowBatch]) -> RowBatch:
    """Joins batches of possibly different schemas by column name; absent columns become null."""
    if len(parts) == 1:
        return parts[0]
    if all(part.schema == parts[0].schema for part in parts):
        return one_batch(pa.Table.from_batches(parts))
    return one_batch(pa.concat_tables(map(pa.Table.from_batches, ([p] for p in parts)), promote_options="default"))


def with_column(batch: RowBatch, name: str, values: pa.Array) -> RowBatch:
    """Adds a column, or replaces the one of that name where it stands."""
    index = batch.schema.get_field_index(name)
    if index >= 0:
        return batch.set_column(index, pa.field(name, values.type), values)
    return batch.append_column(pa.field(name, values.type), values)


def timestamp_of(batch: RowBatch) -> Timestamp:
    """The Beam timestamp of a batch: its smallest `row_time`, or the beginning of time when it has none."""
    if ROW_TIME not in batch.schema.names:
        return MIN_TIMESTAMP
    earliest = pc.min(batch.column(ROW_TIME)).cast(RESERVED[ROW_TIME]).cast(pa.int64()).as_py()
    if earliest is None:
        return MIN_TIMESTAMP
    return max(MIN_TIMESTAMP, Timestamp(micros=earliest))
