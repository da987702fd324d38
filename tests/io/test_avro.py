"""Avro: types both ways, blocks cut at sync markers, other writers' files, and damage."""

import datetime as dt
import random
import uuid
from decimal import Decimal
from pathlib import Path

import apache_beam as beam
import fastavro
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebeam.delivery import Delivery
from tiebeam.errors import BadFileError, ConfigError
from tiebeam.io import _avro_container as container
from tiebeam.io import avro
from tiebeam.io._file_source import FilePart
from tiebeam.io._manifest import committed_files
from tiebeam.io.avro import ReadFromAvro, WriteToAvro
from tiebeam.rows import RowBatch, concat

UNITS = ("s", "ms", "us", "ns")
SAME = {
    pa.null(): [None, None],
    pa.bool_(): [True, None, False],
    **{pa.type_for_alias(f"int{n}"): [-(2 ** (n - 1)), None, 2 ** (n - 1) - 1] for n in (8, 16, 32, 64)},
    **{pa.type_for_alias(f"uint{n}"): [0, None, 2**n - 1] for n in (8, 16, 32, 64)},
    pa.float16(): [1.5, None, float("inf")],
    pa.float32(): [1.5, None, float("-inf")],
    pa.float64(): [0.1, None, 5e-324],
    pa.decimal32(5, 2): [Decimal("-123.45"), None],
    pa.decimal64(15, 2): [Decimal("1234567890123.45"), None],
    pa.decimal128(38, 2): [Decimal("-" + "9" * 36 + ".99"), None, Decimal("0.01")],
    pa.decimal256(76, 2): [Decimal("9" * 74 + ".99"), None, Decimal("-0.01")],
    pa.decimal128(5, -2): [Decimal("1234500"), None],
    pa.string(): ["ü\0", None, ""],
    pa.large_string(): ["a", None],
    pa.binary(): [b"\xff\0", None, b""],
    pa.large_binary(): [b"x", None],
    pa.binary(3): [b"abc", None],
    pa.date32(): [dt.date(1, 1, 1), None, dt.date(9999, 12, 31)],
    pa.date64(): [dt.date(2020, 1, 1), None],
    pa.time32("s"): [dt.time(1, 2, 3), None],
    pa.time32("ms"): [dt.time(1, 2, 3, 4000), None],
    pa.time64("us"): [dt.time(1, 2, 3, 4), None],
    pa.time64("ns"): [1, None, 86_399_999_999_999],
    **{pa.timestamp(u, tz=z): [-1, None, 10**9] for u in UNITS for z in (None, "UTC", "Europe/Berlin")},
    **{pa.duration(u): [-1, None, 10**9] for u in UNITS},
    pa.list_(pa.int32()): [[1, None], None, []],
    pa.list_(pa.decimal128(5, 2)): [[Decimal("-1.20"), None]],
    pa.large_list(pa.string()): [["a"], None],
    pa.list_(pa.int32(), 2): [[1, 2], None, [None, 4]],
    pa.struct([("a", pa.int32()), ("b", pa.struct([("c", pa.string())]))]): [{"a": 1, "b": {"c": None}}, None, {"a": None, "b": None}],
    pa.struct([]): [{}, None],
    pa.map_(pa.string(), pa.int32()): [[("a", 1), ("b", None)], None, []],
    pa.list_(pa.struct([("x", pa.map_(pa.string(), pa.list_(pa.timestamp("s"))))])): [[{"x": [("a", [1, None])]}], None],
    pa.uuid(): [uuid.UUID(int=7).bytes, None],
    pa.json_(): ['{"a": 1}', None],
}
OTHER = {
    pa.string_view(): (pa.string(), ["a", None]),
    pa.binary_view(): (pa.binary(), [b"a", None]),
    pa.list_view(pa.int32()): (pa.list_(pa.int32()), [[1], None, [2, 3]]),
    pa.dictionary(pa.int8(), pa.string()): (pa.string(), ["a", None, "b", "a"]),
    pa.dictionary(pa.int32(), pa.int64()): (pa.int64(), [7, None, 7]),
    pa.run_end_encoded(pa.int32(), pa.int64()): (pa.int64(), [7, 7, None]),
}


