"""Apache Parquet files: columnar, compressed, typed.

Format: https://parquet.apache.org/docs/file-format/, version 2.6, read and written by Arrow. The Arrow schema travels in the
file, so that types come back exactly as they were written.
"""

from __future__ import annotations

from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tiebeam.io._file_sink import Encoder, FileSink
from tiebeam.options import option
from tiebeam.rows import RowBatch

ROW_GROUP_ROWS = 131_072
ROW_GROUP_BYTES = 64 << 20


class WriteToParquet(FileSink):
    extension = "parquet"

    compression: str = option("zstd", help="Codec of the pages", choices=("zstd", "snappy", "gzip", "lz4", "none"))

    def encoder(self, stream: BinaryIO, schema: pa.Schema) -> Encoder:
        return _ParquetEncoder(stream, schema, self.compression)


class _ParquetEncoder(Encoder):
    """Holds rows until they make a row group."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, compression: str):
        self._writer = pq.ParquetWriter(stream, schema, compression=compression)
        self._held: list[RowBatch] = []
        self._rows = 0

    def write(self, batch: RowBatch) -> None:
        self._held.append(batch)
        self._rows += batch.num_rows
        self.held_bytes += batch.nbytes
        if self._rows >= ROW_GROUP_ROWS or self.held_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held), row_group_size=self._rows)
        self._held, self._rows, self.held_bytes = [], 0, 0

    def close(self) -> None:
        self.flush()
        self._writer.close()
