"""CSV: a row is what RFC 4180 says it is, or a dead letter; neighbours are untouched, whatever the cut."""

from __future__ import annotations

import csv
import gzip
import io
import math
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.reading import parts_of, read, sort
from tiebeam.errors import BadFileError, ConfigError
from tiebeam.io import _csv_rows, _lines
from tiebeam.io._file_source import FilePart
from tiebeam.io.csv import ReadFromCsv, WriteToCsv
from tiebeam.rows import RowBatch

HEADER = b"a,b,c\n"
GOOD = b"1,x,1.5"
LONG = b"4," + b"x" * 60 + b",1\r"
SCHEMA = "a bigint, b text, c double"


@pytest.fixture
def source(tmp_path):
    def make(data: bytes, name: str = "a.csv", **options) -> ReadFromCsv:
        (tmp_path / name).write_bytes(data)
        return ReadFromCsv(str(tmp_path / name), **options)

    return make


def values(rows):
    return [[v for k, v in row.items() if k != "row_position"] for row in rows]


# ---- what a line becomes, alone and among others

DELIVERED = [
    (b'2,"q",2.5', [2, "q", 2.5]),
    (b'2,"q""q",2.5', [2, 'q"q', 2.5]),
    (b'2,"""",2.5', [2, '"', 2.5]),
    (b'2,"""""",2.5', [2, '""', 2.5]),
    (b'2,"a,b",2.5', [2, "a,b", 2.5]),
    (b'"2","x","2.5"', [2, "x", 2.5]),
    (b'2,"q",2.5\r', [2, "q", 2.5]),
    (b'2,x,"2.5"\r', [2, "x", 2.5]),
    (b"2,x,\r", [2, "x", None]),
    (b",,", [None, None, None]),
    (b'1,"",', [1, "", None]),
    (b"1, x ,2", [1, " x ", 2.0]),
    (b"1,a\tb,2", [1, "a\tb", 2.0]),
    (b"1,\xc3\xa9\xf0\x9f\x90\x9d,2", [1, "é🐝", 2.0]),
    (b"1,'x',2", [1, "'x'", 2.0]),
    (b"1,a\\,2", [1, "a\\", 2.0]),
    (b"1,NULL,2", [1, "NULL", 2.0]),
    (b"+1,x,nan", [1, "x", math.nan]),
]
REFUSED = [
    (b'2,q"q,2.5', "bare_quote"),
    (b'2,"q"q,2.5', "bare_quote"),
    (b'2,q",2.5', "bare_quote"),
    (b'2,"q,2.5', "bare_quote"),
    (b'2,""",2.5', "bare_quote"),
    (b'2, "q",2.5', "bare_quote"),
    (b'2,"q" ,2.5', "bare_quote"),
    (b'2,"a"""b",2.5', "bare_quote"),
    (b"1,2", "ragged"),
    (b"1,2,3,4", "ragged"),
    (b'1,"2,3"', "ragged"),
    (b'1,"2,3",4,5', "ragged"),
    (b"   ", "ragged"),
    (b"1,\xff,3", "invalid_utf8"),
    (b"1,\xed\xa0\x80,3", "invalid_utf8"),
    (b"1,a\x00b,3", "malformed"),
    (b"1,a\rb,3", "malformed"),
    (b"1,x,2\r\r", "malformed"),
    (b"x,y,1", "wrong_type"),
    (b"1.0,y,1", "wrong_type"),
    (b"007,y,1", "wrong_type"),
    (b"9223372036854775808,y,1", "wrong_type"),
    (b"1,y,1e400", "wrong_type"),
    (b"1,y, 1", "wrong_type"),
    (b'"",y,1', "wrong_type"),
    (b"0x10,y,1", "wrong_type"),
]
EXPECTED = {line: ([row], []) for line, row in DELIVERED} | {line: ([], [(why, line.removesuffix(b"\r"))]) for line, why in REFUSED}