def write(path, *batches, **options):
    sink = WriteToAvro(str(path), **options)
    writer = sink.writer("r")
    for batch in batches:
        assert not writer.write(batch)
    sink.publish("r", writer.close())
    return committed_files(str(path))


def read(path, **options):
    return ReadFromAvro(str(path), **{"positions": False, **options}).sample(10**9)


def foreign(path, fields, records, **options):
    """A file as fastavro writes it."""
    path = Path(path)
    path.parent.mkdir(exist_ok=True, parents=True)
    with path.open("wb") as f:
        fastavro.writer(f, {"type": "record", "name": "r", "fields": fields}, records, **options)
    return str(path)


@pytest.mark.parametrize("kind", list(SAME), ids=str)
def test_types_come_back(tmp_path, kind):
    batch = RowBatch.from_arrays([pa.array(SAME[kind], kind)], names=["c"])
    write(tmp_path, batch)
    found = read(tmp_path)
    found.validate(full=True)
    assert found.schema == batch.schema
    assert found.equals(batch)


@pytest.mark.parametrize("kind", list(OTHER), ids=str)
def test_encodings_come_back_plain(tmp_path, kind):
    plain, values = OTHER[kind]
    write(tmp_path, RowBatch.from_arrays([pa.array(values, kind)], names=["c"]))
    assert read(tmp_path).equals(RowBatch.from_arrays([pa.array(values, plain)], names=["c"]))


@pytest.mark.parametrize(
    ("name", "column", "says"),
    [
        ("odd", pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "no type for month_day_nano_interval"),
        ("odd", pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]), "no type for dense_union"),
        ("odd", pa.array([[(1, 1)]], pa.map_(pa.int32(), pa.int32())), "keys of a map are text"),
        ("odd", pa.array([{"ä": 1}]), "'ä' is no name"),
        ("unit price", pa.array([1]), "'unit price' is no name"),
        ("1st", pa.array([1]), "'1st' is no name"),
    ],
)
def test_what_avro_lacks_is_refused_by_name(tmp_path, name, column, says):
    writer = WriteToAvro(str(tmp_path)).writer("r")
    with pytest.raises(ConfigError, match=f"column {name}: .*{says}"):
        writer.write(RowBatch.from_arrays([pa.array([1]), column], names=["fine", name]))
    writer.abort()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_other_readers_read_what_is_written(tmp_path):
    when = dt.datetime(2026, 11, 24, 1, 2, 3, 4, tzinfo=dt.UTC)
    rows = [
        {"i": 1, "s": "ü", "d": Decimal("-1.20"), "t": when, "day": when.date(), "l": [1, None], "m": {"k": 2.5}, "r": {"x": True}},
        dict.fromkeys(["i", "s", "d", "t", "day", "l", "m", "r"]),
    ]
    kinds = [pa.int8(), pa.string(), pa.decimal128(9, 2), pa.timestamp("us", "UTC"), pa.date32(), pa.list_(pa.int16())]
    kinds += [pa.map_(pa.string(), pa.float64()), pa.struct([("x", pa.bool_())])]
    columns = {k: [list(r[k].items()) if k == "m" and r[k] else r[k] for r in rows] for k in rows[0]}
    arrays = [pa.array(values, kind) for values, kind in zip(columns.values(), kinds, strict=True)]
    batch = RowBatch.from_arrays(arrays, names=list(columns))
    [nested] = write(tmp_path / "nested", batch)
    [flat] = write(tmp_path / "flat", batch.select(["i", "s", "d", "t", "day"]))
    for name, names in ((nested, list(columns)), (flat, ["i", "s", "d", "t", "day"])):
        with Path(name).open("rb") as f:
            assert list(fastavro.reader(f)) == [{n: r[n] for n in names} for r in rows]


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstd", "none"])
def test_codecs(tmp_path, codec):
    batch = RowBatch.from_pydict({"a": np.arange(10_000), "b": ["some text"] * 10_000})
    write(tmp_path, batch, compression=codec)
    assert read(tmp_path).equals(batch)


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz"])
def test_codecs_of_other_writers(tmp_path, codec):
    name = foreign(tmp_path / "x.avro", [{"name": "a", "type": "string"}], [{"a": "text" * i} for i in range(100)], codec=codec)
    assert read(name)["a"].to_pylist() == ["text" * i for i in range(100)]


