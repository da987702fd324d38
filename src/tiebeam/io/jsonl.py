"""JSON lines (newline-delimited JSON): one object per line, UTF-8.

Format: https://jsonlines.org/ and RFC 8259, read strictly; a byte order mark, CRLF and blank lines are passed over.
Parsed by Polars, with a proof that it passed over nothing (`_json_proof`).
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, ClassVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import Problem
from tiebeam.io._compression import ENDINGS, compressed
from tiebeam.io._file_sink import Encoder, FileSink
from tiebeam.io._file_source import FilePart
from tiebeam.io._json_exact import BadLineError, Number, Pairs, parsed
from tiebeam.io._json_rows import JsonRows
from tiebeam.io._lines import Block, LineSource, Parsed, Refused
from tiebeam.io._listing import FoundFile
from tiebeam.io._text_types import BEYOND_DOUBLE, declared_schema, unsupported, widened
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
        self._given = self.schema if isinstance(self.schema, pa.Schema) else None
        if self._given is not None:
            self.schema = ", ".join(f'"{f.name}" {f.type}' for f in self._given)
        super().__post_init__()
        self._named = pa.schema([])
        self._known: pa.Schema | None = None
        self._rows: JsonRows | None = None

    def check(self) -> Iterable[Problem]:
        yield from super().check()
        if self.schema is None:
            return
        try:
            schema = self._given or declared_schema(self.schema)
        except ValueError as e:
            yield Problem(str(e), "schema", "write names and types, such as: id bigint, price decimal(12,2)")
        else:
            for name in unsupported(schema):
                yield Problem(f"the type of {name} cannot be read from JSON", "schema", "declare it as text")

    def with_types(self, schema: pa.Schema) -> ReadFromJsonl:
        """A copy that reads the columns named in a schema as the types given there; types of others are found out as before."""
        typed = copy.copy(self)
        typed._named, typed._known, typed._rows = schema, None, None
        return typed

    def prepared(self, found: list[FoundFile]) -> ReadFromJsonl:
        prepared = super().prepared(found)
        shown = self._given or (declared_schema(self.schema) if self.schema is not None else self._shown(found))
        known = {field.name: field.type for field in shown} | {field.name: field.type for field in self._named}
        prepared._known = pa.schema([*known.items()])
        prepared._rows = None
        return prepared

    def parse(self, block: Block) -> Iterator[Parsed | Refused]:
        if self._rows is None or self._rows.columns != self.wanted:
            self._rows = JsonRows(self._known if self._known is not None else pa.schema([]), self.wanted)
        return self._rows.parse(block)

    def _shown(self, found: list[FoundFile]) -> pa.Schema:
        """The columns that the first megabyte of the files shows."""
        kinds: dict[str, set[pa.DataType]] = {}
        left = SAMPLE_BYTES
        for line in (line for file in found for line in self._first_lines(file)):
            try:
                pairs = parsed(line)
            except BadLineError:
                continue
            for key, value in pairs or ():
                kinds.setdefault(key, set()).update(() if value is None else (_kind(value),))
            left -= len(line)
            if left <= 0:
                break
        return pa.schema([(key, widened(seen)) for key, seen in kinds.items()])

    def _first_lines(self, file: FoundFile) -> Iterator[bytes]:
        part = FilePart(file.path, 0, SAMPLE_BYTES if self.splittable(file.path) else None, file.size)
        for piece in self.pieces(part):
            if isinstance(piece, Block):
                yield from (piece.line(i) for i in range(len(piece.starts)) if piece.ends[i] - piece.starts[i] <= SAMPLE_BYTES)


def _kind(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, (Pairs, list)) or not isinstance(value, Number):
        return pa.string()
    if value.lstrip("-").isdigit():
        whole = int(value) if len(value) <= 20 else 2**63
        return pa.int64() if abs(whole) <= 2**53 else BEYOND_DOUBLE if -(2**63) <= whole < 2**63 else pa.string()
    return pa.float64()


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
        for piece in _finite_pieces(batch):
            columns = zip(piece.schema.names, piece.columns, strict=True)
            frame = pl.DataFrame({name: pl.from_arrow(_writable(column)) for name, column in columns})
            lines = io.BytesIO()
            frame.write_ndjson(lines)
            self._out.write(lines.getbuffer())

    def close(self) -> None:
        if self._closes:
            self._out.close()


def _finite_pieces(batch: RowBatch) -> Iterator[RowBatch]:
    for at, name in enumerate(batch.schema.names):
        strange = _not_finite(batch.column(at))
        if strange is not None and pc.any(strange).as_py():
            written = _floats_as_text(batch.filter(strange).column(at))
            yield from _finite_pieces(batch.filter(strange).set_column(at, name, written))
            batch = batch.filter(pc.invert(strange))
    if batch.num_rows:
        yield batch


def _not_finite(column: pa.Array) -> pa.Array | None:
    """A mask of the rows that hold NaN or an infinity anywhere; None for a type without fractions."""
    kind = column.type
    if pa.types.is_floating(kind):
        return pc.fill_null(pc.invert(pc.is_finite(column)), False)
    if pa.types.is_struct(kind):
        masks = [m for m in map(_not_finite, column.flatten()) if m is not None]
        return functools.reduce(pc.or_, masks) if masks else None
    if _is_list(kind):
        inner = _not_finite(column.flatten())
        if inner is None:
            return None
        rows = pc.filter(pc.list_parent_indices(column), inner)
        return pc.is_in(pa.array(range(len(column)), pa.int64()), value_set=rows.cast(pa.int64()))
    return None


def _floats_as_text(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_floating(kind):
        text = column.cast(pa.string())
        for plain, word in (("nan", "NaN"), ("inf", "Infinity"), ("-inf", "-Infinity")):
            text = pc.if_else(pc.equal(text, plain), word, text)
        return text
    return _inside(column, _floats_as_text)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _inside(column: pa.Array, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """The same nested column with its leaves changed."""
    kind = column.type
    if pa.types.is_struct(kind):
        fields = [change(child) for child in column.flatten()]
        return pa.StructArray.from_arrays(fields, [f.name for f in kind], mask=column.is_null())
    if _is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int64()).to_pylist()
        offsets = pa.array([0, *itertools.accumulate(lengths)], pa.int64())
        return pa.LargeListArray.from_arrays(offsets, change(column.flatten()), mask=column.is_null())
    return column


def _writable(column: pa.Array) -> pa.Array:
    """The column in types that JSON has."""
    t, kind = pa.types, column.type
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return _writable(column.dictionary_decode() if t.is_dictionary(kind) else pc.run_end_decode(column))
    if isinstance(column, pa.ExtensionArray):
        return _writable(column.storage)
    if t.is_map(kind):
        entry = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
        return _writable(column.cast(pa.list_(entry)))
    if t.is_nested(kind):
        return _inside(column, _writable)
    if t.is_timestamp(kind):
        return pc.binary_replace_slice(column.cast(pa.timestamp(kind.unit, kind.tz and "UTC")).cast(pa.string()), 10, 11, "T")
    if t.is_duration(kind):
        return column.cast(pa.int64())
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind):
        return pl.from_arrow(column.cast(pa.large_binary())).bin.encode("base64").to_arrow()
    if t.is_decimal(kind) or t.is_temporal(kind):
        return column.cast(pa.string())
    return column.cast(pa.float32()) if t.is_float16(kind) else column
