"""JSON lines: every line is a row or a dead letter, whatever the cut, and nothing in a row is passed over."""

from __future__ import annotations

import bz2
import gzip
import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.reading import parts_of, read, sort
from tiebeam.errors import ConfigError
from tiebeam.io import _json_rows, _lines
from tiebeam.io._file_source import FilePart
from tiebeam.io._json_exact import BadLineError, judge
from tiebeam.io._lines import Block, Parsed
from tiebeam.io.jsonl import ReadFromJsonl, WriteToJsonl
from tiebeam.rows import RowBatch

SCHEMA = "i bigint, f double, s text, b boolean"
TYPES = {"i": pa.int64(), "f": pa.float64(), "s": pa.string(), "b": pa.bool_()}
GOOD = b'{"i":1,"f":1.5,"s":"x","b":true}'
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture
def source(tmp_path):
    def make(data: bytes, name: str = "a.jsonl", **options) -> ReadFromJsonl:
        (tmp_path / name).write_bytes(data)
        return ReadFromJsonl(str(tmp_path / name), **options)

    return make


def shorn(rows):
    """Rows without what is null, and without positions."""
    return [{k: v for k, v in row.items() if v is not None and k != "row_position"} for row in rows]


def outcome(data: bytes, types=TYPES) -> tuple[list[dict], list[tuple[str, bytes]]]:
    """What a block of lines becomes: its rows by line, and what is refused."""
    block = Block.of(data)
    rows, refused = {}, []
    for item in _json_rows.JsonRows(pa.schema(list(types.items())), None).parse(block):
        if isinstance(item, Parsed):
            lines = range(item.rows.num_rows) if item.lines is None else item.lines
            rows.update(zip(map(int, lines), shorn(item.rows.to_pylist()), strict=True))
        else:
            refused += [(reason, block.line(line)) for line, reason in zip(item.lines, item.reasons, strict=True)]
    return [rows[line] for line in sorted(rows)], refused


# ---- what a line becomes, alone and among others

DELIVERED = [
    (b"{}", {}),
    (b'{"i":9223372036854775807}', {"i": 2**63 - 1}),
    (b'{"i":-9223372036854775808}', {"i": -(2**63)}),
    (b'{"i":1.0}', {"i": 1}),
    (b'{"i":1e3}', {"i": 1000}),
    (b'{"i":null}', {}),
    (b'{"f":1}', {"f": 1.0}),
    (b'{"f":-0.0}', {"f": -0.0}),
    (b'{"s":1}', {"s": "1"}),
    (b'{"s":12345678901234567890123}', {"s": "12345678901234567890123"}),
    (b'{"s":1e400}', {"s": "1e400"}),
    (b'{"s":true}', {"s": "true"}),
    (b'{"s":{"a":1, "b":[null,"\\u00e9"]}}', {"s": '{"a": 1, "b": [null, "é"]}'}),
    (b'{"s":{"a":1,"a":2}}', {"s": '{"a": 1, "a": 2}'}),
    (b'{"s":[1,{"s":null}]}', {"s": '[1, {"s": null}]'}),
    (b'{"s":"\\ud83d\\ude00"}', {"s": "😀"}),
    (b'{"s":"\\u0000"}', {"s": "\x00"}),
    (b'{"s":"\\\\ud800"}', {"s": "\\ud800"}),
    (b'{"s":""}', {"s": ""}),
    (b'{"s":"null"}', {"s": "null"}),
    (b' {"i":1} ', {"i": 1}),
    (b'{"i":1}\r', {"i": 1}),
    (b'\t{"i":1}\t\r', {"i": 1}),
    (b'{"\\u0069":5}', {"i": 5}),
    # unknown keys become text columns
    (b'{"z":1}', {"z": "1"}),
    (b'{"i":1,"z":"a"}', {"i": 1, "z": "a"}),
    (b'{"z":{"q":1}}', {"z": '{"q": 1}'}),
    (b'{"":"x"}', {"": "x"}),
    (b'{"z":null,"i":1}', {"i": 1}),
    # a null is the same as an absent key
    (b'{"i":1,"i":null}', {"i": 1}),
    (b'{"i":null,"i":1}', {"i": 1}),
    (b'{"i":null,"i":null}', {}),
    (b'{"i":null,"z":null}', {}),
    # what looks like keys and nulls and is none, or is none and looks like one
    (b'{"s":"\\":null","z":1}', {"s": '":null', "z": "1"}),
    (b'{"s":"\\":null,\\":null","z":1,"y":2}', {"s": '":null,":null', "z": "1", "y": "2"}),
    (b'{"s":":null","z":5}', {"s": ":null", "z": "5"}),
    (b'{"s":": null","i":1}', {"s": ": null", "i": 1}),
    (b'{":null":1}', {":null": "1"}),
    (b'{":n":null,"z":1}', {"z": "1"}),
    (b'{"z\\\\":1}', {"z\\": "1"}),
    (b'{"z\\\\":null,"i":1}', {"i": 1}),
    (b'{"s":"\\\\\\":x","z":1}', {"s": '\\":x', "z": "1"}),
    (b'{"s":"a\\\\","z":1}', {"s": "a\\", "z": "1"}),
    (b'{"i" :1,"z":2}', {"i": 1, "z": "2"}),
    (b'{"i"\t:1,"z":2}', {"i": 1, "z": "2"}),
    (b'{"i"' + b" " * 40 + b':1,"z":2}', {"i": 1, "z": "2"}),
    (b'{"i":  null,"f":1}', {"f": 1.0}),
    (b'{"s":"x : y","i":1}', {"s": "x : y", "i": 1}),
    (b'{"s":"x \\" : y","i":1}', {"s": 'x " : y', "i": 1}),
    (b'{"s":"{\\"a\\":1}"}', {"s": '{"a":1}'}),
]

