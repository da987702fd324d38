"""Apache Parquet files: columnar, compressed, typed.

Format: https://parquet.apache.org/docs/file-format/, version 2.6, read and written by Arrow. The Arrow schema travels in the
file. Pages carry checksums, so that damage is found and not read as values.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tiebeam.dead_letters import Letters
from tiebeam.errors import BadFileError, ConfigError, Problem
from tiebeam.io._file_sink import Encoder, FileSink
from tiebeam.io._file_source import PART_BYTES, FilePart
from tiebeam.io._listing import local_path
from tiebeam.io._typed_files import (
    REMEMBERED,
    TypedFileSource,
    plain,
    positions,
    rebuilt,
    recall,
    remember,
    stored,
    with_positions,
)
from tiebeam.options import option
from tiebeam.rows import MAX_BATCH_ROWS, RowBatch, cut

ROW_GROUP_ROWS = 131_072
ROW_GROUP_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 20


class ReadFromParquet(TypedFileSource):
    """Reads Parquet files, the row groups of large ones in parallel.

    Out: the columns of all files by name, dictionaries decoded; `row_position` is `path:row`, counted from 0.
    Errors: a file that is truncated or damaged stops the run with BadFileError, or is one dead letter (`on_bad_file`), after the
    rows of its sound row groups.

    Example:
        >>> ReadFromParquet("sales/", columns=("day", "amount"))
        ReadFromParquet(path='sales/', columns=('day', 'amount'))
    """

    extensions = (".parquet", ".parq", ".pq")

    def schema_of(self, path: str) -> pa.Schema:
        with self._opened(path) as file:
            return _schema(file, path)

    def parts(self, path: str, size: int) -> list[FilePart]:
        if size <= PART_BYTES:
            return [FilePart(path, 0, None, size)]
        with self._opened(path) as file:
            footer = file.metadata
            sizes = [_compressed_bytes(footer.row_group(i)) for i in range(footer.num_row_groups)]
        parts, start = [], 0
        for i in range(len(sizes)):
            if sum(sizes[start : i + 1]) >= PART_BYTES or i + 1 == len(sizes):
                parts.append(FilePart(path, start, i + 1, sum(sizes[start : i + 1])))
                start = i + 1
        return parts

    def read_part(self, part: FilePart) -> Iterator[RowBatch | Letters]:
        with self._opened(part.path) as file:
            own = _schema(file, part.path)
            groups = range(file.metadata.num_row_groups)[part.start : part.stop]
            row = sum(file.metadata.row_group(i).num_rows for i in range(part.start))
            names = self.columns_in(own)
            for batch in file.iter_batches(MAX_BATCH_ROWS, row_groups=list(groups), columns=names):
                rows = self.conformed(batch.select(names), own, part.path)
                yield with_positions(rows, positions(part.path, row, batch.num_rows)) if self.positions else rows
                row += batch.num_rows

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[pq.ParquetFile]:
        local = local_path(path)
        try:
            with pa.OSFile(local) if local else self.open(path) as stream:
                yield pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        except OSError as e:
            if e.errno is not None:
                raise
            raise BadFileError(f"{path} is not a whole Parquet file: {e}") from e  # Arrow's word for what it cannot decode
        except (pa.ArrowException, UnicodeDecodeError) as e:
            raise BadFileError(f"{path} is not a whole Parquet file: {e}") from e


class WriteToParquet(FileSink):
    """Writes rows as Parquet files, in row groups of about 131,072 rows.

    In: every Arrow type but unions, intervals of months and structs without fields; such a column is a ConfigError.
    Delivery: exactly once: files are staged, and published together at the end of the run.

    Example:
        >>> WriteToParquet("sales/", partition_by=("day",), mode="replace_partitions")
        WriteToParquet(path='sales/', mode='replace_partitions', partition_by=('day',))
    """

    extension = "parquet"
    also_ours = ("parq", "pq")

    compression: str = option("zstd", help="Codec of the pages", choices=("zstd", "snappy", "gzip", "lz4", "none"))

    def encoder(self, stream: BinaryIO, schema: pa.Schema) -> Encoder:
        return _ParquetEncoder(stream, schema, self.compression)


class _ParquetEncoder(Encoder):
    """Holds rows until they make a row group."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, compression: str):
        self._schema = pa.schema([field.with_type(rebuilt(field.type, _storable)) for field in schema])
        if self._schema.types != schema.types:
            self._schema = self._schema.with_metadata({REMEMBERED: remember(schema)})
        try:
            self._writer = pq.ParquetWriter(stream, self._schema, compression=compression, write_page_checksum=True)
        except (pa.ArrowException, OSError):
            _refuse(self._schema)
            raise
        self._held: list[RowBatch] = []
        self._rows = 0

    def write(self, batch: RowBatch) -> None:
        for rows in cut(stored(batch, self._schema), ROW_GROUP_ROWS):
            self._held.append(rows)
            self._rows += rows.num_rows
            self.held_bytes += rows.nbytes
            if self._rows >= ROW_GROUP_ROWS or self.held_bytes >= ROW_GROUP_BYTES:
                self.flush()

    def flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held), row_group_size=self._rows)
        self._held, self._rows, self.held_bytes = [], 0, 0

    def close(self) -> None:
        self.flush()
        self._writer.close()


def _storable(kind: pa.DataType) -> pa.DataType:
    """The type that holds the same values in Parquet."""
    t = pa.types
    if t.is_run_end_encoded(kind):
        return kind.value_type
    if t.is_fixed_size_list(kind):  # Arrow 25 writes a null of this type and then cannot read it
        return pa.list_(kind.value_field)
    if t.is_date64(kind):
        return pa.date32()
    if kind == pa.time32("s"):
        return pa.time32("ms")
    if t.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if t.is_decimal(kind) and kind.scale < 0:
        digits = kind.precision - kind.scale
        return pa.decimal128(digits, 0) if digits <= 38 else pa.decimal256(digits, 0)
    return kind


def _refuse(schema: pa.Schema) -> None:
    for field in schema:
        try:
            pq.ParquetWriter(io.BytesIO(), pa.schema([field])).close()
        except (pa.ArrowException, OSError) as e:
            raise ConfigError(Problem(f"Parquet cannot hold {field.type}", f"column {field.name}", "drop or convert it first")) from e


def _schema(file: pq.ParquetFile, path: str) -> pa.Schema:
    schema = file.schema_arrow
    if len(set(schema.names)) < len(schema):
        raise BadFileError(f"{path} has two columns of one name: {', '.join(sorted(schema.names))}")
    return recall((file.metadata.metadata or {}).get(REMEMBERED.encode())) or plain(schema)


def _compressed_bytes(group: pq.RowGroupMetaData) -> int:
    return sum(group.column(i).total_compressed_size for i in range(group.num_columns))
