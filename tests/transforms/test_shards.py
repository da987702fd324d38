"""The hash of keys is the same everywhere and for ever, whatever form the keys come in."""

import datetime as dt
from decimal import Decimal

import datasketches
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebeam.errors import ConfigError
from tiebeam.transforms._shards import hash_rows, hash_values, split

UTC = dt.UTC
M = (1 << 64) - 1


def murmur3(data: bytes, seed: int = 9001) -> int:
    """MurmurHash3 x64 128, first half, as its author wrote it: the reference."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def rotate(x, r):
        return ((x << r) | (x >> (64 - r))) & M

    def mix(k):
        k = (k ^ (k >> 33)) * 0xFF51AFD7ED558CCD & M
        k = (k ^ (k >> 33)) * 0xC4CEB9FE1A85EC53 & M
        return k ^ (k >> 33)

    h1 = h2 = seed
    whole = len(data) // 16 * 16
    for i in range(0, whole, 16):
        k1, k2 = (int.from_bytes(data[j : j + 8], "little") for j in (i, i + 8))
        h1 = ((rotate(h1 ^ (rotate(k1 * c1 & M, 31) * c2 & M), 27) + h2) * 5 + 0x52DCE729) & M
        h2 = ((rotate(h2 ^ (rotate(k2 * c2 & M, 33) * c1 & M), 31) + h1) * 5 + 0x38495AB5) & M
    tail = data[whole:]
    h2 ^= rotate(int.from_bytes(tail[8:], "little") * c2 & M, 33) * c1 & M
    h1 ^= rotate(int.from_bytes(tail[:8], "little") * c1 & M, 31) * c2 & M
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & M
    h2 = (h2 + h1) & M
    h1, h2 = mix(h1), mix(h2)
    return (h1 + h2) & M


def first(value, kind) -> int:
    return int(hash_rows([pa.array([value], kind)])[0])


MOMENT = dt.datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
GOLDEN = [
    (0, pa.int64(), 0x40890191DCC2D7CB),
    (-1, pa.int64(), 0x1CF79F8C1BE764D9),
    (7, pa.int8(), 0xF9870733D517E9C1),
    (2**64 - 1, pa.uint64(), 0x1CF79F8C1BE764D9),
    (True, pa.bool_(), 0x0B430D7B96FBF22B),
    (1.5, pa.float64(), 0x1EF2C71C6C2A8222),
    (float("nan"), pa.float64(), 0x15108889ACBD31EB),
    ("", pa.string(), 0x1E70A32266491BB9),
    ("Zürich", pa.string(), 0xAA3F424DEC731480),
    ("sixteen bytes, or more than that", pa.string(), 0x99FACC848B3091C7),
    (b"\x00\xff", pa.binary(), 0xD7916BFFB044CA3C),
    (dt.date(2026, 11, 24), pa.date32(), 0x113CAC81EA8E3463),
    (MOMENT, pa.timestamp("us", "UTC"), 0xA5D5115DA0859BCF),
    (Decimal("-12.34"), pa.decimal128(10, 2), 0x1DB09B91C7D0170D),
    (None, pa.string(), 0x9E3779B97F4A7C15),
]


@pytest.mark.parametrize(("value", "kind", "expected"), GOLDEN, ids=[f"{v!r}" for v, _, _ in GOLDEN])
def test_golden_values(value, kind, expected):
    assert hex(first(value, kind)) == hex(expected)


def test_golden_values_of_several_keys():
    rows = hash_rows([pa.array(["a", None, "a"]), pa.array([1, 1, None])])
    assert [hex(h) for h in rows] == ["0xa3457e291707abdc", "0x2c05a62c9b85c7ea", "0x67e207c1da3f3cdc"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=70), max_size=30))
def test_bytes_hash_as_the_reference_does(values):
    assert hash_rows([pa.array(values, pa.binary())]).tolist() == [murmur3(v) for v in values]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30))
def test_integers_hash_as_their_eight_bytes(values):
    assert hash_rows([pa.array(values, pa.int64())]).tolist() == [murmur3(v.to_bytes(8, "little", signed=True)) for v in values]


@pytest.mark.parametrize("values", [list(range(-999, 999)), [i / 7 for i in range(999)], [f"value {i}" for i in range(999)]])
def test_both_halves_are_those_of_apache_datasketches(values):
    sketch = datasketches.hll_sketch(10, datasketches.HLL_8)
    for value in values:
        sketch.update(value)
    slot, other = hash_values(pa.array(values))
    registers = np.zeros(1024, np.uint8)
    rho = np.array([min(64 - int(h).bit_length(), 62) + 1 for h in other], np.uint8)
    np.maximum.at(registers, (slot % 1024).astype(int), rho)
    assert registers.tobytes() == sketch.serialize_updatable()[40:]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["a", None, "b"]), pa.array(["a", None, "b"]).dictionary_encode()),
        (pa.array(["a", None, "b"]), pa.array(["a", None, "b"], pa.large_string())),
        (pa.array(["a", None, "b"]), pa.array(["a", None, "b"], pa.string_view())),
        (pa.array(["a", None, "b"]), pa.array(["x", "a", None, "b", "y"]).slice(1, 3)),
        (pa.array(["a", None, "b"]), pa.array([b"a", None, b"b"])),
        (pa.array([b"aa", None]), pa.array([b"aa", None], pa.binary(2))),
        (pa.array([1, None, -3], pa.int8()), pa.array([1, None, -3], pa.int64())),
        (pa.array([1, 3], pa.uint64()), pa.array([1, 3])),
        (pa.array([1.5, None], pa.float32()), pa.array([1.5, None], pa.float64())),
        (pa.array([0.0, float("nan")]), pa.array([-0.0, -float("nan")])),
        (pa.array([MOMENT], pa.timestamp("s", "UTC")), pa.array([MOMENT], pa.timestamp("ns", "UTC"))),
        (pa.array([MOMENT.date()], pa.date32()), pa.array([MOMENT.date()], pa.date64())),
        (pa.array([dt.time(1, 2)], pa.time32("s")), pa.array([dt.time(1, 2)], pa.time64("ns"))),
        (pa.array([dt.timedelta(1)], pa.duration("s")), pa.array([dt.timedelta(1)], pa.duration("ms"))),
        (
            pa.array([Decimal("1.25"), None], pa.decimal32(4, 2)),
            pa.array([Decimal("9"), Decimal("1.25"), None], pa.decimal128(20, 2)).slice(1),
        ),
        (pa.nulls(2), pa.array([None, None], pa.int64())),
        (pa.nulls(2), pa.array([None, None], pa.dictionary(pa.int8(), pa.string()))),
    ],
    ids=lambda array: str(array.type),
)
def test_the_form_of_a_value_does_not_matter(one, other):
    assert hash_rows([one]).tolist() == hash_rows([other]).tolist()


def test_nanoseconds_that_are_not_whole_microseconds_are_told_apart():
    hashes = hash_rows([pa.array([1_000, 1_001, 1_002], pa.timestamp("ns"))])
    assert len(set(hashes.tolist())) == 3


def test_split_keeps_every_row_once_and_in_order():
    keys = pa.array([None if i % 50 == 0 else f"key {i % 300}" for i in range(5000)]).dictionary_encode()
    batch = pa.record_batch({"key": keys, "n": list(range(5000))})
    pieces = split(batch, ["key"], 7)
    assert [shard for shard, _ in pieces] == list(range(7))
    assert sorted(n for _, piece in pieces for n in piece.column("n").to_pylist()) == list(range(5000))
    owners: dict = {}
    for shard, piece in pieces:
        assert piece.schema == batch.schema
        numbers = piece.column("n").to_pylist()
        assert numbers == sorted(numbers)
        for key in piece.column("key").to_pylist():
            assert owners.setdefault(key, shard) == shard
    assert min(piece.num_rows for _, piece in pieces) > 400


def test_split_without_keys_or_rows():
    batch = pa.record_batch({"n": [1, 2]})
    assert [(shard, piece.num_rows) for shard, piece in split(batch, [], 4)] == [(0, 2)]
    assert split(batch.slice(2), ["n"], 4) == []
    assert split(batch.slice(2), ["n"], 1) == []


def test_a_nested_key_is_refused():
    with pytest.raises(ConfigError, match="cannot be of type list"):
        hash_rows([pa.array([[1]])])
