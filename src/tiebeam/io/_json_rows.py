"""Blocks of JSON lines to rows, fast where that is proven to be exact, and exactly where it is not.

1. Lines that no parser should see (control characters, invalid UTF-8, no object, …) are found by looking at the bytes, and judged alone.
2. Polars parses all others in one call, and `_json_proof` shows that it passed over nothing, or in which lines it may have.
3. Those lines, if they are many, are counted again by DuckDB, which knows nested objects from the keys of the row.
4. What is left is judged line by line (`_json_exact`): refused, or written anew and parsed with its unknown keys as further text columns.

Which way a row went cannot be seen in it: step 4 ends in the parser of step 2, and step 2 and 3 deliver a line only when every key with a
value fills a cell. Keys learnt in step 4 join the next call of step 2, so that a new column does not stay on the slow path.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.io._event_time import where_possible
from tiebeam.io._json_exact import BadLineError, Judged, judge
from tiebeam.io._json_proof import cells, odd_lines, proven_lines
from tiebeam.io._lines import Block, Parsed, Refused
from tiebeam.io._text_types import from_text

_FEW = 256  # lines judged one by one before anything else is tried
_MOST_LEARNT = 64
_LONG_NUMBER = r"[0-9][0-9.]{15}"  # more digits than a double keeps

_local = threading.local()


class JsonRows:
    """Parses blocks for one schema; `columns` are delivered, all are judged."""

    def __init__(self, schema: pa.Schema, columns: tuple[str, ...] | None):
        self.types = {field.name: field.type for field in schema}
        self.columns = columns
        self.learnt: list[str] = []
        self.wary = False
        self.nested = any(pa.types.is_nested(kind) for kind in self.types.values())
        self.lists = any(_has_list(kind) for kind in self.types.values())
        self.decimals = any(pa.types.is_decimal(kind) for kind in self.types.values())

    def parse(self, block: Block) -> Iterator[Parsed | Refused]:
        odd, blank = odd_lines(block, self.wary)
        if self.decimals:
            odd |= self._long_numbers(block) & ~blank
        doubtful = np.flatnonzero(odd)
        plain = np.flatnonzero(~odd & ~blank) if len(doubtful) or blank.any() else np.arange(len(block.starts))
        refused = Refused([], [], [])
        yield from self._refusing(self._fast(block, plain, refused), refused)
        yield from self._refusing(self._one_by_one(block, doubtful, refused), refused)
        if refused.lines:
            yield refused

    def _refusing(self, found: Iterator[tuple[pl.DataFrame, np.ndarray, tuple[str, ...]]], refused: Refused) -> Iterator[Parsed]:
        for frame, lines, extra in found:
            yield from self._typed(frame, lines, extra, refused)

    # ---- step 2 and 3

    def _fast(self, block: Block, lines: np.ndarray, refused: Refused, checked: bool = False) -> Iterator[Any]:
        if not len(lines):
            return
        data = block.only(lines)
        frame = self._read(data, [*self.types, *self.learnt])
        if frame is None or frame.height != len(lines):
            yield from self._broken(block, data, lines, refused, checked)
            return
        proven = self._proven(frame, data, np.minimum(np.cumsum(block.ends[lines] - block.starts[lines] + 1), len(data)))
        if proven is None:
            yield from self._by_extra(frame, lines)
            return
        yield from self._by_extra(frame.filter(pl.Series(proven)), lines[proven])
        left = lines[~proven]
        known = len(self.learnt)
        yield from self._one_by_one(block, left[:_FEW], refused)
        again = self._fast if len(self.learnt) > known else self._one_by_one
        yield from again(block, left[_FEW:], refused)

    def _broken(self, block: Block, data: bytes, lines: np.ndarray, refused: Refused, checked: bool) -> Iterator[Any]:
        if len(lines) <= 8:
            yield from self._one_by_one(block, lines, refused)
            return
        self.wary = True
        bad = np.zeros(len(lines), bool) if checked else _malformed(data, len(lines))
        if bad.any():
            yield from self._one_by_one(block, lines[bad], refused)
            yield from self._fast(block, lines[~bad], refused, checked=True)
            return
        half = len(lines) // 2
        yield from self._fast(block, lines[:half], refused, checked=True)
        yield from self._fast(block, lines[half:], refused, checked=True)

    def _read(self, data: bytes, names: list[str], strict: bool = False) -> pl.DataFrame | None:
        schema = {name: _parsed_as(self.types.get(name, pa.string())) for name in names} or {"": pl.String}
        try:
            frame = pl.read_ndjson(data, schema=schema, ignore_errors=not (strict or self.lists))
        except pl.exceptions.PolarsError:
            return None
        return frame.rechunk()

    def _proven(self, frame: pl.DataFrame, data: bytes, tails: np.ndarray) -> np.ndarray | None:
        """A mask of the lines of which nothing was passed over; None when that holds for all."""
        full = not self.nested and not any(frame.null_count().row(0))
        filled = self._cells(frame) if not full else frame.width
        proven = proven_lines(data, tails, filled)
        if proven is None or self.nested:
            return proven
        left = np.flatnonzero(~proven)
        if len(left) > _FEW:
            proven[left] = _values(Block.of(data).only(left), len(left)) == np.broadcast_to(filled, len(proven))[left]
        return proven

    def _cells(self, frame: pl.DataFrame) -> np.ndarray:
        if not self.nested:
            return _filled(frame)
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
        return sum((cells(column.chunk(0)) for column in table.columns if column.num_chunks), start=np.zeros(frame.height, np.int64))

    def _by_extra(self, frame: pl.DataFrame, lines: np.ndarray) -> Iterator[Any]:
        """Rows of one set of unknown keys each, so that what a row looks like does not depend on its neighbours."""
        if not self.learnt or not frame.height:
            yield frame.select(list(self.types)) if self.types else frame, lines, ()
            return
        extra = sorted(name for name in frame.columns if name not in self.types)
        sets = np.zeros(frame.height, np.uint64)  # a bit for each, of which there are at most _MOST_LEARNT
        for name in extra:
            sets = sets << np.uint64(1) | frame[name].is_not_null().to_numpy().astype(np.uint64)
        for member in np.unique(sets):
            names = tuple(name for name, bit in zip(extra, f"{member:0{len(extra)}b}", strict=True) if bit == "1")
            rows = sets == member
            yield frame.filter(pl.Series(rows)).select([*self.types, *names]), lines[rows], names

    # ---- step 4

    def _one_by_one(self, block: Block, lines: np.ndarray, refused: Refused) -> Iterator[Any]:
        groups: dict[tuple[str, ...], list[tuple[int, Judged]]] = {}
        for line in lines.tolist():
            try:
                judged = judge(block.line(line), self.types)
            except BadLineError as e:
                _refuse(refused, line, e.reason, e.detail)
                continue
            if judged is not None:
                groups.setdefault(judged.extra, []).append((line, judged))
        for extra, members in groups.items():
            self.learnt += [name for name in extra if name not in self.learnt][: _MOST_LEARNT - len(self.learnt)]
            yield from self._read_judged(members, extra, refused)

    def _read_judged(self, members: list[tuple[int, Judged]], extra: tuple[str, ...], refused: Refused) -> Iterator[Any]:
        names = [*self.types, *extra]
        if not names:
            for line, _ in members:
                _refuse(refused, line, "no_columns", "an object without keys, in a file without columns")
            return
        frame = self._read("".join(f"{judged.text}\n" for _, judged in members).encode(), names, strict=True)
        expected = np.array([judged.cells for _, judged in members])
        if frame is not None and frame.height == len(members) and (_filled(frame) == expected).all():
            yield frame, np.array([line for line, _ in members]), extra
        elif len(members) > 1:
            half = len(members) // 2
            yield from self._read_judged(members[:half], extra, refused)
            yield from self._read_judged(members[half:], extra, refused)
        else:
            _refuse(refused, members[0][0], "malformed", "the line is read in two ways by two parsers")

    # ---- types

    def _typed(self, frame: pl.DataFrame, lines: np.ndarray, extra: tuple[str, ...], refused: Refused) -> Iterator[Parsed]:
        """Arrow columns of the declared types; rows in which a column cannot be had are refused."""
        if not frame.height:
            return
        names = [*self.types, *extra]
        judged = [n for n in names if self.columns is None or n in self.columns or not _is_direct(self.types.get(n, pa.string()))]
        taken = judged or names[:1]
        table = frame.select(taken).to_arrow(compat_level=pl.CompatLevel.oldest())
        bad: dict[int, tuple[str, str]] = {}
        arrays = {}
        for name in taken:
            kind = self.types.get(name, pa.string())
            raw = table.column(name).chunk(0)
            arrays[name] = _converted(raw, kind)
            lost = pc.and_(arrays[name].is_null(), raw.is_valid()) if arrays[name].null_count > raw.null_count else None
            for at in np.flatnonzero(lost.to_numpy(zero_copy_only=False)).tolist() if lost is not None else ():
                bad.setdefault(at, _misfit(name, raw[at].as_py(), kind))
        delivered = [n for n in names if self.columns is None or n in self.columns] or taken[:1]
        rows = pa.RecordBatch.from_arrays([arrays[n] for n in delivered], names=delivered)
        if bad:
            for at, (reason, detail) in sorted(bad.items()):
                _refuse(refused, int(lines[at]), reason, detail)
            keep = np.delete(np.arange(rows.num_rows), list(bad))
            rows, lines = rows.take(pa.array(keep)), lines[keep]
        yield Parsed(rows, lines)

    def _long_numbers(self, block: Block) -> np.ndarray:
        """Lines in which a number may have more digits than survive the parser: they are judged, and their decimals quoted."""
        offsets = np.append(block.starts, len(block.data)).astype(np.int32)  # a line left out before is seen with its neighbour: no harm
        texts = pa.BinaryArray.from_buffers(pa.binary(), len(block.starts), [None, pa.py_buffer(offsets), pa.py_buffer(block.data)])
        return pc.match_substring_regex(texts, _LONG_NUMBER).to_numpy(zero_copy_only=False)


def _refuse(refused: Refused, line: int, reason: str, detail: str) -> None:
    refused.lines.append(line)
    refused.reasons.append(reason)
    refused.details.append(detail)


def _misfit(name: str, value: Any, kind: pa.DataType) -> tuple[str, str]:
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    number = pa.types.is_decimal(kind) and str(value).lstrip("+-").replace(".", "", 1).isdigit()
    shown = str(value)[:100]
    if numeric or number:
        return "out_of_range", f"{name} is {shown}, beyond {kind}"
    return "wrong_type", f"{name} is {shown!r}, not {kind}"


def _filled(frame: pl.DataFrame) -> np.ndarray:
    return sum((column.is_not_null().to_numpy().astype(np.int64) for column in frame), start=np.zeros(frame.height, np.int64))


def _has_list(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_list(field.type) for field in kind)
    return pa.types.is_nested(kind)


def _is_direct(kind: pa.DataType) -> bool:
    return kind in (pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.string())


def _parsed_as(kind: pa.DataType) -> Any:
    """What Polars is told to read for a type: itself where it reads it exactly, else text that Arrow then casts."""
    t = pa.types
    if t.is_struct(kind):
        return pl.Struct({field.name: _parsed_as(field.type) for field in kind})
    if t.is_list(kind) or t.is_large_list(kind):
        return pl.List(_parsed_as(kind.value_type))
    if kind == pa.uint64():
        return pl.UInt64
    if t.is_integer(kind) or t.is_duration(kind):
        return pl.Int64
    return pl.Float64 if t.is_floating(kind) else pl.Boolean if t.is_boolean(kind) else pl.String


def _converted(raw: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_large_string(raw.type) and not pa.types.is_large_string(kind):
        raw = raw.cast(pa.string())
    if raw.type == kind:
        return raw
    if pa.types.is_float32(kind):
        narrow = raw.cast(kind)
        return pc.if_else(pc.and_(pc.is_inf(narrow), pc.invert(pc.is_inf(raw))), pa.scalar(None, kind), narrow)
    if pa.types.is_nested(kind) or pa.types.is_integer(kind) or pa.types.is_duration(kind):  # one that cannot be had is null as a whole
        return where_possible(lambda v: v.cast(kind), raw)
    return from_text(raw, kind)


def _malformed(data: bytes, count: int) -> np.ndarray:
    """Lines that DuckDB's parser refuses; or, when it refuses none, that have what it takes and JSON does not know."""
    bad = np.zeros(count, bool)
    for refused in ("NOT json_valid(line)", r"regexp_matches(line, '[:,\[]\s*-?(NaN|Inf)|,\s*[}\]]|[0-9][eE]\+?[0-9]{3}')"):
        found = _ask(f"SELECT {refused} AS bad FROM lines", data, count)
        if found is not None and (bad := found["bad"].astype(bool)).any():
            break
    return bad


def _values(data: bytes, count: int) -> np.ndarray:
    """How many keys of each line have a value."""
    query = "SELECT len(list_filter(json_extract(line, '$.*'), lambda v: json_type(v) <> 'NULL')) AS n FROM lines"
    found = _ask(query, data, count)
    return np.full(count, -1) if found is None else found["n"].astype(np.int64)


def _ask(query: str, data: bytes, count: int) -> dict[str, np.ndarray] | None:
    import duckdb

    block = Block.of(data)
    offsets = np.append(block.starts, len(data)).astype(np.int32)
    lines = pa.table({"line": pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(data))})
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect()
    try:
        cursor = _local.connection.cursor()
        return cursor.from_arrow(lines).query("lines", query).fetchnumpy()
    except duckdb.Error:
        return None