# ---- files of others

FOREIGN = [
    ("null", [None], pa.null()),
    ("boolean", [True, False], pa.bool_()),
    (["int", "null"], [1, None], pa.int32()),
    (["null", "long"], [None, -(2**63)], pa.int64()),
    (["null"], [None], pa.null()),
    (["int"], [1], pa.int32()),
    (["int", "long"], [1, 2**40], pa.int64()),
    (["null", "float", "double"], [None, 1.5], pa.float64()),
    ("bytes", [b"\xff"], pa.binary()),
    ({"type": "fixed", "name": "f", "size": 3}, [b"abc"], pa.binary(3)),
    ({"type": "enum", "name": "e", "symbols": ["A", "B"]}, ["B", "A", "B"], pa.string()),
    ({"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}, [Decimal("-1.20")], pa.decimal128(10, 2)),
    ({"type": "bytes", "logicalType": "decimal", "precision": 50, "scale": 2}, [Decimal("-1.20")], pa.decimal256(50, 2)),
    ({"type": "fixed", "name": "f", "size": 8, "logicalType": "decimal", "precision": 9}, [Decimal("15")], pa.decimal128(9, 0)),
    ({"type": "int", "logicalType": "date"}, [dt.date(1950, 1, 1)], pa.date32()),
    ({"type": "int", "logicalType": "time-millis"}, [dt.time(1, 2, 3)], pa.time32("ms")),
    ({"type": "long", "logicalType": "time-micros"}, [dt.time(1, 2, 3)], pa.time64("us")),
    ({"type": "long", "logicalType": "timestamp-millis"}, [dt.datetime(1950, 1, 1, tzinfo=dt.UTC)], pa.timestamp("ms", "UTC")),
    ({"type": "long", "logicalType": "timestamp-micros"}, [dt.datetime(2020, 1, 1, tzinfo=dt.UTC)], pa.timestamp("us", "UTC")),
    ({"type": "long", "logicalType": "local-timestamp-micros"}, [dt.datetime(2020, 1, 1)], pa.timestamp("us")),
    ({"type": "string", "logicalType": "uuid"}, ["00000000-0000-0000-0000-000000000007"], pa.string()),
    ({"type": "long", "logicalType": "unheard-of"}, [7], pa.int64()),
    ({"type": "array", "items": ["null", "int"]}, [[1, None], []], pa.list_(pa.int32())),
    ({"type": "map", "values": {"type": "array", "items": "string"}}, [{"a": ["x"]}], pa.map_(pa.string(), pa.list_(pa.string()))),
    (["null", {"type": "record", "name": "p", "fields": [{"name": "x", "type": "int"}]}], [{"x": 1}, None], pa.struct([("x", pa.int32())])),
]


@pytest.mark.parametrize(("avro_type", "values", "kind"), FOREIGN, ids=[str(f[0])[:60] for f in FOREIGN])
def test_types_of_other_writers(tmp_path, avro_type, values, kind):
    name = foreign(tmp_path / "x.avro", [{"name": "c", "type": avro_type}], [{"c": v} for v in values])
    found = read(name)
    found.validate(full=True)
    assert found.schema.field("c").type == kind
    assert found["c"].to_pylist() == [list(v.items()) if isinstance(v, dict) and pa.types.is_map(kind) else v for v in values]


def test_named_types_are_found_again(tmp_path):
    point = {"type": "record", "name": "point", "namespace": "geo", "fields": [{"name": "x", "type": "int"}]}
    fields = [{"name": "a", "type": point}, {"name": "b", "type": ["null", "geo.point"]}]
    name = foreign(tmp_path / "x.avro", fields, [{"a": {"x": 1}, "b": {"x": 2}}])
    assert read(name).to_pylist() == [{"a": {"x": 1}, "b": {"x": 2}}]


@pytest.mark.parametrize(
    ("avro_type", "value", "says"),
    [
        (["null", "int", "string"], "x", "a union of int32, string"),
        ({"type": "record", "name": "n", "fields": [{"name": "next", "type": ["null", "n"]}]}, {"next": None}, "'n' contains itself"),
    ],
)
def test_what_no_column_can_hold_is_refused_and_the_file_named(tmp_path, avro_type, value, says):
    name = foreign(tmp_path / "x.avro", [{"name": "c", "type": avro_type}], [{"c": value}])
    with pytest.raises(BadFileError, match=f"{name}.*{says}"):
        list(ReadFromAvro(name).read_part(FilePart(name)))


def test_a_file_without_records_is_refused(tmp_path):
    name = str(tmp_path / "x.avro")
    with Path(name).open("wb") as f:
        fastavro.writer(f, {"type": "array", "items": "int"}, [[1]])
    with pytest.raises(BadFileError, match=f"{name}.*does not hold records"):
        list(ReadFromAvro(name).read_part(FilePart(name)))


def test_files_of_different_units_meet(tmp_path):
    for unit, value in (("millis", 1), ("micros", 2)):
        fields = [{"name": "t", "type": {"type": "long", "logicalType": f"timestamp-{unit}"}}]
        foreign(tmp_path / f"{unit}.avro", fields, [{"t": value}])
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, WriteToAvro(str(tmp_path) + ".rejected")):
        times = p | ReadFromAvro(str(tmp_path), positions=False) | beam.FlatMap(lambda b: b["t"].cast(pa.int64()).to_pylist())
        assert_that(times, equal_to([1000, 2]))


def test_remembered_types_of_different_units_meet(tmp_path):
    columns = [pa.array([3], pa.duration("ms")), pa.array([4], pa.duration("us"))]  # a plain long in the file, both of them
    write(tmp_path, *[RowBatch.from_arrays([c], names=["d"]) for c in columns])
    source = ReadFromAvro(str(tmp_path), positions=False)
    source = source.prepared(source.files())
    found = concat([b for f in source.files() for b in source.read_part(FilePart(f.path))])["d"]
    assert found.type == pa.duration("us")
    assert sorted(found.cast(pa.int64()).to_pylist()) == [4, 3000]


_flat = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False),
    "string": st.text(max_size=20),
    "bytes": st.binary(max_size=20),
}
_field = st.tuples(st.sampled_from(list(_flat)), st.sampled_from(["plain", "null first", "null last"]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), fields=st.lists(_field, min_size=1, max_size=5))
def test_both_decoders_agree(tmp_path_factory, data, fields):
    kinds = [{"plain": t, "null first": ["null", t], "null last": [t, "null"]}[n] for t, n in fields]
    values = st.tuples(*[_flat[t] if n == "plain" else st.none() | _flat[t] for t, n in fields])
    records = [{f"c{i}": v for i, v in enumerate(r)} for r in data.draw(st.lists(values, min_size=1, max_size=30))]
    path = tmp_path_factory.mktemp("x") / "x.avro"
    name = foreign(path, [{"name": f"c{i}", "type": k} for i, k in enumerate(kinds)], records, sync_interval=50)
    with Path(name).open("rb") as f:
        header = container.read_header(f, name)
        blocks = list(container.read_blocks(f, header, name, 0, None))
    names = [f"c{i}" for i in range(len(fields))]
    assert avro._decoded_flat(header.schema, blocks, names) is not None
    assert read(name).to_pylist() == records
    [again] = write(path.parent / "again", read(name))
    with Path(again).open("rb") as f:
        assert list(fastavro.reader(f)) == records


