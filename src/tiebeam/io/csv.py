"""Comma-separated values, and their relatives with other delimiters: text, one row per line, UTF-8.

Format: RFC 4180. Line ends may be LF or CRLF, also mixed; a byte order mark and blank lines are passed over. Parsed by Arrow.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import BadFileError, ConfigError, Problem
from tiebeam.io._as_text import finite_pieces, writable
from tiebeam.io._compression import ENDINGS, compressed
from tiebeam.io._csv_rows import CsvRows, Dialect, row_blocks
from tiebeam.io._file_sink import Encoder, FileSink
from tiebeam.io._file_source import FilePart
from tiebeam.io._lines import Block, LineSource, Parsed, Refused, TooLong
from tiebeam.io._listing import FoundFile
from tiebeam.io._text_types import declared_schema, from_text, refuse_unsupported
from tiebeam.io._typed_files import plain
from tiebeam.options import option
from tiebeam.rows import RowBatch

SAMPLE_BYTES = 1 << 20
_WHOLE = r"^(0|-?[1-9][0-9]{0,18})$"
_FRACTION = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?$"
_TRUTH = r"^(true|false)$"


class ReadFromCsv(LineSource):
    """Reads CSV files, large ones in parallel unless fields hold line ends.

    Out: the columns that the first line of each file names, of the types in `schema` or those that the first megabyte shows: whole numbers
    bigint, fractions double, true and false boolean, all else text (so are numbers with leading zeros). An empty field is null, an empty
    quoted one is the empty text. `row_position` is `path:offset`, in bytes; of compressed files, in uncompressed bytes.
    Errors: rows that are not what they should be are dead letters: `ragged`, `bare_quote`, `invalid_utf8`, `malformed`, `wrong_type`,
    `too_long`, `bad_event_time`. A compressed file that breaks off is a BadFileError, or one dead letter (`on_bad_file`), after the rows
    before the break.
    Time: `row_time` is `event_time`, read as `event_time_format` says.

    Example:
        >>> ReadFromCsv("in/*.csv", delimiter=";")
        ReadFromCsv(path='in/*.csv', delimiter=';')
    """

    extensions = (".csv", ".tsv")
    formats = ("csv",)
    original_format = "csv"

    delimiter: str = option(",", help="One character between fields, or the word tab", example=";")
    quote: str = option('"', help="The character around fields that hold delimiters; empty: none")
    header: bool = option(True, help="Whether the first line of each file names the columns")
    names: tuple[str, ...] | None = option(None, help="The names of the columns, when no header gives them; else column_1 and so on")
    null_values: tuple[str, ...] = option((), help="Unquoted fields that mean null, besides empty ones", example="NULL,NA")
    newlines_in_values: bool = option(False, help="Whether quoted fields may hold line ends; such files are not split")
    schema: str | None = option(None, help="Types of columns, instead of those that a sample shows", example="id bigint, at timestamptz")

    def __post_init__(self):
        super().__post_init__()
        self._named = pa.schema([])
        self._types: dict[str, pa.DataType] = {}
        self._headers: dict[str, list[str]] = {}

    def check(self) -> Iterable[Problem | tuple[str, str, str]]:
        yield from super().check()
        if len(self._delimiter) != 1 or not self._delimiter.isascii() or self._delimiter in "\r\n":
            yield Problem(f"{self.delimiter!r} is not one character", "delimiter", "one ASCII character, or the word tab")
        if len(self.quote) > 1 or not self.quote.isascii() or self.quote == self._delimiter:
            yield Problem(f"{self.quote!r} cannot be the quote", "quote", "one ASCII character other than the delimiter, or nothing")
        if self.header and self.names:
            yield Problem("names are given, and the files have a header", "names", "leave one out: header=false, or no names")
        try:
            refuse_unsupported(declared_schema(self.schema or ""))
        except ValueError as e:
            yield Problem(str(e), "schema", "write names and types, such as: id bigint, price decimal(12,2)")
        except ConfigError as e:
            yield from e.problems

    @property
    def _delimiter(self) -> str:
        return _named(self.delimiter)

    @property
    def dialect(self) -> Dialect:
        return Dialect(ord(self._delimiter), ord(self.quote) if self.quote else None, self.null_values, self.newlines_in_values)

    def with_types(self, schema: pa.Schema) -> ReadFromCsv:
        """A copy that reads the columns named in a schema as the types given there; types of others are found out as before."""
        types = plain(schema)
        refuse_unsupported(types)
        typed = copy.copy(self)
        typed._named, typed._headers, typed.is_prepared = types, {}, False
        return typed

    def prepared(self, found: list[FoundFile]) -> Self:
        prepared = super().prepared(found)
        prepared._headers = {}
        given = {f.name: f.type for f in [*declared_schema(self.schema or ""), *self._named]}
        prepared._types = prepared._shown(found, given) | given
        return prepared

    def splittable(self, path: str) -> bool:
        return super().splittable(path) and not self.newlines_in_values

    def blocks(self, stream: Any, part: FilePart) -> Iterator[Block | TooLong]:
        if not self.newlines_in_values:
            return super().blocks(stream, part)
        return row_blocks(stream, part.path, self.max_row_bytes, self.dialect)

    def body(self, block: Block) -> Block:
        return block.without(np.array([0])) if block.first and self.header else block

    def parse(self, block: Block) -> Iterator[Parsed | Refused]:
        return CsvRows(self._names_in(block.path or ""), self._types, self.dialect, self.wanted).parse(block)

    def _names_in(self, path: str) -> list[str]:
        """The names of the columns of a file: given, in its first line, or numbers."""
        if self.names:
            return list(self.names)
        if path not in self._headers:
            self._headers[path] = self._first_line(path)
        return self._headers[path]

    def _first_line(self, path: str) -> list[str]:
        piece = next(iter(self.pieces(FilePart(path, 0, 1))), None)
        if not isinstance(piece, Block):
            raise BadFileError(f"{path}: its first line is absent, or longer than max_row_bytes ({self.max_row_bytes:,})")
        try:
            text = io.StringIO(piece.line(0).decode(), newline="")
            lines = csv.reader(
                text,
                delimiter=self._delimiter,
                quotechar=self.quote or None,
                quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
                strict=True,
            )
            fields = next(lines, [])
        except (UnicodeDecodeError, csv.Error) as e:
            raise BadFileError(f"{path}: its first line cannot be read as CSV ({e})") from e
        names = [name if self.header and name else f"column_{i}" for i, name in enumerate(fields, 1)]
        if doubled := sorted({n for n in names if names.count(n) > 1}):
            raise BadFileError(f"{path}: its first line names {', '.join(doubled)} twice")
        return names

    def _shown(self, found: list[FoundFile], given: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        """The types that the first megabyte of the files shows."""
        texts: dict[str, list[pa.Array]] = {}
        left = SAMPLE_BYTES
        plain = copy.copy(self)
        plain.columns = plain.event_time = None
        for file in found:
            with contextlib.suppress(BadFileError):
                for rows in plain._first_rows_of(file):
                    for name, column in zip(rows.schema.names, rows.columns, strict=True):
                        texts.setdefault(name, []).append(column)
            left -= file.size
            if left <= 0:
                break
        return {name: _type_of(pa.chunked_array(values)) for name, values in texts.items() if name not in given}

    def _first_rows_of(self, file: FoundFile) -> Iterator[RowBatch]:
        stop = SAMPLE_BYTES if self.splittable(file.path) else None
        for piece in itertools.islice(self.pieces(FilePart(file.path, 0, stop, file.size)), 1):
            if isinstance(piece, Block):
                block = self.body(piece)
                some = block.without(np.flatnonzero(block.starts > SAMPLE_BYTES))
                yield from (p.rows for p in self.parse(some) if isinstance(p, Parsed) and len(some.starts))


def _type_of(text: pa.ChunkedArray) -> pa.DataType:
    values = text.drop_null().combine_chunks()
    if not len(values):
        return pa.string()
    if pc.all(pc.match_substring_regex(values, _WHOLE)).as_py() and not from_text(values, pa.int64()).null_count:
        return pa.int64()
    if pc.all(pc.match_substring_regex(values, _FRACTION)).as_py():
        return pa.float64()
    return pa.bool_() if pc.all(pc.match_substring_regex(values, _TRUTH)).as_py() else pa.string()


class WriteToCsv(FileSink):
    """Writes rows as CSV files, each with a header.

    In: every Arrow type, written as in JSON lines; structs, lists and maps as their JSON text. Null is an empty field, the empty text
    an empty quoted one.
    Delivery: exactly once: files are staged, and published together at the end of the run.

    Example:
        >>> WriteToCsv("out/", delimiter=";")
        WriteToCsv(path='out/', delimiter=';')
    """

    extension = "csv"
    also_ours: ClassVar[tuple[str, ...]] = ("tsv", "csv.gz", "csv.zst", "csv.bz2")

    delimiter: str = option(",", help="One character between fields, or the word tab", example=";")
    header: bool = option(True, help="Whether the first line of each file names the columns")
    compression: str = option("none", help="How files are compressed", choices=tuple(ENDINGS))

    def check(self) -> Iterable[Problem]:
        yield from super().check()
        if len(_named(self.delimiter)) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n':
            yield Problem(f"{self.delimiter!r} is not one character", "delimiter", "one ASCII character, or the word tab")

    def suffix(self) -> str:
        return f".{self.extension}{ENDINGS[self.compression]}"

    def encoder(self, stream: BinaryIO, schema: pa.Schema) -> Encoder:
        return _CsvEncoder(stream, schema, self)


class _CsvEncoder(Encoder):
    def __init__(self, stream: BinaryIO, schema: pa.Schema, sink: WriteToCsv):
        self._out = compressed(stream, sink.compression)
        self._closes = self._out is not stream
        self._delimiter = _named(sink.delimiter)
        if sink.header:
            self._write(pl.DataFrame({name: [] for name in schema.names}, schema=dict.fromkeys(schema.names, pl.String)), header=True)

    def write(self, batch: RowBatch) -> None:
        for piece in finite_pieces(batch):
            columns = zip(piece.schema.names, piece.columns, strict=True)
            self._write(pl.DataFrame({name: _field(writable(column)) for name, column in columns}), header=False)

    def _write(self, frame: pl.DataFrame, header: bool) -> None:
        lines = io.BytesIO()
        frame.write_csv(lines, include_header=header, separator=self._delimiter)
        self._out.write(lines.getbuffer())

    def close(self) -> None:
        if self._closes:
            self._out.close()


def _field(column: pa.Array) -> pl.Series:
    series = pl.Series(pl.from_arrow(column))
    if not series.dtype.is_nested():
        return series
    texts = pl.DataFrame({"": series}).write_ndjson().splitlines()
    return pl.Series([None if empty else text[4:-1] for text, empty in zip(texts, series.is_null(), strict=True)], dtype=pl.String)


def _named(delimiter: str) -> str:
    return {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
