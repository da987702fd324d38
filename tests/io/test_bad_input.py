"""Input as bad as it comes, file by file: what is good is delivered, what is bad is kept, and its neighbours are untouched."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest

from support.reading import parts_of, read
from tiebeam.errors import BadFileError
from tiebeam.io import _json_rows
from tiebeam.io.csv import ReadFromCsv
from tiebeam.io.jsonl import ReadFromJsonl
from tiebeam.rows import RowBatch

FORMATS = {
    "jsonl": (ReadFromJsonl, b"", b'{"n":%d,"s":"%s"}', "n bigint, s text"),
    "csv": (ReadFromCsv, b"n,s\n", b"%d,%s", "n bigint, s text"),
}
LONG = 200 << 20


@pytest.fixture(params=FORMATS)
def kind(request):
    return request.param


def lines_of(kind, *texts: bytes) -> list[bytes]:
    return [FORMATS[kind][2] % (n, text) for n, text in enumerate(texts)]


def made(kind, folder, data: bytes, name: str = "", **options):
    cls, header, _, schema = FORMATS[kind]
    path = folder / (name or f"a.{kind}")
    path.write_bytes(header + data)
    return cls(str(path), schema=schema, **options)


def seen(source) -> tuple[list[str], list[tuple[str, bytes]]]:
    rows, letters = read(source)
    return [row["s"] for row in rows], [(x["reason"], x["original"]) for x in letters]


def test_invalid_utf8(kind, tmp_path):
    lines = lines_of(kind, b"a", b"b\xff", b"\xc3\xa9")
    assert seen(made(kind, tmp_path, b"\n".join(lines))) == (["a", "é"], [("invalid_utf8", lines[1])])


def test_invalid_utf8_in_a_large_block(kind, tmp_path):
    long = "é".encode() * 200_000
    lines = lines_of(kind, *[b"\xff" if i % 50 == 7 else b"\xc3\xa9" * 500 for i in range(400)], long, b"x\xff", long + b"\xff")
    rows, letters = seen(made(kind, tmp_path, b"\n".join(lines)))
    assert (len(rows), [original for _, original in letters]) == (393, [*lines[7:400:50], *lines[401:]])


def test_nul(kind, tmp_path):
    lines = lines_of(kind, b"a", b"b\0", b"c")
    assert seen(made(kind, tmp_path, b"\n".join(lines))) == (["a", "c"], [("malformed", lines[1])])


def test_a_byte_order_mark(kind, tmp_path):
    source = made(kind, tmp_path, b"\n".join(lines_of(kind, b"a", b"b")))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert seen(source) == (["a", "b"], [])


def test_mixed_line_ends_and_blank_lines(kind, tmp_path):
    a, b, c = lines_of(kind, b"a", b"b", b"c")
    assert seen(made(kind, tmp_path, a + b"\r\n\n\r\n" + b + b"\n" + c + b"\r\n\r\n")) == (["a", "b", "c"], [])


def test_a_last_line_without_its_end(kind, tmp_path):
    a, b = lines_of(kind, b"a", b"b")
    assert seen(made(kind, tmp_path, a + b"\n" + b)) == (["a", "b"], [])
    assert seen(made(kind, tmp_path, a + b"\n" + (b[:-3] if kind == "jsonl" else b"1")))[0] == ["a"]


def test_a_file_without_rows(kind, tmp_path):
    for data in (b"\n", b"\r\n\n"):
        assert seen(made(kind, tmp_path, data)) == ([], [])


def test_every_line_bad(kind, tmp_path):
    rows, letters = seen(made(kind, tmp_path, b"\xff,\n" * 1000))
    assert (rows, set(letters), len(letters)) == ([], {("invalid_utf8", b"\xff,")}, 1000)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_a_line_of_200_mb(kind, tmp_path, compressed):
    a, b = lines_of(kind, b"a", b"b")
    header = FORMATS[kind][1]
    path = tmp_path / (f"a.{kind}.gz" if compressed else f"a.{kind}")
    with gzip.open(path, "wb", compresslevel=1) if compressed else path.open("wb") as file:
        file.write(header + a + b"\n")
        if compressed:
            for _ in range(LONG >> 20):
                file.write(b"x" * (1 << 20))
        else:
            file.seek(LONG, 1)  # a hole in the file reads as NUL
        file.write(b"\n" + b + b"\n")
    source = FORMATS[kind][0](str(path), schema=FORMATS[kind][3])
    tracemalloc.start()
    rows, letters = read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row["s"] for row in rows] == ["a", "b"]
    assert [(x["reason"], len(x["original"])) for x in letters] == [("too_long", 65_536)]
    assert f"{LONG:,} bytes" in letters[0]["detail"]
    assert peak < 100 << 20


def test_a_long_line_is_too_long_wherever_the_file_is_cut(kind, tmp_path):
    a, long, b = lines_of(kind, b"a", b"x" * 5000, b"b")
    source = made(kind, tmp_path, b"\n".join([a, long, b]), max_row_bytes=1000)
    assert seen(source) == (["a", "b"], [("too_long", long)])
    assert seen(made(kind, tmp_path, b"\n".join([a, long, b]))) == (["a", "x" * 5000, "b"], [])


@pytest.mark.parametrize("where", ["in the middle", "at the end", "of nothing"])
def test_truncated_gzip(kind, tmp_path, where):
    text = FORMATS[kind][1] + b"\n".join(lines_of(kind, *[b"%d" % (i * 7919) for i in range(20_000)]))
    whole = gzip.compress(text)
    cut = {"in the middle": whole[: len(whole) // 2], "at the end": whole[:-4], "of nothing": whole[:5]}[where]
    source = made(kind, tmp_path, b"", name=f"a.{kind}.gz")
    (tmp_path / f"a.{kind}.gz").write_bytes(cut)
    with pytest.raises(BadFileError, match=rf"a\.{kind}\.gz breaks off"):
        read(source)
    source.on_bad_file = "dead_letter"
    rows, letters = read(source)
    assert [x["reason"] for x in letters] == ["bad_file"]
    least = {"in the middle": 8000, "at the end": 19_999, "of nothing": 0}[where]
    assert least <= len(rows) <= 20_000
    assert [row["s"] for row in rows] == [str(i * 7919) for i in range(len(rows))]


def test_damaged_gzip(kind, tmp_path):
    whole = bytearray(gzip.compress(FORMATS[kind][1] + b"\n".join(lines_of(kind, *[b"%d" % (i * 7919) for i in range(20_000)]))))
    whole[len(whole) // 2] ^= 0xFF
    source = made(kind, tmp_path, b"", name=f"a.{kind}.gz")
    (tmp_path / f"a.{kind}.gz").write_bytes(whole)
    with pytest.raises(BadFileError, match=rf"a\.{kind}\.gz is damaged|a\.{kind}\.gz breaks off"):
        read(source)


def test_a_file_that_is_not_compressed_as_its_name_says(kind, tmp_path):
    source = made(kind, tmp_path, b"\n".join(lines_of(kind, b"a")), name=f"a.{kind}.zst")
    with pytest.raises(BadFileError, match="is damaged"):
        read(source)


def test_two_files_with_different_schemas(tmp_path):
    (tmp_path / "1.jsonl").write_bytes(b'{"n":1,"s":"a"}\n')
    (tmp_path / "2.jsonl").write_bytes(b'{"s":"b","new":{"x":1}}\n')
    source = ReadFromJsonl(str(tmp_path), positions=False)
    assert read(source) == ([{"n": 1, "s": "a", "new": None}, {"n": None, "s": "b", "new": '{"x": 1}'}], [])
    declared = ReadFromJsonl(str(tmp_path), schema="n bigint, s text", positions=False)
    ready = declared.prepared(declared.files())
    batches = [b for part in parts_of(declared) for b in ready.deliver(part, "Read")]
    assert [b.to_pylist() for b in batches] == [[{"n": 1, "s": "a"}], [{"n": None, "s": "b", "new": '{"x": 1}'}]]


BAD = [
    b'{"n":"x"}', b"plain text", b'{"n":1', b'{"n":1,"n":2}', b'{"s":"\xff"}', b'{"s":"\0"}', b"[1]", b'{"new":1}', b'{"n":1e30}',
    b'{"s":"\\ud800"}',
]  # fmt: skip


def test_a_hundred_bad_lines_in_a_million_do_not_make_the_parser_start_again(tmp_path, monkeypatch):
    """One call of the parser for the block, one for what was judged alone: bad lines of the usual kinds never reach it."""
    calls = []
    real = _json_rows.pl.read_ndjson
    monkeypatch.setattr(_json_rows.pl, "read_ndjson", lambda data, **k: calls.append(len(data)) or real(data, **k))
    lines = [b'{"n":%d,"s":"x"}' % i for i in range(20_000)]
    for i, bad in enumerate(BAD * 3):
        lines.insert(600 * i, bad)
    source = made("jsonl", tmp_path, b"\n".join(lines) + b"\n")
    rows, letters = read(source)
    assert (len(rows), len(letters)) == (20_003, 27)
    assert len([size for size in calls if size > 10_000]) == 1


def test_positions_of_rows_and_dead_letters_are_all_different(kind, tmp_path):
    lines = [line for i in range(500) for line in (lines_of(kind, b"a")[0], b"\xff", b"")]
    rows, letters = read(made(kind, tmp_path, b"\n".join(lines)))
    assert len({x["row_position"] for x in rows + letters}) == 1000


def test_a_batch_never_holds_rows_of_two_shapes(tmp_path):
    lines = [b'{"n":%d%s}' % (i, [b"", b',"x":1', b',"y":2', b',"x":1,"y":2', b',"x":null'][i % 5]) for i in range(3000)]
    source = made("jsonl", tmp_path, b"\n".join(lines))
    ready = source.prepared(source.files())
    batches = [b for part in parts_of(source) for b in ready.deliver(part, "Read")]
    assert all(isinstance(b, RowBatch) and not any(b.column(c).null_count for c in ("x", "y") if c in b.schema.names) for b in batches)
    assert {tuple(n for n in b.schema.names if n in "xy") for b in batches} == {(), ("x",), ("y",), ("x", "y")}
    assert sum(b.num_rows for b in batches) == 3000