def outcome(source, lines: list[bytes], **options):
    rows, letters = read(source(HEADER + b"\n".join(lines) + b"\n", schema=SCHEMA, **options))
    return values(rows), [(x["reason"], x["original"]) for x in letters]


def same(rows, expected):
    return repr(rows) == repr(expected)  # NaN is not equal to itself


@pytest.mark.parametrize("newlines", [False, True], ids=["lines", "rows"])
@pytest.mark.parametrize("line", EXPECTED, ids=lambda v: repr(v)[:60])
def test_a_line(source, line, newlines):
    rows, refused = outcome(source, [line], newlines_in_values=newlines)
    assert same((rows, refused), EXPECTED[line])


@pytest.mark.parametrize("newlines", [False, True], ids=["lines", "rows"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_line_becomes_the_same_among_any_others(tmp_path_factory, newlines, data):
    lines = data.draw(st.lists(st.sampled_from([*EXPECTED, *[GOOD] * 40, b"", b"\r"]), min_size=1, max_size=40))
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(HEADER + b"\n".join(lines) + b"\n")
    rows, letters = read(ReadFromCsv(str(path), schema=SCHEMA, newlines_in_values=newlines))
    expected = [EXPECTED.get(line, ([[1, "x", 1.5]], []) if line == GOOD else ([], [])) for line in lines]
    assert same(values(rows), [row for delivered, _ in expected for row in delivered])
    assert [(x["reason"], x["original"]) for x in letters] == [x for _, refused in expected for x in refused]


def test_every_line_of_the_list_in_one_block(source):
    lines = [GOOD] * 300 + list(EXPECTED) + [GOOD] * 300
    rows, refused = outcome(source, lines)
    assert len(rows) == 600 + len(DELIVERED)
    assert len(refused) == len(REFUSED)


# ---- fields with line ends


@pytest.mark.parametrize(
    ("data", "rows", "refused"),
    [
        (b'1,"x\ny",2\n', [[1, "x\ny", 2.0]], []),
        (b'1,"x\r\ny\rz\n\n",2\r\n3,b,4\r\n', [[1, "x\r\ny\rz\n\n", 2.0], [3, "b", 4.0]], []),
        (b'1,"x\n",2', [[1, "x\n", 2.0]], []),
        # a quote too many costs its own line, not those behind it
        (b'1,x"x,2\n3,"a\nb",4\n', [[3, "a\nb", 4.0]], [("bare_quote", b'1,x"x,2')]),
        (b'1,"x,2\n3,"b",4\n5,c,6\n', [[3, "b", 4.0], [5, "c", 6.0]], [("bare_quote", b'1,"x,2')]),
        (b'1,"x,2\n3,b,4\n', [[3, "b", 4.0]], [("bare_quote", b'1,"x,2')]),
        (b'1,x,"2\n', [], [("bare_quote", b'1,x,"2')]),
        (b'1,"a\nb",2,9\n3,b,4\n', [[3, "b", 4.0]], [("ragged", b'1,"a\nb",2,9')]),
    ],
)
def test_line_ends_in_values(source, data, rows, refused):
    found, letters = read(source(HEADER + data, schema=SCHEMA, newlines_in_values=True))
    assert values(found) == rows
    assert [(x["reason"], x["original"]) for x in letters] == refused


def test_a_header_may_hold_a_line_end(source):
    rows, _ = read(source(b'"a\nb",c\n1,2\n', newlines_in_values=True, positions=False))
    assert rows == [{"a\nb": 1, "c": 2}]


def test_files_with_line_ends_in_values_are_not_cut(source):
    assert len(source(HEADER).parts("a.csv", 1 << 30)) == 16
    assert len(source(HEADER, newlines_in_values=True).parts("a.csv", 1 << 30)) == 1


# ---- cuts


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([GOOD, b"", b"\r", b"bad", b'2,"a,""b""",', b"1,2,3,4", b"3,\xc3\xa9,1\r", LONG]), max_size=12),
    st.booleans(),
    st.sampled_from([1, 3, 10, 57, 1000]),
    st.sampled_from([16, 100]),
)
def test_parts_of_any_size_give_the_same_rows_and_positions(tmp_path_factory, lines, bom, part, block):
    data = (_lines.BOM if bom else b"") + HEADER + b"\n".join(lines)
    path = tmp_path_factory.mktemp("cuts") / "a.csv"
    path.write_bytes(data)
    source = ReadFromCsv(str(path), schema=SCHEMA, max_row_bytes=50)
    whole = read(source, [FilePart(str(path), 0, None, len(data))])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(_lines, "BLOCK_BYTES", block)
        cut = read(source, [FilePart(str(path), a, min(a + part, len(data)), part) for a in range(0, len(data), part)])
    assert cut[0] == whole[0]
    kept = ("reason", "row_position", "detail", "original")
    assert [[x[k] for k in kept] for x in cut[1]] == [[x[k] for k in kept] for x in whole[1]]