REFUSED = [
    (b'{"i":"12"}', "wrong_type"),
    (b'{"i":1.5}', "wrong_type"),
    (b'{"i":true}', "wrong_type"),
    (b'{"i":{"a":1}}', "wrong_type"),
    (b'{"i":[]}', "wrong_type"),
    (b'{"f":"1.5"}', "wrong_type"),
    (b'{"b":1}', "wrong_type"),
    (b'{"b":"true"}', "wrong_type"),
    (b'{"i":9223372036854775808}', "out_of_range"),
    (b'{"i":-9223372036854775809}', "out_of_range"),
    (b'{"i":1e999999999}', "out_of_range"),
    (b'{"f":1e400}', "out_of_range"),
    (b'{"i":1,"i":2}', "duplicate_key"),
    (b'{"i":1,"i":1}', "duplicate_key"),
    (b'{"i":1,"i":null,"i":2}', "duplicate_key"),
    (b'{"z":1,"z":2}', "duplicate_key"),
    (b'{"i":1,"\\u0069":1}', "duplicate_key"),
    (b'{"s":"\xff"}', "invalid_utf8"),
    (b'{"s":"\xed\xa0\x80"}', "invalid_utf8"),
    (b'{"s":"\\ud800"}', "malformed"),
    (b'{"s":"\\ude00\\ud83d"}', "malformed"),
    (b'{"s":"\\ud83dx\\ude00"}', "malformed"),
    (b'{"s":{"a":"\\udfff"}}', "malformed"),
    (b'{"\\ud800":1}', "malformed"),
    (b'{"s":"a\x00b"}', "malformed"),
    (b'{"s":"a\tb"}', "malformed"),
    (b'{"s":"\\q"}', "malformed"),
    (b'{"f":NaN}', "malformed"),
    (b'{"f":-Infinity}', "malformed"),
    (b'{"s":[NaN]}', "malformed"),
    (b'{"i":1', "malformed"),
    (b'{"i":1,"s":"tr', "malformed"),
    (b'{"i":1,}', "malformed"),
    (b'{"s":[1,]}', "malformed"),
    (b'{"i":1}x', "malformed"),
    (b'{"i":1}{"i":2}', "malformed"),
    (b'{"i":1}\r{"i":2}', "malformed"),
    (b'{"i":01}', "malformed"),
    (b'{"i":+1}', "malformed"),
    (b'{"f":.5}', "malformed"),
    (b'{"f":1.}', "malformed"),
    (b"{'i':1}", "malformed"),
    (b"{i:1}", "malformed"),
    (b'{"i":1}//c', "malformed"),
    (b'{"s":"\\\\":null"}', "malformed"),
    (b"plain text", "malformed"),
    (b"\x00\x00", "malformed"),
    (b"[]", "not_an_object"),
    (b'[{"i":1}]', "not_an_object"),
    (b"null", "not_an_object"),
    (b'"x"', "not_an_object"),
    (b"1", "not_an_object"),
    (b'{"s":' + b"[" * 1500 + b"]" * 1500 + b"}", "too_deep"),
    (b'{"s":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "too_deep"),
]
EXPECTED = {line: ([row], []) for line, row in DELIVERED} | {line: ([], [(why, line.removesuffix(b"\r"))]) for line, why in REFUSED}


@pytest.mark.parametrize(("line", "row"), DELIVERED, ids=lambda v: repr(v)[:60])
def test_a_line_that_is_a_row(line, row):
    assert outcome(line + b"\n") == ([row], [])


@pytest.mark.parametrize(("line", "reason"), REFUSED, ids=lambda v: repr(v)[:60])
def test_a_line_that_is_none(line, reason):
    assert outcome(line + b"\n") == ([], [(reason, line)])


@PROPERTY
@given(st.lists(st.sampled_from([*EXPECTED, *[GOOD] * 40, b"", b"\r", b"  "]), min_size=1, max_size=60))
@example([GOOD] * 300 + list(EXPECTED) + [GOOD] * 300)
@example([line for line, _ in DELIVERED for _ in range(12)])
def test_a_line_becomes_the_same_among_any_others(lines):
    rows, refused = outcome(b"\n".join(lines) + b"\n")
    good = ([{"i": 1, "f": 1.5, "s": "x", "b": True}], [])
    expected = [EXPECTED.get(line, good if line == GOOD else ([], [])) for line in lines]
    assert rows == [row for delivered, _ in expected for row in delivered]
    assert sorted(refused) == sorted(r for _, letters in expected for r in letters)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(["i", "f", "s", "b", "z", "\\", '"', ":null", "i "])


@st.composite
def lines(draw):
    pairs = draw(st.lists(st.tuples(KEYS, VALUES), max_size=4))
    blank = st.sampled_from(["", "", " ", "\t"])
    ascii_only = draw(st.booleans())
    inner = ",".join(
        f"{draw(blank)}{json.dumps(k, ensure_ascii=ascii_only)}{draw(blank)}:{draw(blank)}{json.dumps(v, ensure_ascii=ascii_only)}"
        for k, v in pairs
    )
    line = ("{" + inner + "}").encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(line)))
        line = line[:at] + draw(st.sampled_from([b"", b'"', b"\\", b",", b":", b"\xff", b"}", b"null"])) + line[at + 1 :]
    return line


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(lines(), min_size=1, max_size=12))
def test_no_key_with_a_value_is_ever_passed_over(written):
    """Python's own parser says of each line what it holds; the block says the same of all."""
    rows, refused = outcome(b"\n".join([*written, *[GOOD] * 3]) + b"\n")
    expected = 3
    for line in written:
        try:
            judged = judge(line, TYPES)
        except BadLineError as e:
            assert (e.reason, line.removesuffix(b"\r")) in refused
        else:
            expected += judged is not None
            if judged is not None:
                pairs = dict(json.loads(line, object_pairs_hook=lambda p: {k: v for k, v in p if v is not None} or {}))
                assert any(set(row) == set(pairs) and _same(row, pairs) for row in rows), (line, rows)
    assert len(rows) == expected


