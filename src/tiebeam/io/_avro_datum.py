"""Avro data without a container, as messages hold them: each is coded alone, so that a damaged one harms no other."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tiebeam.io._avro_schema import arrow_schema, avro_schema, numbers_only, pairs, stored_schema, typed
from tiebeam.io._lines import Parsed, Refused
from tiebeam.io._typed_files import stored
from tiebeam.rows import RowBatch


class DatumDecoder:
    """Decodes data of one schema."""

    def __init__(self, schema: Any):
        import fastavro

        raw = numbers_only(schema)
        self.meant, self.stored = arrow_schema(schema), arrow_schema(raw, logical=False)
        self.reading = fastavro.parse_schema(raw)
        self.read = fastavro.schemaless_reader

    def decode(self, data: list[bytes], lines: list[int]) -> Iterator[Parsed | Refused]:
        rows: list[Any] = []
        good, refused = [], Refused([], [], [])
        for line, datum in zip(lines, data, strict=True):
            stream = io.BytesIO(datum)
            try:
                row = self.read(stream, self.reading, None)
                left = len(datum) - stream.tell()
            except Exception as e:  # fastavro raises whatever its reading runs into
                refused.lines.append(line)
                refused.reasons.append("malformed")
                refused.details.append(f"no datum of the schema: {type(e).__name__}: {e}")
                continue
            if left:
                refused.lines.append(line)
                refused.reasons.append("malformed")
                refused.details.append(f"{left} bytes are left behind the datum")
            else:
                rows.append(row)
                good.append(line)
        if rows:
            yield Parsed(self._typed(rows), np.array(good))
        if refused.lines:
            yield refused

    def _typed(self, rows: list[Any]) -> RowBatch:
        columns = [
            typed(pa.array([pairs(row[stored.name], stored.type) for row in rows], stored.type), stored.type, meant.type)
            for stored, meant in zip(self.stored, self.meant, strict=True)
        ]
        return RowBatch.from_arrays(columns, schema=self.meant)


class DatumEncoder:
    """Encodes rows of one Arrow schema, of which `schema` is the Avro schema; raises ConfigError for a column that Avro cannot hold."""

    def __init__(self, schema: pa.Schema):
        import fastavro

        self.stored = stored_schema(schema)
        self.schema = avro_schema(self.stored)
        self.raw = arrow_schema(self.schema, logical=False)
        self.writing = fastavro.parse_schema(numbers_only(self.schema))
        self.write = fastavro.schemaless_writer

    def encode(self, rows: RowBatch) -> list[bytes]:
        out, ends = io.BytesIO(), [0]
        for row in stored(stored(rows, self.stored), self.raw).to_pylist(maps_as_pydicts="strict"):
            self.write(out, self.writing, row)
            ends.append(out.tell())
        data = out.getvalue()
        return [data[start:end] for start, end in itertools.pairwise(ends)]