FIELD = st.text(st.sampled_from('ab,;"\n\r é'), max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(FIELD, min_size=2, max_size=2), min_size=1, max_size=12),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([24, 1 << 20]),
)
@example([["\n", "\n"], ['"', ""]], csv.QUOTE_ALL, "\n", 24)
def test_what_pythons_own_writer_writes_is_read(tmp_path_factory, table, quoting, newline, block):
    if quoting == csv.QUOTE_MINIMAL:  # Python 3.11 leaves a lone return unquoted
        table = [[field.replace("\r", "") for field in row] for row in table]
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting, lineterminator=newline).writerows([["a", "b"], *table])
    path = tmp_path_factory.mktemp("python") / "a.csv"
    path.write_bytes(text.getvalue().encode())
    with pytest.MonkeyPatch.context() as m:
        m.setattr(_csv_rows, "BLOCK_BYTES", block)
        rows, letters = read(ReadFromCsv(str(path), schema="a text, b text", newlines_in_values=True))
    assert letters == []
    assert [[row["a"] or "", row["b"] or ""] for row in rows] == table


# ---- names and types


def test_names_come_from_the_header_of_each_file(tmp_path):
    (tmp_path / "1.csv").write_bytes(b"a,b\n1,x\n")
    (tmp_path / "2.csv").write_bytes(b"\xef\xbb\xbfb,c,\r\ny,2.5,z\r\n")
    rows, letters = read(ReadFromCsv(str(tmp_path), positions=False))
    assert (rows, letters) == ([{"a": 1, "b": "x"}, {"b": "y", "c": 2.5, "column_3": "z"}], [])


def test_files_without_a_header(source):
    assert read(source(b"1,x\n2,y\n", header=False, positions=False))[0] == [
        {"column_1": 1, "column_2": "x"},
        {"column_1": 2, "column_2": "y"},
    ]
    assert read(source(b"1,x\n", header=False, names=("n", "s"), positions=False))[0] == [{"n": 1, "s": "x"}]


def test_a_large_file_without_its_header_in_every_part(source):
    made = source(HEADER + b"".join(b"%d,x,1.5\n" % i for i in range(1000)))
    size = made.files()[0].size
    rows, _ = read(made, [FilePart(made.files()[0].path, a, min(a + 999, size), 999) for a in range(0, size, 999)])
    assert [row["a"] for row in rows] == list(range(1000))


def test_a_header_that_is_none_is_a_bad_file(source):
    for header in (b"a,a\n1,2\n", b'a,"b\n1,2\n', b"a,\xff\n1,2\n"):
        with pytest.raises(BadFileError, match=r"a\.csv: its first line"):
            read(source(header))
        _, letters = read(source(header, on_bad_file="dead_letter"))
        assert [x["reason"] for x in letters] == ["bad_file"]