# ---- blocks and parts


def many(tmp_path, rows=20_000, **options):
    records = [{"n": i, "s": f"text {i}"} for i in range(rows)]
    fields = [{"name": "n", "type": "long"}, {"name": "s", "type": "string"}]
    return foreign(tmp_path / "many.avro", fields, records, sync_interval=2000, **options)


@pytest.mark.parametrize("part_bytes", [100, 3001, 40_000])
def test_a_large_file_is_cut_at_sync_markers(tmp_path, monkeypatch, part_bytes):
    name = many(tmp_path, 3000 if part_bytes == 100 else 20_000)
    size = Path(name).stat().st_size
    monkeypatch.setattr(avro, "PART_BYTES", part_bytes)
    source = ReadFromAvro(name)
    parts = source.parts(name, size)
    assert len(parts) == -(-size // part_bytes)
    found = concat([batch for part in parts for batch in source.read_part(part)])
    assert found["n"].to_pylist() == list(range(found.num_rows))
    assert found.num_rows == (3000 if part_bytes == 100 else 20_000)
    assert len(set(found["row_position"].to_pylist())) == found.num_rows
    whole = concat(list(source.read_part(FilePart(name))))
    assert whole["row_position"].equals(found["row_position"])


def test_a_file_whose_sync_marker_is_no_random_number_is_not_cut(tmp_path, monkeypatch):
    import polars as pl

    name = str(tmp_path / "x.avro")
    pl.DataFrame({"a": list(range(10_000))}).write_avro(name)
    monkeypatch.setattr(avro, "PART_BYTES", 1000)
    assert len(ReadFromAvro(name).parts(name, Path(name).stat().st_size)) == 1


def test_a_marker_across_the_limit_of_a_search_is_found(tmp_path, monkeypatch):
    name = many(tmp_path, 2000)
    with Path(name).open("rb") as f:
        header = container.read_header(f, name)
        offsets = [b.offset for b in container.read_blocks(f, header, name, 0, None)]
        for search in (17, 64, 1000):
            monkeypatch.setattr(container, "_SEARCH_BYTES", search)
            for start in range(offsets[1] - 3, offsets[3] + 3, 7):
                expected = min(o for o in offsets if o >= start)
                assert container._first_block(f, header, start) == expected


def test_batches_are_bounded_and_blocks_gathered(tmp_path):
    name = many(tmp_path, 100_000)
    sizes = [b.num_rows for b in ReadFromAvro(name).read_part(FilePart(name))]
    assert sum(sizes) == 100_000
    assert max(sizes) <= 65_536
    assert len(sizes) <= 5


def test_small_batches_become_large_blocks(tmp_path):
    [name] = write(tmp_path, *[RowBatch.from_pydict({"a": np.arange(100) + 100 * i}) for i in range(3000)])
    with Path(name).open("rb") as f:
        blocks = list(container.read_blocks(f, container.read_header(f, name), name, 0, None))
    assert 2 <= len(blocks) <= 4
    assert read(tmp_path)["a"].to_pylist() == list(range(300_000))


def test_only_the_wanted_columns_are_read(tmp_path):
    name = many(tmp_path, 10)
    assert read(name, columns=("s",)).to_pydict() == {"s": [f"text {i}" for i in range(10)]}
    nested = RowBatch.from_pydict({"a": [[1]], "b": [2]})
    write(tmp_path / "nested", nested)
    assert read(tmp_path / "nested", columns=("b",)).to_pydict() == {"b": [2]}


@pytest.mark.parametrize("positions", [True, False])
def test_a_partition_column_alone(tmp_path, positions):
    write(tmp_path, RowBatch.from_pydict({"k": ["x", "y", "x"], "n": [1, 2, 3]}), partition_by=("k",))
    assert sorted(read(tmp_path, columns=("k",), positions=positions)["k"].to_pylist()) == ["x", "x", "y"]


def test_through_a_pipeline(tmp_path, monkeypatch):
    name = many(tmp_path / "in", 20_000)
    monkeypatch.setattr(avro, "PART_BYTES", 50_000)
    out = str(tmp_path / "out")
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, WriteToAvro(f"{out}.rejected"), run_id="r"):
        p | ReadFromAvro(name) | WriteToAvro(out)
    found = read(out)
    assert sorted(found["n"].to_pylist()) == list(range(20_000))
    assert found.schema.names == ["n", "s", "row_position"]


