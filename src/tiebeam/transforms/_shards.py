"""Shards: which of a fixed number of groups a row belongs to, from its keys alone.

The hash is MurmurHash3 x64 128 with the seed of Apache DataSketches (9001) over canonical bytes of each value, so it is
the same in every process, on every machine and in every release, and any language can compute it:

    bool, integer, date, time, timestamp, duration    8 bytes, little-endian (times in microseconds)
    float                                              8 bytes of the double; one zero, one NaN
    string, binary                                     the bytes
    decimal                                            the unscaled integer, 16 or 32 bytes, little-endian

A dictionary hashes as its plain values do. Algorithm: https://github.com/aappleby/smhasher, MurmurHash3.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RowBatch

SHARDS = 16
SHARDS_ON_PRISM = 4

_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_SEED = np.uint64(9001)
_NULL = np.uint64(0x9E3779B97F4A7C15)


def useful_shards(shards: int, runner: object) -> int:
    """How many shards a stream has: each costs a round trip per tick and batch, and on Prism, one process, more of them win nothing."""
    return min(shards, SHARDS_ON_PRISM) if type(runner).__name__ == "PrismRunner" else shards


def split(batch: RowBatch, keys: Sequence[str], shards: int, taken: int = 1) -> list[tuple[int, RowBatch]]:
    """Cuts a batch by shard: the shards that have rows, ascending, each with its rows in their order.

    Rows of one shard out of `taken` are parted further by what that says nothing of: hash // taken modulo `shards`.
    """
    if shards == 1 or not keys:
        return [(0, batch)] if batch.num_rows else []
    shard = (hash_rows([batch.column(key) for key in keys]) // np.uint64(taken) % np.uint64(shards)).astype(np.uint16)
    counts = np.bincount(shard, minlength=shards)
    ordered = batch.take(pa.array(np.argsort(shard, kind="stable")))
    starts = np.cumsum(counts) - counts
    return [(int(s), ordered.slice(starts[s], counts[s])) for s in np.flatnonzero(counts)]


def hash_rows(columns: Sequence[pa.Array]) -> np.ndarray:
    """The 64-bit hash of each row of some key columns; null is a value like any other."""
    combined = hash_values(columns[0])[0]
    for column in columns[1:]:
        combined = _final_mix(combined * np.uint64(31) + hash_values(column)[0])
    return combined


def ids_of(columns: Sequence[pa.Array]) -> pa.Array:
    """A name for each row of some columns, 32 hexadecimal digits: the same for the same values, everywhere."""
    first, second = hash_values(columns[0])
    for column in columns[1:]:
        one, other = hash_values(column)
        first, second = _final_mix(first * np.uint64(31) + one), _final_mix(second * np.uint64(31) + other)
    octets = np.stack([first, second], axis=1).astype(">u8").view(np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[np.stack([octets >> 4, octets & 15], axis=2)]
    offsets = np.arange(len(first) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(first), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(digits)))


def hash_values(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of the 128-bit hash of each value."""
    if pt.is_dictionary(array.type):
        if not len(array.dictionary):
            return hash_values(pa.nulls(len(array)))
        codes = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        halves = [half[codes] for half in hash_values(array.dictionary)]
    elif pt.is_null(array.type):
        halves = [np.full(len(array), _NULL)] * 2
    elif (words := _words(array)) is not None:
        halves = list(_hash_words(words))
    else:
        halves = list(_hash_bytes(*_bytes(array)))
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        halves = [np.where(valid, half, _NULL) for half in halves]
    return halves[0], halves[1]


def _words(array: pa.Array) -> np.ndarray | None:
    """The values as 8 canonical bytes each; None for types of another width."""
    kind = array.type
    if pt.is_floating(kind):
        values = array.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False) + 0.0
        return np.where(np.isnan(values), np.nan, values).view(np.uint64)
    if pt.is_boolean(kind) or pt.is_integer(kind):
        wide = pa.uint64() if kind == pa.uint64() else pa.int64()
        return array.cast(wide).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    if not pt.is_temporal(kind) or pt.is_interval(kind):
        return None
    if pt.is_date64(kind):
        array, kind = array.cast(pa.date32()), pa.date32()
    narrow = pt.is_date32(kind) or pt.is_time32(kind)
    ticks = array.view(pa.int32()) if narrow else array.view(pa.int64())
    return _microseconds(ticks.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), getattr(kind, "unit", "us")).view(np.uint64)