def test_types_are_found_in_a_sample(source):
    made = source(
        b"id,price,ok,zip,big,none,long,date\n1,1.5,true,01234,9007199254740993,,0.1234567890123456789,2026-01-02\n-2,3,false,99999,1,,1,\n"
    )
    assert {name: str(kind) for name, kind in made.prepared(made.files())._types.items()} == {
        "id": "int64", "price": "double", "ok": "bool", "zip": "string", "big": "int64", "none": "string", "long": "string",
        "date": "string",
    }  # fmt: skip


def test_a_declared_schema(source):
    declared = "id int, price decimal(12,2), day date, at timestamptz, raw binary, ok boolean"
    data = b"id,price,day,at,raw,ok,more\n7,12.10,2026-01-02,2026-01-02 05:04:05+02:00,AP8=,true,1\n"
    rows, letters = read(source(data, schema=declared, positions=False))
    assert letters == []
    assert rows == [
        {
            "id": 7, "price": Decimal("12.10"), "day": date(2026, 1, 2), "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "raw": b"\x00\xff", "ok": True, "more": 1,
        }
    ]  # fmt: skip


def test_types_can_be_handed_over(source):
    nested = pa.list_(pa.struct([("sku", pa.string())]))
    made = source(b'id,items\n1,"[{""sku"":""a""}]"\n2,\n3,[1]\n4,x\n').with_types(pa.schema([("items", nested)]))
    rows, letters = read(made)
    assert [row["items"] for row in rows] == [[{"sku": "a"}], None]
    assert [(x["reason"], x["original"]) for x in letters] == [("wrong_type", b"3,[1]"), ("wrong_type", b"4,x")]


def test_null_values_are_those_declared_and_unquoted(source):
    rows, _ = read(source(b'a,b\nNULL,"NULL"\nNA,\n', null_values=("NULL", "NA"), positions=False))
    assert rows == [{"a": None, "b": "NULL"}, {"a": None, "b": None}]


def test_the_only_field_of_a_row_may_be_null(source):
    rows, _ = read(source(b"a\n1\n\n3\n", positions=False))
    assert rows == [{"a": 1}, {"a": None}, {"a": 3}]


@pytest.mark.parametrize(("delimiter", "data"), [(";", b"a;b\n1,5;x\n"), ("tab", b"a\tb\n1,5\tx\n"), ("|", b"a|b\n1,5|x\n")])
def test_other_delimiters(source, delimiter, data):
    assert read(source(data, delimiter=delimiter, positions=False))[0] == [{"a": "1,5", "b": "x"}]


def test_other_quotes(source):
    assert read(source(b"a,b\n'1,5','it''s'\n", quote="'", positions=False))[0] == [{"a": "1,5", "b": "it's"}]
    assert read(source(b'a,b\n"1,x"\n', quote="", positions=False))[0] == [{"a": '"1', "b": 'x"'}]


def test_columns_that_are_not_read_are_judged_all_the_same(source):
    rows, letters = read(source(HEADER + b"1,x,1.5\n2,y,z\n", schema=SCHEMA, columns=("b",), positions=False))
    assert rows == [{"b": "x"}]
    assert [x["reason"] for x in letters] == ["wrong_type"]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"delimiter": ";;"}, "delimiter"),
        ({"delimiter": '"'}, "quote"),
        ({"quote": "''"}, "quote"),
        ({"names": ("a",)}, "names"),
        ({"schema": "a wrong"}, "schema"),
    ],
)
def test_options_are_checked_when_the_source_is_made(options, where):
    with pytest.raises(ConfigError) as caught:
        ReadFromCsv("x.csv", **options)
    assert where in [p.where for p in caught.value.problems]


# ---- positions, event time, compression, replay


def test_positions_lead_to_the_row(source):
    data = HEADER + b'1,"x\ny",2\r\n\r\n3,b,4\n'
    rows, _ = read(source(data, newlines_in_values=True))
    assert [data[int(r["row_position"].rpartition(":")[2]) :][:2] for r in rows] == [b"1,", b"3,"]