# ---- damage


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("codec", ["deflate", "snappy", "none"])
def test_a_truncated_file_keeps_its_sound_blocks_and_is_named(tmp_path, codec, nested):
    columns = {"a": np.arange(100_000), **({"l": [[i] for i in range(100_000)]} if nested else {})}
    [name] = write(tmp_path, RowBatch.from_pydict(columns), compression=codec)
    data = Path(name).read_bytes()
    with Path(name).open("rb") as f:
        header = container.read_header(f, name)
        blocks = list(container.read_blocks(f, header, name, 0, None))
    for end in (blocks[-1].offset + 1, blocks[-1].offset + 500, len(data) - 17, len(data) - 1):
        Path(name).write_bytes(data[:end])
        rows = 0
        with pytest.raises(BadFileError, match=f"{name} is damaged in the block at byte {blocks[-1].offset}"):
            for batch in ReadFromAvro(name).read_part(FilePart(name)):
                rows += batch.num_rows
        assert rows == sum(b.rows for b in blocks[:-1])


@pytest.mark.parametrize("codec", ["deflate", "none"])
def test_a_block_without_its_sync_marker_is_damage(tmp_path, codec):
    [name] = write(tmp_path, RowBatch.from_pydict({"a": np.arange(10)}), compression=codec)
    data = bytearray(Path(name).read_bytes())
    data[-1] ^= 1
    Path(name).write_bytes(data)
    with pytest.raises(BadFileError, match="no sync marker behind the block"):
        list(ReadFromAvro(name).read_part(FilePart(name)))


