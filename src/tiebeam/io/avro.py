"""Apache Avro files: rows in blocks, with their schema.

Format: https://avro.apache.org/docs/1.12.0/specification/, object container files; codecs deflate, snappy, zstandard, bzip2, xz and null.
Blocks of flat records are decoded and encoded by Polars, column by column (measured: 20 times faster), others by fastavro,
record by record.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.dead_letters import Letters
from tiebeam.errors import BadFileError
from tiebeam.io import _avro_container as container
from tiebeam.io._avro_container import Block, Header
from tiebeam.io._avro_schema import arrow_schema, avro_schema, numbers_only, pairs, stored_schema, typed
from tiebeam.io._file_sink import Encoder, FileSink
from tiebeam.io._file_source import PART_BYTES, FilePart
from tiebeam.io._typed_files import REMEMBERED, TypedFileSource, batch_of, joined, plain, recall, remember, stored, with_positions
from tiebeam.options import option
from tiebeam.rows import MAX_BATCH_BYTES, MAX_BATCH_ROWS, RowBatch, concat, cut, one_batch

BLOCK_BYTES = 1 << 20
_FLAT = {"boolean", "int", "long", "float", "double", "bytes", "string", "enum", "fixed"}
_WRITTEN_BY_POLARS = {pa.bool_(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.binary()}
_CODEC = {"deflate": "deflate", "snappy": "snappy", "zstd": "zstandard", "none": "null"}


class ReadFromAvro(TypedFileSource):
    """Reads Avro files, large ones in parallel, cut at their sync markers.

    Out: the fields of the records; `row_position` is `path:block.row`, the byte at which the block starts and the row in it from 0.
    Errors: a file that is truncated or damaged, or a union of several types, stops the run with BadFileError, or is one dead letter
    (`on_bad_file`), after the rows of its sound blocks.

    Example:
        >>> ReadFromAvro("events/*.avro")
        ReadFromAvro(path='events/*.avro')
    """

    extensions = (".avro",)

    def schema_of(self, path: str) -> pa.Schema:
        with self._opened(path) as stream:
            return _schema(container.read_header(stream, path), path)

    def parts(self, path: str, size: int) -> list[FilePart]:
        if size <= PART_BYTES:
            return [FilePart(path, 0, None, size)]
        with self._opened(path) as stream:
            if not container.read_header(stream, path).searchable:
                return [FilePart(path, 0, None, size)]
        starts = range(0, size, PART_BYTES)
        return [FilePart(path, start, min(start + PART_BYTES, size), min(PART_BYTES, size - start)) for start in starts]

    def read_part(self, part: FilePart) -> Iterator[RowBatch | Letters]:
        with self._opened(part.path) as stream:
            header = container.read_header(stream, part.path)
            own = _schema(header, part.path)
            for blocks in _gathered(container.read_blocks(stream, header, part.path, part.start, part.stop)):
                batch = self.conformed(_decoded(header, blocks, self.columns_in(own), part.path), own, part.path)
                yield from cut(with_positions(batch, _positions(part.path, blocks)) if self.positions else batch)

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[BinaryIO]:
        with self.open(path) as stream:
            yield io.BufferedReader(stream, 1 << 20) if isinstance(stream, io.RawIOBase) else stream


class WriteToAvro(FileSink):
    """Writes rows as Avro files.

    In: every Arrow type but unions, intervals of months and maps whose keys are not text; and names must be Avro names. Such a
    column is a ConfigError. Where Avro has no such type, as for unsigned 64-bit numbers, one that holds the same values is written.
    Delivery: exactly once: files are staged, and published together at the end of the run.

    Example:
        >>> WriteToAvro("events/", compression="zstd")
        WriteToAvro(path='events/', compression='zstd')
    """

    extension = "avro"

    compression: str = option("deflate", help="Codec of the blocks; every reader knows deflate", choices=tuple(_CODEC))

    def encoder(self, stream: BinaryIO, schema: pa.Schema) -> Encoder:
        return _AvroEncoder(stream, schema, _CODEC[self.compression])


class _AvroEncoder(Encoder):
    """Holds rows until they make a block."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, codec: str):
        self._stored = stored_schema(schema)
        self._avro = avro_schema(self._stored)
        self._raw = arrow_schema(self._avro, logical=False)
        self._stream, self._codec, self._sync = stream, codec, os.urandom(container.SYNC_BYTES)
        metadata = {REMEMBERED: remember(schema).encode()} if self._stored.types != schema.types else {}
        stream.write(container.header_bytes(self._avro, codec, self._sync, metadata))
        self._held: list[RowBatch] = []

    def write(self, batch: RowBatch) -> None:
        batch = stored(stored(batch, self._stored), self._raw)
        for rows in cut(batch, max(1, batch.num_rows * BLOCK_BYTES // max(1, batch.nbytes))):
            self._held.append(rows)
            self.held_bytes += rows.nbytes
            if self.held_bytes >= BLOCK_BYTES:
                self.flush()

    def flush(self) -> None:
        if self._held:
            rows = concat(self._held)
            self._stream.write(container.block_bytes(rows.num_rows, _encoded(self._avro, rows), self._codec, self._sync))
        self._held, self.held_bytes = [], 0

    def close(self) -> None:
        self.flush()


def _schema(header: Header, path: str) -> pa.Schema:
    try:
        schema = arrow_schema(header.schema)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BadFileError(f"{path} cannot be read as columns: {e}") from e
    return recall(header.metadata.get(REMEMBERED)) or plain(schema)


def _gathered(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Puts blocks together to the size of a batch; those before damage are passed on first."""
    held: list[Block] = []
    try:
        for block in blocks:
            held.append(block)
            if sum(b.rows for b in held) >= MAX_BATCH_ROWS or sum(len(b.data) for b in held) >= MAX_BATCH_BYTES:
                yield held
                held = []
    except BadFileError:
        if held:
            yield held
        raise
    if held:
        yield held


def _positions(path: str, blocks: list[Block]) -> pa.Array:
    numbers = [joined(f"{path}:{block.offset}.", pa.array(np.arange(block.rows))) for block in blocks]
    return pa.concat_arrays(numbers)


def _decoded(header: Header, blocks: list[Block], names: list[str], path: str) -> RowBatch:
    """The named fields of the records in some blocks, in the Arrow types that stand for their Avro types."""
    raw = numbers_only(header.schema)
    kinds, meant = arrow_schema(raw, logical=False), arrow_schema(header.schema)
    rows = sum(block.rows for block in blocks)
    found = _decoded_flat(raw, blocks, names) if all(_is_flat(field["type"]) for field in raw["fields"]) else None
    try:
        if found is None or len(found[0] if found else ()) != rows:
            found = _decoded_records(raw, blocks, [kinds.field(name) for name in names], rows)
        columns = [typed(column, kinds.field(name).type, meant.field(name).type) for name, column in zip(names, found, strict=True)]
    except Exception as e:  # fastavro lets through whatever damaged bytes lead to
        raise BadFileError(f"{path} is damaged between the blocks at bytes {blocks[0].offset} and {blocks[-1].offset}: {e!r}") from e
    return batch_of(columns, [meant.field(name) for name in names], rows)


def _decoded_flat(raw: Any, blocks: list[Block], names: list[str]) -> list[pa.Array] | None:
    """Decodes by Polars; None when it cannot, and then fastavro says why."""
    import polars as pl

    try:
        table = pl.read_avro(container.plain_file(raw, blocks), columns=names).to_arrow() if names else pa.table({})
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    batch = one_batch(table.select(names))
    return batch.columns


def _decoded_records(raw: Any, blocks: list[Block], fields: list[pa.Field], rows: int) -> list[pa.Array]:
    import fastavro

    records: list[Any] = list(fastavro.reader(container.plain_file(raw, blocks)))
    if len(records) != rows:
        raise ValueError(f"{len(records)} records instead of {rows}")
    return [pa.array([pairs(record[field.name], field.type) for record in records], field.type) for field in fields]


def _is_flat(avro: Any) -> bool:
    """Whether Polars reads a type: no nesting, and no union but with null."""
    if isinstance(avro, list):
        return len(avro) == 2 and "null" in avro and all(branch == "null" or _is_flat(branch) for branch in avro)
    return avro in _FLAT if isinstance(avro, str) else isinstance(avro["type"], str) and avro["type"] in _FLAT


def _encoded(schema: Any, rows: RowBatch) -> bytes:
    """The records of a batch, one after another, as a block holds them."""
    plain = RowBatch.from_arrays([_big_endian(c) if pa.types.is_decimal(c.type) else c for c in rows.columns], names=rows.schema.names)
    file = io.BytesIO()
    if all(kind in _WRITTEN_BY_POLARS for kind in plain.schema.types):
        import polars as pl

        frame = pl.from_arrow(pa.Table.from_batches([plain]))
        assert isinstance(frame, pl.DataFrame)  # a table is never a Series
        frame.write_avro(file)
    else:
        import fastavro

        records = rows.to_pylist(maps_as_pydicts="strict")
        fastavro.writer(file, numbers_only(schema), records, codec="null", sync_interval=1 << 40)
    file.seek(0)
    header = container.read_header(file, "a block")
    return b"".join(block.data for block in container.read_blocks(file, header, "a block", 0, None))


def _big_endian(column: pa.Array) -> pa.Array:
    """Decimals as Avro writes them: the bytes of the whole number, most significant first."""
    width = column.type.byte_width
    start = column.offset * width
    digits = np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * width].reshape(-1, width)[:, ::-1]
    fixed = pa.Array.from_buffers(pa.binary(width), len(column), [None, pa.py_buffer(np.ascontiguousarray(digits))])
    return pc.if_else(column.is_valid(), fixed.cast(pa.binary()), pa.scalar(None, pa.binary()))
