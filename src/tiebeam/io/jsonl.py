"""JSON lines (newline-delimited JSON): one object per line, UTF-8.

Format: https://jsonlines.org/ and RFC 8259, read strictly; a byte order mark, CRLF and blank lines are passed over.
Parsed by Polars, with a proof that it passed over nothing (`_json_proof`).
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Iterable, Iterator
from typing import BinaryIO, ClassVar, Self

import polars as pl
import pyarrow as pa

from tiebeam.errors import ConfigError, Problem
from tiebeam.io._as_text import finite_pieces, writable
from tiebeam.io._compression import ENDINGS, compressed
from tiebeam.io._file_sink import Encoder, FileSink
from tiebeam.io._file_source import FilePart
from tiebeam.io._json_rows import JsonRows
from tiebeam.io._json_shown import shown_schema
from tiebeam.io._lines import Block, LineSource, Parsed, Refused
from tiebeam.io._listing import FoundFile
from tiebeam.io._text_types import declared_schema, refuse_unsupported
from tiebeam.io._typed_files import plain
from tiebeam.options import option
from tiebeam.rows import RowBatch

SAMPLE_BYTES = 1 << 20


class ReadFromJsonl(LineSource):
    """Reads JSON lines, large files in parallel.

    Out: the columns of `schema`, or those that the first megabyte shows: whole numbers bigint, others double, true and false boolean, all
    else text, objects and arrays as their JSON text. A row with keys beyond these comes in a batch of its own, with them as further text
    columns. A null is the same as an absent key. Numbers in a text column are written as the shortest text of the same double.
    `row_position` is `path:offset`, in bytes; of compressed files, in uncompressed bytes.
    Errors: rows that are not what they should be are dead letters: `malformed`, `invalid_utf8`, `not_an_object`, `duplicate_key`,
    `unknown_field` (in a struct), `too_long`, `too_deep`, `wrong_type`, `out_of_range`, `bad_event_time`. A compressed file that breaks
    off is a BadFileError, or one dead letter (`on_bad_file`), after the rows before the break.
    Time: `row_time` is `event_time`, read as `event_time_format` says.

    Example:
        >>> ReadFromJsonl("in/*.jsonl", event_time="at")
        ReadFromJsonl(path='in/*.jsonl', event_time='at')
    """

    extensions = (".jsonl", ".ndjson", ".json")
    formats = ("json",)
    original_format = "json"

    schema: str | None = option(
        None,
        help="Names and types of the columns, instead of those that a sample shows",
        example="id bigint, price decimal(12,2), at timestamptz",
    )

    def __post_init__(self):
        self._given = plain(self.schema) if isinstance(self.schema, pa.Schema) else None
        if self._given is not None:
            self.schema = ", ".join(f'"{f.name}" {f.type}' for f in self._given)
        super().__post_init__()
        self._named = pa.schema([])
        self._known: pa.Schema | None = None
        self._rows: dict[int, JsonRows] = {}
        self._seen: dict[tuple[FoundFile, ...], pa.Schema] = {}  # shared by copies: plan, contract and graph ask for the same files

    def check(self) -> Iterable[Problem | tuple[str, str, str]]:
        yield from super().check()
        try:
            refuse_unsupported(self._given or declared_schema(self.schema or ""))
        except ValueError as e:
            yield Problem(str(e), "schema", "write names and types, such as: id bigint, price decimal(12,2)")
        except ConfigError as e:
            yield from e.problems

    def with_types(self, schema: pa.Schema) -> ReadFromJsonl:
        """A copy that reads the columns named in a schema as the types given there; types of others are found out as before."""
        types = plain(schema)
        refuse_unsupported(types)
        typed = copy.copy(self)
        typed._named, typed._rows, typed.is_prepared = types, {}, False
        return typed

    def prepared(self, found: list[FoundFile]) -> Self:
        prepared = super().prepared(found)
        shown = self._given or (declared_schema(self.schema) if self.schema is not None else self._shown(tuple(found)))
        known = {field.name: field.type for field in shown} | {field.name: field.type for field in self._named}
        prepared._known = pa.schema([*known.items()])
        prepared._rows = {}
        return prepared

    def parse(self, block: Block) -> Iterator[Parsed | Refused]:
        own = threading.get_ident()  # what one thread learns of a file is not for another in the middle of a block
        if own not in self._rows or self._rows[own].columns != self.wanted:
            self._rows[own] = JsonRows(self._known if self._known is not None else pa.schema([]), self.wanted)
        return self._rows[own].parse(block)

    def _shown(self, found: tuple[FoundFile, ...]) -> pa.Schema:
        """The columns that the first megabyte of the files shows."""
        if found not in self._seen:
            self._seen[found] = self._look(found)
        return self._seen[found]

    def _look(self, found: tuple[FoundFile, ...]) -> pa.Schema:
        lines = (line for file in found for line in self._first_lines(file))
        return shown_schema(_up_to(SAMPLE_BYTES, lines))

    def _first_lines(self, file: FoundFile) -> Iterator[bytes]:
        part = FilePart(file.path, 0, SAMPLE_BYTES if self.splittable(file.path) else None, file.size)
        for piece in self.pieces(part):
            if isinstance(piece, Block):
                yield from (piece.line(i) for i in range(len(piece.starts)) if piece.ends[i] - piece.starts[i] <= SAMPLE_BYTES)


def _up_to(size: int, lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield line
        size -= len(line)
        if size <= 0:
            return


class WriteToJsonl(FileSink):
    """Writes rows as JSON lines.

    In: every Arrow type. Whole numbers are exact; decimals are written as text, since many readers take numbers for doubles; dates,
    times and timestamps as ISO 8601 text (with Z when they have a zone); binary as base64; NaN and infinities as the texts "NaN",
    "Infinity" and "-Infinity"; durations as whole numbers of their unit; maps as arrays of objects with key and value.
    Delivery: exactly once: files are staged, and published together at the end of the run.

    Example:
        >>> WriteToJsonl("out/", compression="gzip")
        WriteToJsonl(path='out/', compression='gzip')
    """

    extension = "jsonl"
    also_ours: ClassVar[tuple[str, ...]] = ("ndjson", "json", "jsonl.gz", "jsonl.zst", "jsonl.bz2")

    compression: str = option("none", help="How files are compressed", choices=("none", "gzip", "zstd", "bzip2"))

    def suffix(self) -> str:
        return f".{self.extension}{ENDINGS[self.compression]}"

    def encoder(self, stream: BinaryIO, schema: pa.Schema) -> Encoder:
        return _JsonEncoder(stream, self.compression)


class _JsonEncoder(Encoder):
    """Writes batches as lines; rows with a number that JSON lacks go separately, with that column as text."""

    def __init__(self, stream: BinaryIO, compression: str):
        self._out = compressed(stream, compression)
        self._closes = self._out is not stream

    def write(self, batch: RowBatch) -> None:
        for piece in finite_pieces(batch):
            columns = zip(piece.schema.names, piece.columns, strict=True)
            frame = pl.DataFrame({name: pl.from_arrow(writable(column)) for name, column in columns})
            lines = io.BytesIO()
            frame.write_ndjson(lines)
            self._out.write(lines.getbuffer())

    def close(self) -> None:
        if self._closes:
            self._out.close()
