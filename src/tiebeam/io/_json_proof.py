"""What a fast JSON parser says nothing about, found by looking at all bytes of a block at once.

Polars' `read_ndjson` with a schema refuses malformed lines, but passes silently over keys that are not in the schema, over a key given
twice, and (told to go on) over values of another type; it turns half a surrogate pair into NUL. Proof that it passed over nothing:

    C   how often a colon stands in a line behind a quote or a blank     K   keys of the line
    N   cells that the parser filled (not null)                          Z   keys whose value is null
    E   how often `":n` or `": n` does                                   L   keys with a value that fill no cell: what we look for

Every key shows its colon behind its closing quote, or behind a blank: C = K + F, where F >= 0 counts such colons inside strings. Every key
fills a cell, is null, or is lost: K = N + Z + L. In a line that parses, only null begins with n, so E <= Z + G, where G counts those of E
inside strings; each of them is also counted in F, so G <= F. Hence

    C - E >= N + Z + L + F - Z - G >= N + L,   and   C - E = N   implies   L = 0.

Escaped quotes would make F large wherever JSON stands in a string, so `\\":` is left out of both counts, which keeps G <= F. It is
surely inside a string only when its backslash is not itself escaped; where two backslashes stand before the quote, it is counted.
The proof holds for a whole block as for each line. Fields of structs are keys and cells like others. Where it fails for a block, it is
tried line by line with the colons behind quotes alone; a line in which a blank stands between a quote and a colon is then left unproven.
"""

from __future__ import annotations

import codecs
from typing import Any

import numpy as np
import pyarrow as pa

from tiebeam.io._lines import where_byte

QUOTE, COLON, BACKSLASH, BLANK, BRACE, CLOSE, COMMA, RETURN, SMALL_N = 34, 58, 92, 32, 123, 125, 44, 13, 110
_SCAN = 1 << 17
_LONGEST_BLANK = 16  # a longer run of blanks before a colon is taken for one behind a key