def _same(row, pairs):
    for key, value in pairs.items():
        if isinstance(value, str) and row[key] != value:
            return False
        if type(value) in (int, float, bool) and key in ("i", "b", "f") and row[key] != value:
            return False
    return True


def test_a_parser_that_drops_a_row_would_be_noticed(monkeypatch):
    """The rows a parser returns are counted against the lines it was given."""
    real = _json_rows.pl.read_ndjson
    monkeypatch.setattr(_json_rows.pl, "read_ndjson", lambda data, **k: real(data, **k)[: -1 if data.count(b"\n") > 8 else None])
    assert len(outcome((GOOD + b"\n") * 30)[0]) == 30


def test_many_lines_that_need_a_second_look_stay_fast(monkeypatch):
    """Rows with nested objects or a new column are not judged line by line."""
    judged = []
    monkeypatch.setattr(_json_rows, "judge", lambda line, types: judged.append(line) or judge(line, types))
    rows, refused = outcome(b"".join(b'{"i":%d,"s":{"a":null,"b":{"c":1}},"new":"x"}\n' % i for i in range(5000)))
    assert (len(rows), refused) == (5000, [])
    assert len(judged) <= _json_rows._FEW
    judged.clear()
    rows, _ = outcome(b"".join(b'{"i":%d,"f":null}\n{"s":"%d : \\": x"}\n{"s": null}\n' % (i, i) for i in range(2000)))
    assert (len(rows), judged) == (6000, [])


