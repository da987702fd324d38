"""Blocks of CSV lines to rows: what each line is made of is found over all bytes at once, then Arrow parses the sound ones.

Follows RFC 4180: a quote stands at the beginning or the end of a field, or doubled inside a quoted one. Arrow's parser takes more than that
and guesses; so lines with quotes elsewhere never reach it, and of lines without quotes there is only one reading.

Of the quotes in a row, every other one, beginning with the first, opens: there must be the beginning of a field before it, or a quote, with
which it is a doubled one. The others close: the end of a field must follow, or a quote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tiebeam.io._json_proof import not_utf8
from tiebeam.io._json_rows import JsonRows
from tiebeam.io._lines import BLOCK_BYTES, Block, Parsed, Refused, TooLong, fill, pass_over, skip_mark, where_byte
from tiebeam.io._text_types import from_text
from tiebeam.rows import RowBatch

_PIECE_BYTES = 4 << 20
_RETURN, _NEWLINE = 13, 10


@dataclass(frozen=True)
class Dialect:
    """How fields are told apart; no quote means that a quote is a character like others."""

    delimiter: int
    quote: int | None
    null_values: tuple[str, ...] = ()
    newlines: bool = False


class CsvRows:
    """Parses blocks of one header: `names` in the order of the file; `types` of the names known, others are text."""

    def __init__(self, names: list[str], types: dict[str, pa.DataType], dialect: Dialect, columns: tuple[str, ...] | None):
        self.names, self.dialect = names, dialect
        self.types = {name: types.get(name, pa.string()) for name in names}
        self.delivered = [n for n in names if columns is None or n in columns] or names[:1]

    def parse(self, block: Block) -> Iterator[Parsed | Refused]:
        view = block.bytes
        length = block.ends - block.starts
        blank = (length == 0) | ((length == 1) & (view[np.minimum(block.starts, len(view) - 1)] == _RETURN))
        blank &= len(self.names) > 1  # the only field of a row may be null
        why: dict[int, tuple[str, str]] = {}
        for lines, reason, detail in self._troubles(block):
            for line in np.unique(lines).tolist():
                why.setdefault(line, (reason, detail))
        good = ~blank
        good[list(why)] = False
        lines = np.flatnonzero(good)
        table = self._read(block.only(lines), len(lines)) if len(lines) else None
        if len(lines) and table is None:
            fields = _fields(block, self.dialect)[lines]
            for line, count in zip(lines[fields != len(self.names)].tolist(), fields[fields != len(self.names)].tolist(), strict=True):
                why[line] = ("ragged", f"{count} fields where {len(self.names)} are expected")
            lines = lines[fields == len(self.names)]
            table = self._read(block.only(lines), len(lines)) if len(lines) else None
            if table is None and len(lines):
                yield from self._halved(block, lines, why)
        if table is not None:
            yield self._typed(table, lines, why)
        if why := {line: why[line] for line in sorted(why) if not blank[line]}:
            yield Refused(list(why), [reason for reason, _ in why.values()], [detail for _, detail in why.values()])

    def _troubles(self, block: Block) -> Iterator[tuple[np.ndarray, str, str]]:
        yield block.lines_at(not_utf8(block)), "invalid_utf8", "the row holds bytes that are not UTF-8"
        yield block.lines_at(block.controls[block.bytes[block.controls] == 0]), "malformed", "the row holds a NUL byte"
        quotes = _Quotes(block, self.dialect)
        yield quotes.misplaced(), "bare_quote", "a quote stands where no field begins or ends, or a quoted field does not end"
        returns = block.controls[block.bytes[block.controls] == _RETURN]
        returns = returns[block.bytes[np.minimum(returns + 1, len(block.data) - 1)] != _NEWLINE]
        if self.dialect.newlines:
            returns = returns[~quotes.encloses(returns)]
        yield block.lines_at(returns), "malformed", "a carriage return stands inside the row"

    def _read(self, data: bytes, rows: int) -> pa.Table | None:
        """All columns as text, null where a null value stands unquoted; None when the rows are not what they should be."""
        data = data if data.endswith(b"\n") else data + b"\n"  # at the end of its input Arrow 25 takes an empty field for a quoted one
        quote = False if self.dialect.quote is None else chr(self.dialect.quote)
        try:
            table = pa.csv.read_csv(
                pa.py_buffer(data),
                pa.csv.ReadOptions(column_names=self.names, block_size=max(_PIECE_BYTES, len(data) if self.dialect.newlines else 0)),
                pa.csv.ParseOptions(
                    delimiter=chr(self.dialect.delimiter),
                    quote_char=quote,
                    double_quote=quote is not False,
                    newlines_in_values=self.dialect.newlines,
                    ignore_empty_lines=False,
                ),
                pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(self.names, pa.string()),
                    null_values=["", *self.dialect.null_values],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        return table if table.num_rows == rows else None

    def _halved(self, block: Block, lines: np.ndarray, why: dict[int, tuple[str, str]]) -> Iterator[Parsed]:
        """Narrows down a row that Arrow refuses for a reason of its own."""
        table = self._read(block.only(lines), len(lines))
        if table is not None:
            yield self._typed(table, lines, why)
        elif len(lines) == 1:
            why[int(lines[0])] = ("malformed", "the row cannot be parsed")
        else:
            half = len(lines) // 2
            yield from self._halved(block, lines[:half], why)
            yield from self._halved(block, lines[half:], why)

    def _typed(self, table: pa.Table, lines: np.ndarray, why: dict[int, tuple[str, str]]) -> Parsed:
        bad = np.zeros(len(lines), bool)
        arrays = []
        for name in self.names:
            kind = self.types[name]
            if name not in self.delivered and kind == pa.string():
                continue
            text = table.column(name).combine_chunks()
            values = text if kind == pa.string() else _nested(text, kind) if pa.types.is_nested(kind) else from_text(text, kind)
            if name in self.delivered:
                arrays.append(values)
            if values.null_count > text.null_count:
                lost = np.flatnonzero(pc.and_(values.is_null(), text.is_valid()).to_numpy(zero_copy_only=False))
                bad[lost] = True
                for at in lost.tolist():
                    why.setdefault(int(lines[at]), ("wrong_type", f"{name} is {text[at].as_py()[:100]!r}, not {kind}"))
        rows = RowBatch.from_arrays(arrays, names=self.delivered)
        if bad.any():
            keep = np.flatnonzero(~bad)
            rows, lines = rows.take(pa.array(keep)), lines[keep]
        return Parsed(rows, lines)


def _nested(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """JSON text as nested values; null where it is none of this type."""
    there = np.flatnonzero(text.is_valid().to_numpy(zero_copy_only=False))
    lines = [b'{"":%s}' % value.replace("\n", " ").encode() for value in text.take(pa.array(there)).to_pylist()]
    parts, where = [pa.nulls(1, kind)], np.zeros(len(text), np.int64)
    for item in JsonRows(pa.schema([("", kind)]), None).parse(Block.of(b"\n".join(lines) + b"\n")) if lines else ():
        if isinstance(item, Parsed) and item.rows.num_columns == 1:
            taken = np.arange(len(lines)) if item.lines is None else item.lines
            where[there[taken]] = sum(map(len, parts)) + np.arange(len(taken))
            parts.append(item.rows.column(0))
    return pa.concat_arrays(parts).take(pa.array(where))


class _Quotes:
    """The quotes of a block, each with its row and its number in it."""

    def __init__(self, block: Block, dialect: Dialect):
        self.block, self.dialect = block, dialect
        quote = dialect.quote
        some = quote is not None and bytes([quote]) in block.data
        self.at = where_byte(block.bytes, quote) if some and quote is not None else np.empty(0, np.int64)
        self.line = block.lines_of(self.at)
        self.at, self.line = self.at[self.line >= 0], self.line[self.line >= 0]
        self.number = np.arange(len(self.at)) - np.searchsorted(self.at, block.starts[self.line])

    def misplaced(self) -> np.ndarray:
        """The rows in which a quote is neither at the edge of a field nor doubled, or in which one is left open."""
        if not len(self.at):
            return self.line
        view = self.block.bytes
        last = len(view) - 1
        start, end = self.block.starts[self.line], self.block.ends[self.line]
        before, after = view[np.maximum(self.at - 1, 0)], view[np.minimum(self.at + 1, last)]
        edge = [mark for mark in (self.dialect.delimiter, self.dialect.quote) if mark is not None]
        opens = (self.at == start) | np.isin(before, edge)
        ends = (self.at + 1 >= end) | ((after == _RETURN) & (self.at + 2 >= end))
        closes = ends | np.isin(after, edge)
        wrong = np.where(self.number % 2 == 0, ~opens, ~closes)
        is_last = np.append(self.line[1:] != self.line[:-1], True)
        return self.line[wrong | (is_last & (self.number % 2 == 0))]

    def encloses(self, positions: np.ndarray) -> np.ndarray:
        """Which positions stand between an opening quote and its closing one."""
        before = np.searchsorted(self.at, positions)
        line = np.minimum(np.searchsorted(self.block.ends, positions), len(self.block.ends) - 1)
        return (before - np.searchsorted(self.at, self.block.starts[line])) % 2 == 1


def _fields(block: Block, dialect: Dialect) -> np.ndarray:
    """How many fields each row has."""
    delimiters = where_byte(block.bytes, dialect.delimiter)
    delimiters = delimiters[~_Quotes(block, dialect).encloses(delimiters)]
    return np.searchsorted(delimiters, block.ends) - np.searchsorted(delimiters, block.starts) + 1


def row_blocks(stream: Any, path: str, longest: int, dialect: Dialect) -> Iterator[Block | TooLong]:
    """Reads a whole stream in blocks of whole rows, whose quoted fields may hold line ends.

    A row that is not well formed over several lines has a quote too many: its first line alone is the bad row, and reading
    goes on in its second line.
    """
    position, filled, buffer, wanted, first = 0, 0, bytearray(BLOCK_BYTES), BLOCK_BYTES, True
    while True:
        filled, ended, trouble = fill(stream, buffer, filled, wanted)
        if position == 0 and (mark := skip_mark(buffer, filled)):
            position, filled = mark, filled - mark
        data = bytes(memoryview(buffer)[:filled])
        ends = _row_ends(data, longest, ended and trouble is None, dialect)
        if not ends and trouble is None and not ended and filled > longest:
            if b"\n" in data:
                ends = [data.index(b"\n")]
            else:
                position, filled = yield from pass_over(stream, buffer, filled, position)
                continue
        if ends:
            cut = min(ends[-1] + 1, filled)
            yield _rows_block(data[:cut], np.array(ends), path, position, first)
            first = False
            buffer[: filled - cut] = buffer[cut:filled]
            position, filled, wanted = position + cut, filled - cut, BLOCK_BYTES
        elif not ended:
            wanted = 2 * filled
            buffer.extend(bytes(max(0, wanted - len(buffer))))
        if trouble is not None:
            raise trouble
        if ended and not filled:
            return


def _rows_block(data: bytes, ends: np.ndarray, path: str, position: int, first: bool) -> Block:
    block = Block.of(data, path, position, first)
    return replace(block, starts=np.concatenate([[0], ends[:-1] + 1]), ends=ends)


def _row_ends(data: bytes, longest: int, ended: bool, dialect: Dialect) -> list[int]:
    view = np.frombuffer(data, np.uint8)
    newlines = where_byte(view, _NEWLINE)
    quotes = where_byte(view, dialect.quote) if dialect.quote is not None else np.empty(0, np.int64)
    if ended and not data.endswith(b"\n") and data:
        newlines = np.append(newlines, len(data))
    done: list[int] = []
    start = 0
    while True:
        before = np.searchsorted(quotes, start)
        lines = newlines[np.searchsorted(newlines, start) :]
        ends = lines[(np.searchsorted(quotes, lines) - before) % 2 == 0]
        if ended and len(lines) and (not len(ends) or ends[-1] != lines[-1]):
            ends = np.append(ends, lines[-1])  # a field that never ends
        if not len(ends):
            return done
        block = Block(data, np.concatenate([[start], ends[:-1] + 1]), ends)
        several = np.searchsorted(newlines, block.ends) > np.searchsorted(newlines, block.starts)
        wrong = block.ends - block.starts > longest
        wrong[_Quotes(block, dialect).misplaced()] = True
        first = np.flatnonzero(several & wrong)
        if not len(first):
            return done + ends.tolist()
        done += ends[: first[0]].tolist()
        done.append(int(newlines[np.searchsorted(newlines, block.starts[first[0]])]))
        start = done[-1] + 1