def odd_lines(data: bytes, starts: np.ndarray, ends: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the lines that must be judged one by one before parsing, and of the blank ones."""
    view = np.frombuffer(data, np.uint8)
    last = np.maximum(ends - 1, 0)
    last = np.maximum(last - (view[last] == RETURN), 0)
    blank = (ends == starts) | ((ends == starts + 1) & (view[np.minimum(starts, len(view) - 1)] == RETURN))
    odd = (view[np.minimum(starts, len(view) - 1)] != BRACE) | (view[last] != CLOSE) | (view[np.maximum(last - 1, 0)] == COMMA)
    for positions in (_stray(view, controls), _halves(data, view), not_utf8(data)):
        if len(positions):
            odd[np.searchsorted(ends, positions)] = True
    return odd & ~blank, blank


def _stray(view: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Control characters other than the return of a line end."""
    if not len(controls):
        return controls
    following = view[np.minimum(controls + 1, len(view) - 1)]
    return controls[(view[controls] != RETURN) | ((following != 10) & (controls + 1 < len(view)))]


def _halves(data: bytes, view: np.ndarray) -> np.ndarray:
    """Escapes of half a surrogate pair; whole pairs are none, unless a backslash before them makes that doubtful."""
    if b"\\" not in data:
        return np.empty(0, np.int64)
    at = where_byte(view[:-4], BACKSLASH)
    at = at[(view[at + 1] == 117) & (view[at + 2] | 32 == 100)]
    if not len(at):
        return at
    digit = view[at + 3] | 32
    high = at[np.isin(digit, np.frombuffer(b"89ab", np.uint8))]
    low = at[np.isin(digit, np.frombuffer(b"cdef", np.uint8))]
    doubtful = at[view[np.maximum(at - 1, 0)] == BACKSLASH]
    return np.concatenate([high[~np.isin(high + 6, low)], low[~np.isin(low - 6, high)], doubtful])


def not_utf8(data: bytes) -> np.ndarray:
    """Where bytes stand that are not UTF-8."""
    if data.isascii():
        return np.empty(0, np.int64)
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
        return np.empty(0, np.int64)
    except pa.ArrowInvalid:
        found: list[int] = []

        def note(error: Any) -> tuple[str, int]:
            found.append(error.start)
            return "", error.end

        codecs.register_error("tiebeam.note", note)
        codecs.decode(data, "utf-8", "tiebeam.note")
        return np.array(found)


def count_keys(data: bytes) -> int:
    """Counts C (escaped ones left out) over a block."""
    view = np.frombuffer(data, np.uint8)
    colons = 0
    size = min(_SCAN, len(view))
    is_colon, is_behind = np.empty(size, bool), np.empty(size, bool)
    for at in range(0, len(view) - 1, _SCAN):
        piece = view[at : at + _SCAN + 1]
        n = len(piece) - 1
        colon = np.equal(piece[1:], COLON, out=is_colon[:n])
        behind = np.less_equal(piece[:-1], QUOTE, out=is_behind[:n])  # quote, blank, tab; and ! which does no harm
        colons += int(np.count_nonzero(np.logical_and(colon, behind, out=behind)))
    return colons - len(_escaped(data, view))


def count_nulls(data: bytes) -> int:
    """Counts E (escaped ones left out) over a block."""
    view = np.frombuffer(data + b"\n\n", np.uint8)
    nulls = 0
    for at in range(0, len(data) - 3, _SCAN):
        p = view[at : at + _SCAN + 3]
        key = (p[:-3] == QUOTE) & (p[1:-2] == COLON)
        nulls += int(np.count_nonzero(key & ((p[2:-1] == SMALL_N) | ((p[2:-1] == BLANK) & (p[3:] == SMALL_N)))))
    escaped = _escaped(data, view) + 1
    return nulls - int(np.count_nonzero(_is_null(view, escaped)))


def _is_null(view: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    last = len(view) - 1
    after = view[np.minimum(quotes + 2, last)]
    return (after == SMALL_N) | ((after == BLANK) & (view[np.minimum(quotes + 3, last)] == SMALL_N))


def _escaped(data: bytes, view: np.ndarray) -> np.ndarray:
    """Where the backslash of `\\":` stands, when no backslash stands before it."""
    if b"\\" not in data:
        return np.empty(0, np.int64)
    at = where_byte(view[: len(data) - 2], BACKSLASH)
    at = at[(view[at + 1] == QUOTE) & (view[at + 2] == COLON)]
    return at[view[np.maximum(at - 1, 0)] != BACKSLASH]


def keys_less_nulls(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """C - E of each line, and a mask of lines where a blank may stand between a key and its colon."""
    view = np.frombuffer(data, np.uint8)
    tails = np.append(where_byte(view, 10) + 1, [] if data.endswith(b"\n") else [len(data)]).astype(np.int64)
    colons = where_byte(view, COLON)
    colons = colons[colons > 0]
    before = view[colons - 1]
    keys = np.setdiff1d(colons[before == QUOTE] - 1, _escaped(data, view) + 1, assume_unique=True)
    counts = _per_line(keys, tails) - _per_line(keys[_is_null(view, keys)], tails)
    at = colons[before <= BLANK] - 1
    for _ in range(_LONGEST_BLANK):
        at -= (view[at] <= BLANK) & (at > 0)
    spaced = _per_line(at[(view[at] == QUOTE) | (view[at] <= BLANK)], tails) > 0
    return counts, spaced


def _per_line(positions: np.ndarray, tails: np.ndarray) -> np.ndarray:
    upto = np.searchsorted(positions, tails)
    return np.diff(upto, prepend=0)


def cells(column: pa.Array) -> np.ndarray:
    """N of each row in one column: itself, and the fields of its structs."""
    return column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64) + _inner_cells(column)


def _inner_cells(column: pa.Array) -> np.ndarray | int:
    if pa.types.is_struct(column.type):
        return sum((cells(child) for child in column.flatten()), start=np.zeros(len(column), np.int64))
    if pa.types.is_large_list(column.type) or pa.types.is_list(column.type):
        inner = _inner_cells(column.values)
        if isinstance(inner, int):
            return 0
        sums = np.append(0, np.cumsum(inner))
        offsets = column.offsets.to_numpy()
        return sums[offsets[1:]] - sums[offsets[:-1]]
    return 0