# ---- cuts


@PROPERTY
@given(
    st.lists(st.sampled_from([GOOD, b"", b"\r", b'{"z":1}', b"bad", b'{"s":"' + b"x" * 70 + b'"}', b'{"s":"\xc3\xa9"}\r']), max_size=14),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3, 10, 57, 1000]),
    st.sampled_from([16, 100]),
    st.sampled_from([40, 1000]),
)
def test_parts_of_any_size_give_the_same_rows_and_positions(tmp_path_factory, lines, bom, newline, part, block, longest):
    data = (_lines.BOM if bom else b"") + b"\n".join(lines) + (b"\n" if newline else b"")
    path = tmp_path_factory.mktemp("cuts") / "a.jsonl"
    path.write_bytes(data or b" ")
    source = ReadFromJsonl(str(path), schema=SCHEMA, max_row_bytes=longest)
    size = len(data or b" ")
    whole = read(source, [FilePart(str(path), 0, None, size)])
    starts = [*range(0, size, part)]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(_lines, "BLOCK_BYTES", block)
        cut = read(source, [FilePart(str(path), a, min(a + part, size), part) for a in starts])
    assert shorn_with_position(cut[0]) == shorn_with_position(whole[0])
    assert [(x["reason"], x["row_position"], x["detail"]) for x in cut[1]] == [
        (x["reason"], x["row_position"], x["detail"]) for x in whole[1]
    ]
    for row in whole[0] + whole[1]:
        offset = int(row["row_position"].rpartition(":")[2])
        assert offset in (0, 3 * bom) or data[offset - 1 : offset] == b"\n"


def shorn_with_position(rows):
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def test_large_files_are_cut_into_parts_and_compressed_ones_are_not(source):
    m = 1 << 20
    assert [(p.start, p.stop) for p in source(b"{}").parts("x.jsonl", 150 * m)] == [(0, 64 * m), (64 * m, 128 * m), (128 * m, 150 * m)]
    assert [(p.start, p.stop) for p in source(b"{}").parts("x.jsonl.gz", 150 * m)] == [(0, None)]


def test_positions_are_unique_and_lead_to_the_line(source):
    data = b"".join(b'{"i":%d}\r\n\n' % i for i in range(3000))
    rows, _ = read(source(data))
    offsets = [int(row["row_position"].rpartition(":")[2]) for row in rows]
    assert len(set(offsets)) == 3000
    assert all(data[at:].startswith(b'{"i":%d}' % row["i"]) for at, row in zip(offsets, rows, strict=True))


@pytest.mark.parametrize("positions", [True, False])
def test_batches_are_of_a_size_and_type_that_the_rest_can_take(source, positions):
    made = source(b"".join(b'{"i":%d,"s":"x"}\n' % i for i in range(70_000)), positions=positions)
    ready = made.prepared(made.files())
    batches = [b for part in parts_of(made) for b in ready.deliver(part, "Read")]
    assert [b.num_rows for b in batches] == [65_536, 4_464]
    assert batches[0].schema.types == [pa.int64(), pa.string(), *[pa.string()] * positions]


# ---- types


def test_types_are_found_in_a_sample(source):
    data = b"""
        {"id":1,"price":1,"ok":true,"tag":"x","mixed":1,"deep":{"a":1},"list":[1],"big":1,"none":null,"u":18446744073709551615,"at":"2026"}
        {"id":2,"price":1.5,"ok":false,"tag":"","mixed":"y","deep":{},"list":[],"big":9007199254740993}
        not json
    """
    made = source(data)
    known = made.prepared(made.files())._known
    assert {f.name: str(f.type) for f in known} == {
        "id": "int64", "price": "double", "ok": "bool", "tag": "string", "mixed": "string", "deep": "string", "list": "string",
        "big": "int64", "none": "string", "u": "string", "at": "string",
    }  # fmt: skip