def test_a_row_without_its_time_is_a_dead_letter_with_its_bytes(source):
    rows, letters = read(source(b"at,n\n02/01/2026,1\nnever,2\n,3\n", event_time="at", event_time_format="%d/%m/%Y"))
    assert [row["row_time"].day for row in rows] == [2]
    assert [(x["reason"], x["original"]) for x in letters] == [("bad_event_time", b"never,2"), ("bad_event_time", b",3")]


def test_compressed_files(source):
    rows, letters = read(source(gzip.compress(HEADER + (GOOD + b"\n") * 5), "a.csv.gz"))
    assert (len(rows), letters) == (5, [])


def test_dead_letters_are_parsed_again_as_in_their_place(source):
    made = source(HEADER + b"1,x,1.5\nragged\nz,y,1\n", schema=SCHEMA)
    _, letters = read(made)
    path = made.files()[0].path
    originals = [b"5,new,2.5", *[x["original"] for x in letters]]
    rows, again = sort(made.decode(originals, [f"{path}:6", *[x["row_position"] for x in letters]], "Replay"))
    assert (values(rows), rows[0]["row_position"]) == ([[5, "new", 2.5]], f"{path}:6")
    assert [(x["reason"], x["original"], x["row_position"]) for x in sorted(again, key=lambda x: x["row_position"])] == [
        (x["reason"], x["original"], x["row_position"]) for x in letters
    ]


# ---- the sink


def write(batches: list[RowBatch], tmp_path, **options) -> str:
    sink = WriteToCsv(str(tmp_path / "out"), **options)
    writer = sink.writer("r1")
    for batch in batches:
        assert list(writer.write(batch)) == []
    sink.publish("r1", writer.close())
    return str(tmp_path / "out")


def test_values_are_written_without_loss(tmp_path):
    batch = pa.record_batch(
        {
            "n": pa.array([2**63 - 1, None]),
            "s": ["", None],
            "t": ['a,"b"\r\nc', " x "],
            "d": pa.array([Decimal("0.10"), None], pa.decimal128(30, 2)),
            "at": pa.array([datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None]),
            "l": [[1, None], []],
        }
    )
    path = write([batch, batch], tmp_path)
    [file] = [f for f in (tmp_path / "out").iterdir() if f.is_file()]
    lines = list(csv.reader(io.StringIO(file.read_bytes().decode(), newline="")))
    assert lines[0] == ["n", "s", "t", "d", "at", "l"]
    assert lines[1] == ["9223372036854775807", "", 'a,"b"\r\nc', "0.10", "2026-01-02T03:04:05.000000Z", "[1,null]"]
    rows, letters = read(ReadFromCsv(path, newlines_in_values=True, positions=False).with_types(batch.schema))
    assert (rows, letters) == (batch.to_pylist() * 2, [])


@pytest.mark.parametrize("options", [{"delimiter": ";"}, {"delimiter": "tab"}, {"compression": "zstd"}, {"header": False}])
def test_what_is_written_is_read_again(tmp_path, options):
    batch = pa.record_batch({"n": [1, 2, 3], "s": ["a;b", "c,d", 'e\t"'], "f": [math.inf, math.nan, 0.1]})
    path = write([batch], tmp_path, **options)
    reading = {k: v for k, v in options.items() if k != "compression"}
    named = {} if options.get("header", True) else {"names": ("n", "s", "f")}
    rows, letters = read(ReadFromCsv(path, positions=False, schema="f double", **reading, **named))
    assert letters == []
    assert repr(sorted(rows, key=lambda row: row["n"])) == repr(batch.to_pylist())


def test_parts_of_a_source_in_order(source):
    assert [p.start for p in parts_of(source(HEADER + GOOD))] == [0]