def _microseconds(ticks: np.ndarray, unit: str) -> np.ndarray:
    if unit == "ns":  # what has no whole microseconds stays in nanoseconds
        return np.where(ticks % 1000 == 0, ticks // 1000, ticks)
    return ticks * {"s": 1_000_000, "ms": 1000, "us": 1}[unit]


def _bytes(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values as a buffer, padded so that 8 bytes can be read anywhere, with start and length of each."""
    kind = array.type
    if pt.is_decimal32(kind) or pt.is_decimal64(kind):
        array = array.cast(pa.decimal128(kind.precision, kind.scale))
    elif pt.is_string_view(kind) or pt.is_binary_view(kind):
        array = array.cast(pa.large_binary())
    elif not (pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind)
              or pt.is_fixed_size_binary(kind) or pt.is_decimal(kind)):  # fmt: skip
        raise ConfigError(Problem(f"a key cannot be of type {kind}", fix="use flat columns as keys"))
    n, first = len(array), array.offset
    if pt.is_fixed_size_binary(array.type) or pt.is_decimal(array.type):
        width = array.type.byte_width
        bounds = np.arange(first, first + n + 1, dtype=np.int64) * width
    else:
        wide = pt.is_large_string(array.type) or pt.is_large_binary(array.type)
        offsets = array.buffers()[1]
        bounds = np.zeros(1, np.int64) if offsets is None else np.frombuffer(offsets, np.int64 if wide else np.int32)[first : first + n + 1]
        bounds = bounds.astype(np.int64)
    data = array.buffers()[-1]
    padded = np.zeros((bounds[-1] - bounds[0] if n else 0) + 16, np.uint8)
    if n and data is not None:
        padded[:-16] = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
    return padded, bounds[:-1] - bounds[0], np.diff(bounds)


def _hash_words(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.full(len(words), _SEED) ^ _first_mix(words)
    return _finish(first, np.full(len(words), _SEED), np.uint64(8))


def _hash_bytes(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))  # the 8 bytes at every position
    first, second = np.full(len(starts), _SEED), np.full(len(starts), _SEED)
    blocks = lengths // 16
    for i in range(int(blocks.max(initial=0))):
        longer = np.flatnonzero(blocks > i)
        here = starts[longer] + 16 * i
        h1, h2 = first[longer] ^ _first_mix(at[here]), second[longer]
        h1 = (_rotate(h1, 27) + h2) * np.uint64(5) + np.uint64(0x52DCE729)
        h2 = h2 ^ _second_mix(at[here + 8])
        h2 = (_rotate(h2, 31) + h1) * np.uint64(5) + np.uint64(0x38495AB5)
        first[longer], second[longer] = h1, h2
    tail, left = starts + 16 * blocks, lengths % 16
    first ^= _first_mix(at[tail] & _low_bytes(np.minimum(left, 8)))
    second ^= _second_mix(at[tail + 8] & _low_bytes(np.maximum(left - 8, 0)))
    return _finish(first, second, lengths.astype(np.uint64))


def _low_bytes(count: np.ndarray) -> np.ndarray:
    masks = [(1 << 8 * n) - 1 for n in range(9)]
    return np.array(masks, np.uint64)[count]


def _first_mix(k: np.ndarray) -> np.ndarray:
    return _rotate(k * _C1, 31) * _C2


def _second_mix(k: np.ndarray) -> np.ndarray:
    return _rotate(k * _C2, 33) * _C1


def _rotate(x: np.ndarray, bits: int) -> np.ndarray:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _finish(h1: np.ndarray, h2: np.ndarray, length: np.ndarray | np.uint64) -> tuple[np.ndarray, np.ndarray]:
    h1, h2 = h1 ^ length, h2 ^ length
    h1 = h1 + h2
    h2 = h2 + h1
    h1, h2 = _final_mix(h1), _final_mix(h2)
    h1 = h1 + h2
    return h1, h2 + h1


def _final_mix(k: np.ndarray) -> np.ndarray:
    k = (k ^ (k >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    k = (k ^ (k >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return k ^ (k >> np.uint64(33))