def test_whole_numbers_beyond_a_double_do_not_become_doubles(source):
    rows, _ = read(source(b'{"n":9007199254740993}\n{"n":0.5}\n'))
    assert [row["n"] for row in rows] == ["9007199254740993", "0.5"]


def test_a_declared_schema(source):
    declared = 'id int, "odd name" tinyint, price decimal(12,2), day date, at timestamptz, local timestamp'
    declared += ", t time, raw binary, r real, u ubigint"
    line = (
        b'{"id":7,"odd name":-128,"price":12.10,"day":"2026-01-02","at":"2026-01-02T05:04:05+02:00","local":"2026-01-02T03:04:05Z",'
        b'"t":"03:04:05.5","raw":"AP8=","r":0.5,"u":18446744073709551615}'
    )
    rows, letters = read(source(line, schema=declared, positions=False))
    assert letters == []
    assert rows == [
        {
            "id": 7, "odd name": -128, "price": Decimal("12.10"), "day": date(2026, 1, 2), "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "local": datetime(2026, 1, 2, 3, 4, 5), "t": time(3, 4, 5, 500000), "raw": b"\x00\xff", "r": 0.5, "u": 2**64 - 1,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("int", "2147483648", "out_of_range"),
        ("tinyint", "-129", "out_of_range"),
        ("ubigint", "-1", "out_of_range"),
        ("real", "1e39", "out_of_range"),
        ("decimal(5,2)", "1.234", "out_of_range"),
        ("decimal(5,2)", "12345.6", "out_of_range"),
        ("decimal(5,2)", '"x"', "wrong_type"),
        ("decimal(5,2)", '"NaN"', "wrong_type"),
        ("date", '"2026-02-30"', "wrong_type"),
        ("date", '"2026-01-02T00:00:00"', "wrong_type"),
        ("timestamptz", '"soon"', "wrong_type"),
        ("timestamp", '"2026-01-02T00:00:00.1234567"', "wrong_type"),
        ("timestamp", "1767323045", "wrong_type"),
        ("time", '"25:00:00"', "wrong_type"),
        ("binary", '"AP8"', "wrong_type"),
        ("binary", '"%%%%"', "wrong_type"),
        ("date", "true", "wrong_type"),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_a_dead_letter_of_that_row(source, kind, value, reason):
    bad = b'{"v":%s,"n":1}' % value.encode()
    rows, letters = read(source(b'{"n":0}\n' + bad + b'\n{"n":2}\n', schema=f"v {kind}, n bigint", positions=False))
    assert rows == [{"v": None, "n": 0}, {"v": None, "n": 2}]
    assert [(x["reason"], x["original"]) for x in letters] == [(reason, bad)]


def test_decimals_keep_every_digit(source):
    written = ["0.1", "1.10", "12345678901234567890.123456789012345678", "-0.000000000000000001", "1e3", '"99999999999999999999.5"']
    data = "".join(f'{{"d":{text}}}\n' for text in written).encode()
    rows, letters = read(source(data, schema="d decimal(38,18)"))
    assert letters == []
    assert [row["d"] for row in rows] == [Decimal(text.strip('"')) for text in written]


def test_structs_and_lists_are_read_as_declared(source):
    kind = pa.struct([("sku", pa.string()), ("at", pa.timestamp("us")), ("sizes", pa.list_(pa.int64()))])
    schema = pa.schema([("n", pa.int64()), ("item", kind), ("items", pa.list_(kind))])
    data = b"""{"n":1,"item":{"sku":"a","at":"2026-01-02"},"items":[{"sizes":[1,2]},null]}
{"n":2,"item":{"sku":"a","colour":"red"}}
{"n":3,"item":{"sku":"a","sku":"b"}}
{"n":4,"items":[{"sizes":["x"]}]}
{"n":5,"item":"x"}
{"n":6,"item":{"at":"soon"}}
{"n":7,"item":null,"items":[]}
"""
    rows, letters = read(source(data, schema=schema, positions=False))
    assert [row["n"] for row in rows] == [1, 7]
    assert rows[0]["items"] == [{"sku": None, "at": None, "sizes": [1, 2]}, None]
    assert [(x["reason"], json.loads(x["original"])["n"]) for x in letters if x["reason"] != "duplicate_key"] == [
        ("unknown_field", 2), ("wrong_type", 4), ("wrong_type", 5), ("wrong_type", 6)
    ]  # fmt: skip
    assert [x["original"][:6] for x in letters if x["reason"] == "duplicate_key"] == [b'{"n":3']


def test_types_can_be_handed_over(source):
    made = source(b'{"id":1,"day":"2026-01-02","n":1}\n')
    typed = made.with_types(pa.schema([("day", pa.date32()), ("id", pa.string())]))
    rows, _ = read(typed)
    assert rows[0]["day"] == date(2026, 1, 2)
    assert (rows[0]["id"], rows[0]["n"]) == ("1", 1)
    assert read(made)[0][0]["id"] == 1


@pytest.mark.parametrize("schema", ["id", "id wrong", "a int, a int", pa.schema([("m", pa.map_(pa.string(), pa.string()))])])
def test_a_schema_that_is_none_is_told_when_the_source_is_made(schema):
    with pytest.raises(ConfigError):
        ReadFromJsonl("x.jsonl", schema=schema)


def test_columns_that_are_not_read_are_judged_all_the_same(source):
    data = b'{"i":1,"f":1.0}\n{"i":2,"f":"x"}\n{"i":3,"new":1}\n'
    rows, letters = read(source(data, schema="i bigint, f double", columns=("i",), positions=False))
    assert rows == [{"i": 1}, {"i": 3}]
    assert [x["reason"] for x in letters] == ["wrong_type"]


# ---- event time, compression, replay


def test_a_row_without_its_time_is_a_dead_letter_with_its_bytes(source):
    rows, letters = read(source(b'{"at":"2026-01-02"}\n{"at":"never","n":1}\n{"n":2}\n{"at":"2026-01-03"}\n', event_time="at"))
    assert [row["row_time"].day for row in rows] == [2, 3]
    assert [(x["reason"], x["original"]) for x in letters] == [("bad_event_time", b'{"at":"never","n":1}'), ("bad_event_time", b'{"n":2}')]
    assert "never" in letters[0]["detail"]


COMPRESSORS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_files(source, ending):
    plain = b"".join(b'{"i":%d}\n' % i for i in range(5000))
    members = COMPRESSORS[ending](plain[: len(plain) // 2]) + COMPRESSORS[ending](plain[len(plain) // 2 :])
    rows, letters = read(source(members, f"a.jsonl.{ending}"))
    assert ([row["i"] for row in rows], letters) == (list(range(5000)), [])
    kind = {"gz": "gzip", "bz2": "bzip2", "zst": "zstd"}[ending]
    assert len(read(source(members, "odd.jsonl", compression=kind))[0]) == 5000


def test_dead_letters_are_parsed_again_as_in_their_place(source):
    data = b'{"i":1,"at":"2026-01-02"}\nbad\n{"i":"x","at":"2026-01-02"}\n{"i":4}\n'
    made = source(data, schema="i bigint, at text", event_time="at")
    _, letters = read(made)
    originals = [b'{"i":2,"at":"2026-01-03"}', *[x["original"] for x in letters]]
    positions = ["p:9", *[x["row_position"] for x in letters]]
    rows, again = sort(made.decode(originals, positions, "Replay"))
    assert [(row["i"], row["row_position"], row["row_time"].day) for row in rows] == [(2, "p:9", 3)]
    assert sorted((x["reason"], x["original"], x["row_position"], x["step"]) for x in again) == sorted(
        (x["reason"], x["original"], x["row_position"], "Replay") for x in letters
    )


def test_partition_columns_of_replayed_rows(tmp_path):
    for k in (1, 2):
        (tmp_path / f"k={k}").mkdir()
        (tmp_path / f"k={k}/a.jsonl").write_bytes(b'{"i":1}\n')
    positions = [f"{tmp_path}/k=2/a.jsonl:0", f"{tmp_path}/k=1/a.jsonl:9"]
    rows, _ = sort(ReadFromJsonl(str(tmp_path)).decode([b'{"i":5}', b'{"i":6}'], positions, "Replay"))
    assert sorted((row["i"], row["k"]) for row in rows) == [(5, 2), (6, 1)]


# ---- the sink


def written(batch: RowBatch, tmp_path, **options) -> tuple[str, list[bytes]]:
    sink = WriteToJsonl(str(tmp_path / "out"), **options)
    writer = sink.writer("r1")
    assert list(writer.write(batch)) == []
    sink.publish("r1", writer.close())
    [file] = [f for f in (tmp_path / "out").iterdir() if f.is_file()]
    return str(tmp_path / "out"), file.read_bytes().splitlines()


def test_values_are_written_without_loss(tmp_path):
    batch = pa.record_batch(
        {
            "i": pa.array([2**63 - 1, -1], pa.int64()),
            "u": pa.array([2**64 - 1, 0], pa.uint64()),
            "f": pa.array([0.1, None]),
            "s": ['quo"te\\\n\u2028é😀\x00', ""],
            "d": pa.array([Decimal("12345678901234567890.10"), None], pa.decimal128(30, 2)),
            "day": [date(2026, 1, 2), None],
            "at": pa.array([datetime(2026, 1, 2, 3, 4, 5, 678, UTC), None], pa.timestamp("us", "Europe/Paris")),
            "local": pa.array([datetime(2026, 1, 2, 3, 4, 5), None], pa.timestamp("s")),
            "b": pa.array([b"\x00\xff", None]),
            "took": pa.array([timedelta(seconds=1), None], pa.duration("ms")),
            "c": pa.array(["x", "x"]).dictionary_encode(),
            "m": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "deep": pa.array([[{"at": date(2026, 1, 2)}, None], None], pa.list_(pa.struct([("at", pa.date32())]))),
        }
    )
    _, lines = written(batch, tmp_path)
    assert json.loads(lines[0]) == {
        "i": 2**63 - 1, "u": 2**64 - 1, "f": 0.1, "s": 'quo"te\\\n\u2028é😀\x00', "d": "12345678901234567890.10", "day": "2026-01-02",
        "at": "2026-01-02T03:04:05.000678Z", "local": "2026-01-02T03:04:05", "b": "AP8=", "took": 1000, "c": "x",
        "m": [{"key": "k", "value": 1}], "deep": [{"at": "2026-01-02"}, None],
    }  # fmt: skip
    assert json.loads(lines[1])["deep"] is None


def test_numbers_that_json_lacks_are_written_as_words(tmp_path):
    batch = pa.record_batch(
        {
            "n": [0, 1, 2, 3, 4],
            "f": [math.nan, 1.5, math.inf, -math.inf, None],
            "l": pa.array([[1.5], [math.nan, 0.5], None, [], [2.5]]),
            "s": pa.array([{"x": 1.0}, {"x": 2.0}, None, {"x": math.inf}, {"x": None}]),
        }
    )
    _, lines = written(batch, tmp_path)
    rows = sorted(map(json.loads, lines), key=lambda row: row["n"])
    assert [row["f"] for row in rows] == ["NaN", 1.5, "Infinity", "-Infinity", None]
    assert [row["l"] for row in rows] == [[1.5], ["NaN", "0.5"], None, [], [2.5]]
    assert [row["s"] for row in rows] == [{"x": 1.0}, {"x": 2.0}, None, {"x": "Infinity"}, {"x": None}]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "bzip2"])
def test_what_is_written_is_read_again(tmp_path, compression):
    batch = pa.record_batch({"n": np.arange(1000), "s": [f"x{i}" for i in range(1000)]})
    path, _ = written(batch, tmp_path, compression=compression)
    rows, letters = read(ReadFromJsonl(path, positions=False))
    assert (sorted(rows, key=lambda r: r["n"]), letters) == (batch.to_pylist(), [])


def test_from_files_to_files_in_a_pipeline(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"n":1}\nbad\n{"n":2}\n')
    with beam.Pipeline(runner="FnApiRunner") as p:
        p | ReadFromJsonl(str(tmp_path / "in.jsonl")) | WriteToJsonl(str(tmp_path / "out"))
    rows, _ = read(ReadFromJsonl(str(tmp_path / "out"), columns=("n",), positions=False))
    assert rows == [{"n": 1}, {"n": 2}]
    letters, _ = read(ReadFromJsonl(str(tmp_path / "out.rejected")))
    assert [(x["reason"], x["original"]) for x in letters] == [("malformed", "YmFk")]
