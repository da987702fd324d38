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
import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from tiebeam.io._lines import Block, where_byte

QUOTE, COLON, BACKSLASH, BLANK, BRACE, CLOSE, COMMA, RETURN, SMALL_N = 34, 58, 92, 32, 123, 125, 44, 13, 110
_PIECE_BYTES = 1 << 17  # looked at in one go, so that what is computed on the way stays in the processor's cache
_LONGEST_BLANK = 16  # a longer run of blanks before a colon is taken for one behind a key


def odd_lines(block: Block, wary: bool) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the lines that must be judged one by one before parsing, and of the blank ones; `wary` also looks for NaN and Infinity."""
    view, starts, ends = block.bytes, block.starts, block.ends
    first = np.minimum(starts, len(view) - 1)
    last = np.maximum(ends - 1, 0)
    blank = ends == starts
    if len(block.controls):
        last = np.maximum(last - (view[last] == RETURN), 0)
        blank |= (ends == starts + 1) & (view[first] == RETURN)
    odd = (view[first] != BRACE) | (view[last] != CLOSE) | (view[np.maximum(last - 1, 0)] == COMMA)
    places = [_stray(view, block.controls), _halves(block.data, view), not_utf8(block)]
    for positions in (*places, _no_numbers(view)) if wary else places:
        odd[block.lines_at(positions)] = True
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
    digit = view[at + 3] | 32
    high = at[np.isin(digit, np.frombuffer(b"89ab", np.uint8))]
    low = at[np.isin(digit, np.frombuffer(b"cdef", np.uint8))]
    doubtful = at[view[np.maximum(at - 1, 0)] == BACKSLASH]
    return np.concatenate([high[~np.isin(high + 6, low)], low[~np.isin(low - 6, high)], doubtful])


def not_utf8(block: Block) -> np.ndarray:
    """Where bytes stand that are not UTF-8."""
    if block.data.isascii():
        return np.empty(0, np.int64)
    whole = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, len(block.data)], np.int64)), pa.py_buffer(block.data)]
    )
    if _is_utf8(whole):
        return np.empty(0, np.int64)
    found: list[int] = []

    def note(error: Any) -> tuple[str, int]:
        found.append(error.start)
        return "", error.end

    codecs.register_error("tiebeam.note", note)
    lines = np.unique(np.searchsorted(block.starts, np.arange(_PIECE_BYTES, len(block.data), _PIECE_BYTES)))
    positions: list[int] = []
    for start, stop in itertools.pairwise([0, *block.starts[lines[lines < len(block.starts)]].tolist(), len(block.data)]):
        found.clear()
        codecs.decode(memoryview(block.data)[start:stop], "utf-8", "tiebeam.note")
        positions += [start + at for at in found]
    return np.array(positions)


def _is_utf8(values: pa.Array) -> bool:
    try:
        pa.LargeStringArray.from_buffers(len(values), *values.buffers()[1:]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _no_numbers(view: np.ndarray) -> np.ndarray:
    """Where NaN or Infinity stands where a value may."""
    found = []
    for begin, second in ((b"N", b"a"), (b"I", b"n")):
        at = where_byte(view[:-1], begin[0])
        found.append(at[(view[at + 1] == second[0]) & np.isin(view[np.maximum(at - 1, 0)], np.frombuffer(b":, [-\t", np.uint8))])
    return np.concatenate(found)


def proven_lines(data: bytes, tails: np.ndarray, cells: np.ndarray | int) -> np.ndarray | None:
    """Which lines hold no key with a value that fills no cell; None when all do. `cells` fills each line, or one number all."""
    view = np.frombuffer(data, np.uint8)
    escapes = b"\\" in data
    size = max(1, len(tails) * _PIECE_BYTES // len(data))
    proven = None
    for first in range(0, len(tails), size):
        rows = slice(first, first + size)
        start, stop = tails[first - 1] if first else 0, tails[rows][-1]
        piece = view[start:stop]
        filled = len(tails[rows]) * cells if isinstance(cells, int) else int(cells[rows].sum())
        keys = _count_keys(piece, escapes)
        if keys != filled and keys - _count_nulls(piece, escapes) != filled:
            proven = np.ones(len(tails), bool) if proven is None else proven
            counts, spaced = _keys_less_nulls(piece, tails[rows] - start, escapes)
            proven[rows] = (counts == (cells if isinstance(cells, int) else cells[rows])) & ~spaced
    return proven


def _count_keys(view: np.ndarray, escapes: bool) -> int:
    """Counts C, escaped ones left out."""
    colon, behind = view[1:] == COLON, view[:-1] <= QUOTE  # quote, blank, tab; and ! which does no harm
    return int(np.count_nonzero(np.logical_and(colon, behind, out=behind))) - len(_escaped(view, escapes))


def _count_nulls(view: np.ndarray, escapes: bool) -> int:
    """Counts E, escaped ones left out."""
    key = (view[:-3] == QUOTE) & (view[1:-2] == COLON)
    nulls = np.count_nonzero(key & ((view[2:-1] == SMALL_N) | ((view[2:-1] == BLANK) & (view[3:] == SMALL_N))))
    return int(nulls - np.count_nonzero(_is_null(view, _escaped(view, escapes) + 1)))


def _is_null(view: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    last = len(view) - 1
    after = view[np.minimum(quotes + 2, last)]
    return (quotes < last - 2) & ((after == SMALL_N) | ((after == BLANK) & (view[np.minimum(quotes + 3, last)] == SMALL_N)))


def _escaped(view: np.ndarray, escapes: bool) -> np.ndarray:
    """Where the backslash of `\\":` stands, when no backslash stands before it."""
    if not escapes:
        return np.empty(0, np.int64)
    at = where_byte(view[:-2], BACKSLASH)
    at = at[(view[at + 1] == QUOTE) & (view[at + 2] == COLON)]
    return at[view[np.maximum(at - 1, 0)] != BACKSLASH]


def _keys_less_nulls(view: np.ndarray, tails: np.ndarray, escapes: bool) -> tuple[np.ndarray, np.ndarray]:
    """C - E of each line, and a mask of lines where a blank may stand between a key and its colon."""
    colons = where_byte(view, COLON)
    colons = colons[colons > 0]
    before = view[colons - 1]
    keys = np.setdiff1d(colons[before == QUOTE] - 1, _escaped(view, escapes) + 1, assume_unique=True)
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