@pytest.mark.parametrize("end", [1, 3, 20, 100])
def test_a_truncated_header_is_named(tmp_path, end):
    [name] = write(tmp_path, RowBatch.from_pydict({"a": [1]}))
    Path(name).write_bytes(Path(name).read_bytes()[:end])
    with pytest.raises(BadFileError, match=f"{name} is not an Avro file"):
        list(ReadFromAvro(name).read_part(FilePart(name)))


def test_a_file_of_another_format_is_named(tmp_path):
    (tmp_path / "x.avro").write_bytes(b"a,b\n1,2\n" * 100)
    with pytest.raises(BadFileError, match=r"x\.avro is not an Avro file"):
        list(ReadFromAvro(str(tmp_path)).read_part(FilePart(str(tmp_path / "x.avro"))))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("codec", ["none", "deflate", "snappy", "zstd"])
def test_damaged_bytes_are_an_error_or_rows_but_nothing_else(tmp_path, codec, nested):
    rng = random.Random(7)
    columns = {"n": np.arange(300), "s": [f"ü{i}" * 3 for i in range(300)], "d": pa.array(range(300), pa.decimal128(9, 2))}
    if nested:
        columns |= {"l": [[i] * 3 for i in range(300)], "m": pa.array([[("a", i)] for i in range(300)], pa.map_(pa.string(), pa.int16()))}
    [name] = write(tmp_path, RowBatch.from_pydict(columns), compression=codec)
    data, sound = Path(name).read_bytes(), read(name)
    with Path(name).open("rb") as f:
        first = container.read_header(f, name).length
    refused = 0
    for _ in range(60):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            bad[rng.randrange(first, len(data))] = rng.randrange(256)
        Path(name).write_bytes(bad)
        try:
            for batch in ReadFromAvro(name, positions=False).read_part(FilePart(name)):
                batch.validate(full=True)
                assert codec != "snappy" or batch.equals(sound)  # its blocks carry a checksum
        except BadFileError as e:
            assert name in str(e)
            refused += 1
    assert refused > 10


def test_a_bad_file_becomes_a_dead_letter_and_its_neighbours_are_read(tmp_path):
    good, bad = foreign(tmp_path / "in/good.avro", [{"name": "a", "type": "int"}], [{"a": 1}]), tmp_path / "in/bad.avro"
    bad.write_bytes(Path(good).read_bytes()[:-20])
    rejected = str(tmp_path / "rejected")
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, WriteToAvro(rejected)):
        rows = p | ReadFromAvro(str(tmp_path / "in"), on_bad_file="dead_letter")
        assert_that(rows | beam.FlatMap(lambda b: b["a"].to_pylist()), equal_to([1]))
    [letter] = read(rejected).to_pylist()
    assert (letter["reason"], letter["source"]) == ("bad_file", str(bad))
