"""What every file source shares: which files, which parts, partition columns, event time, files that cannot be read."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.coders import StrUtf8Coder
from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

import tiebeam
from support.reading import read, sort
from tiebeam.dead_letters import claim, letters_of_rows
from tiebeam.errors import BadFileError, ConfigError
from tiebeam.io._event_time import event_times
from tiebeam.io._file_source import FilePart, FileSource
from tiebeam.io._hive import partition_of
from tiebeam.io._listing import find_files, partition_types
from tiebeam.io.jsonl import ReadFromJsonl, WriteToJsonl
from tiebeam.pipelines.replay import _DecodeFn
from tiebeam.rows import RowBatch, RowBatchCoder

EXTENSIONS = (".jsonl",)
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


def put(folder: Path, files: dict[str, str | bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def found(path: str, root: Path) -> list[str]:
    return [str(Path(f.path).relative_to(root)) for f in find_files(path, EXTENSIONS)]


# ---- which files


def test_a_folder_means_every_file_of_the_format_below_it(tmp_path):
    put(tmp_path, {"a.jsonl": "1", "b/c.JSONL": "1", "b/d.jsonl.gz": "1", "b/e.jsonl.zst": "1"})
    put(tmp_path, {"f.csv": "1", "g.gz": "1", "empty.jsonl": ""})
    put(tmp_path, {"_hidden/h.jsonl": "1", ".i.jsonl": "1", "b/_SUCCESS": "1", "b/.j/k.jsonl": "1"})
    assert found(str(tmp_path), tmp_path) == ["a.jsonl", "b/c.JSONL", "b/d.jsonl.gz", "b/e.jsonl.zst"]


def test_a_path_to_a_file_means_that_file_whatever_its_name(tmp_path):
    put(tmp_path, {"_odd.txt": "1"})
    assert found(str(tmp_path / "_odd.txt"), tmp_path) == ["_odd.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_still_that_file(tmp_path):
    put(tmp_path, {"a[1].jsonl": "1", "a1.jsonl": "1"})
    assert found(str(tmp_path / "a[1].jsonl"), tmp_path) == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("?.jsonl", ["a.jsonl", "b.jsonl"]),
        ("[!a].jsonl", ["b.jsonl"]),
        ("day=*/*.jsonl", ["day=1/c.jsonl", "day=2/d.jsonl"]),
        ("day=*", ["day=1/c.jsonl", "day=2/d.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "day=1/c.jsonl", "day=2/d.jsonl", "deep/er/e.jsonl"]),
        ("**", ["a.jsonl", "b.jsonl", "day=1/c.jsonl", "day=2/d.jsonl", "deep/er/e.jsonl"]),
        ("de*/**/e.jsonl", ["deep/er/e.jsonl"]),
        ("_*/*.jsonl", ["_h/g.jsonl"]),
        ("_h/*", ["_h/g.jsonl"]),
    ],
)
def test_globs(tmp_path, pattern, names):
    put(tmp_path, {"a.jsonl": "1", "b.jsonl": "1", "day=1/c.jsonl": "1", "day=2/d.jsonl": "1", "deep/er/e.jsonl": "1", "_h/g.jsonl": "1"})
    assert found(f"{tmp_path}/{pattern}", tmp_path) == names


def test_a_link_back_to_a_folder_above_is_not_followed_for_ever(tmp_path):
    put(tmp_path, {"in/a.jsonl": "1", "elsewhere/b.jsonl": "1"})
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/other").symlink_to(tmp_path / "elsewhere")
    assert found(str(tmp_path / "in"), tmp_path) == ["in/a.jsonl", "in/other/b.jsonl"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("empty", "is empty"),
        ("others", "no file of .jsonl or .ndjson or .json, but others"),
        ("in/b.jsonl", "did you mean"),
        ("nowhere/at/all", "no folder"),
        ("in/*.json", "no file matches"),
    ],
)
def test_nothing_to_read_is_told_before_anything_moves(tmp_path, path, says):
    put(tmp_path, {"in/a.jsonl": "{}", "others/x.txt": "1"})
    (tmp_path / "empty").mkdir()
    source = ReadFromJsonl(str(tmp_path / path))
    with pytest.raises(ConfigError, match=says) as caught:
        source.ping()
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ConfigError, match=says):
        beam.Pipeline(runner="FnApiRunner") | source


@pytest.mark.parametrize("locked", ["a.jsonl", "sub", "."])
def test_no_permission_is_told_before_anything_moves(locked):
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(put(Path(name) / "in", {"a.jsonl": "{}", "sub/b.jsonl": "{}"}))
        Path(name).chmod(0o755)
        (folder / locked).chmod(0)
        code = (
            "import os\nfrom tiebeam.errors import ConfigError\nfrom tiebeam.io._listing import find_files\n"
            "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
            f"try: find_files({str(folder)!r}, ('.jsonl',))\nexcept ConfigError as e: print(e)"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(tiebeam.__file__).parents[1])}
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=environment)
        (folder / locked).chmod(0o755)
    assert str(folder / locked) in said.stdout, said.stderr
    assert "grant the right" in said.stdout


def test_of_a_table_only_committed_files_count(tmp_path):
    batch = RowBatch.from_pydict({"n": [1, 2], "day": ["x", "y"]})
    sink = WriteToJsonl(str(tmp_path / "t"), partition_by=("day",))
    writer = sink.writer("r1")
    writer.write(batch)
    sink.publish("r1", writer.close())
    put(tmp_path, {"t/day=x/stray.jsonl": '{"n":9}'})
    for path, ns in (("t", [1, 2]), ("t/day=x", [1]), ("t/*", [1, 2]), ("t/day=x/*.jsonl", [1])):
        assert sorted(row["n"] for row in read(ReadFromJsonl(str(tmp_path / path)))[0]) == ns, path
    Path(find_files(str(tmp_path / "t"), EXTENSIONS)[0].path).unlink()
    with pytest.raises(ConfigError, match="the manifest lists"):
        ReadFromJsonl(str(tmp_path / "t")).ping()


# ---- partition columns


def test_partition_columns_come_from_the_path(tmp_path):
    files = {"shop=7/day=2026-01-02/a.jsonl": '{"n":1}', "shop=8/day=__HIVE_DEFAULT_PARTITION__/a.jsonl": '{"n":2}'}
    rows, _ = read(ReadFromJsonl(put(tmp_path, files), positions=False))
    assert rows == [{"n": 1, "shop": 7, "day": "2026-01-02"}, {"n": 2, "shop": 8, "day": None}]


def test_partition_values_are_decoded():
    assert partition_of("a=b%2Fc%20d/%C3%A9=x=y/=odd/f=g.jsonl") == {"a": "b/c d", "é": "x=y"}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "0"], pa.int64()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
        (["1", "007"], pa.string()),
        (["1", "x"], pa.string()),
        (["9223372036854775807"], pa.int64()),
        (["9223372036854775808"], pa.string()),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string()),
    ],
)
def test_a_partition_column_is_whole_numbers_only_when_every_value_is_one(values, kind):
    assert partition_types(f"k={v}/f" for v in values) == {"k": kind}


def test_partition_columns_are_the_same_for_every_file(tmp_path):
    path = put(tmp_path, {"k=1/a.jsonl": '{"n":1}', "k=x/b.jsonl": '{"n":2}', "c.jsonl": '{"n":3}'})
    assert {row["n"]: row["k"] for row in read(ReadFromJsonl(path))[0]} == {1: "1", 2: "x", 3: None}


# ---- columns


def test_columns_are_read_in_the_order_declared(tmp_path):
    path = put(tmp_path, {"k=1/a.jsonl": '{"a":1,"b":2,"c":3,"at":"2026-01-02"}'})
    rows, _ = read(ReadFromJsonl(path, columns=("c", "k", "a"), event_time="at"))
    assert list(rows[0]) == ["c", "k", "a", "row_time", "row_position"]
    rows, _ = read(ReadFromJsonl(path, columns=("k",), positions=False))
    assert rows == [{"k": 1}]


def test_a_column_that_no_row_has_is_told_before_anything_moves(tmp_path):
    path = put(tmp_path, {"a.jsonl": '{"amount":1,"created_at":"2026-01-02"}'})
    with pytest.raises(ConfigError) as caught:
        beam.Pipeline(runner="FnApiRunner") | ReadFromJsonl(path, columns=("amout",), event_time="created")
    assert "did you mean 'amount'" in str(caught.value)
    assert "did you mean 'created_at'" in str(caught.value)


# ---- event time


@pytest.mark.parametrize(
    ("value", "form", "zone", "expected"),
    [
        ("2026-01-02T03:04:05.678Z", "iso", "UTC", MOMENT),
        ("2026-01-02 05:04:05.678+02:00", "iso", "UTC", MOMENT),
        ("2026-01-02T03:04:05.678000999Z", "iso", "UTC", MOMENT),
        ("2026-01-02T04:04:05.678", "iso", "Europe/Paris", MOMENT),
        ("2026-01-02", "iso", "UTC", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-02-30T00:00:00Z", "iso", "UTC", None),
        ("yesterday", "iso", "UTC", None),
        ("", "iso", "UTC", None),
        (None, "iso", "UTC", None),
        ("2026-03-29T02:30:00", "iso", "Europe/Paris", None),
        ("2026-10-25T02:30:00", "iso", "Europe/Paris", datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        ("02/01/2026 03:04:05.678", "%d/%m/%Y %H:%M:%S.%f", "UTC", MOMENT),
        ("02/01/2026 04:04:05.678", "%d/%m/%Y %H:%M:%S.%f", "Europe/Paris", MOMENT),
        ("02/01/2026 05:04 +0200", "%d/%m/%Y %H:%M %z", "UTC", datetime(2026, 1, 2, 3, 4, tzinfo=UTC)),
        ("02/01/2026", "%d/%m/%Y", "UTC", datetime(2026, 1, 2, tzinfo=UTC)),
        ("31/02/2026", "%d/%m/%Y", "UTC", None),
        ("1767323045", "unix_secs", "UTC", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("1767323045.678", "unix_secs", "UTC", MOMENT),
        ("1e9", "unix_secs", "UTC", None),
        (1767323045678, "unix_millis", "UTC", MOMENT),
        (1767323045678000, "unix_micros", "UTC", MOMENT),
        (1767323045.678, "unix_secs", "UTC", MOMENT),
        (float("nan"), "unix_secs", "UTC", None),
        (2**62, "unix_secs", "UTC", None),
        (1767323045678, "iso", "UTC", None),
        (datetime(2026, 1, 2, 4, 4, 5, 678000), "iso", "Europe/Paris", MOMENT),
        (MOMENT, "iso", "Europe/Paris", MOMENT),
        (True, "unix_secs", "UTC", None),
    ],
)
def test_event_times(value, form, zone, expected):
    assert event_times(pa.array([value]), form, zone).to_pylist() == [expected]
    neighbour = {str: "2026-01-02T03:04:05.678Z"}.get(type(value), value) if form == "iso" else value
    column = pa.array([neighbour, value, neighbour], pa.array([value]).type)
    assert event_times(column, form, zone)[1].as_py() == expected


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(["2026-01-02T03:04:05Z", "2026-01-02 03:04", "2026-01-02T03:04:05.1234567+02:00", "2026-02-30", "x", None]),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_an_event_time_does_not_depend_on_its_neighbours(values, at):
    column = pa.array(values, pa.string())
    whole = event_times(column, "iso", "Europe/Paris")
    pieces = [event_times(piece, "iso", "Europe/Paris") for piece in (column[:at], column[at:]) if len(piece)]
    assert whole.to_pylist() == [v for piece in pieces for v in piece.to_pylist()]


def test_event_time_formats_are_checked_when_the_source_is_made():
    with pytest.raises(ConfigError) as caught:
        ReadFromJsonl("in/", event_time="at", event_time_format="dd/mm", event_time_zone="Mars/Olympus")
    assert [p.where for p in caught.value.problems] == ["event_time_format", "event_time_zone"]


def test_a_partition_can_be_the_event_time(tmp_path):
    rows, letters = read(ReadFromJsonl(put(tmp_path, {"day=2026-01-02/a.jsonl": '{"n":1}', "day=x/b.jsonl": '{"n":2}'}), event_time="day"))
    assert [row["row_time"] for row in rows] == [datetime(2026, 1, 2, tzinfo=UTC)]
    assert [letter["reason"] for letter in letters] == ["bad_event_time"]


# ---- files that cannot be read


class ReadFromTrouble(FileSource):
    """Delivers the first line of each file, and then says that the file is bad."""

    extensions = (".txt",)

    def read_part(self, part):
        with self.open(part.path) as file:
            yield RowBatch.from_pydict({"line": [file.read().decode()], "row_position": [f"{part.path}:0"]})
        raise BadFileError(f"{part.path} ends here")


def test_a_bad_file_stops_the_run_and_is_named(tmp_path):
    with pytest.raises(BadFileError, match=r"a\.txt ends here"):
        read(ReadFromTrouble(put(tmp_path, {"a.txt": "x"})))


def test_a_bad_file_can_be_a_dead_letter_and_its_rows_before_stay(tmp_path):
    path = put(tmp_path, {"a.txt": "x", "b.txt": "y"})
    rows, letters = read(ReadFromTrouble(path, on_bad_file="dead_letter"))
    assert [row["line"] for row in rows] == ["x", "y"]
    assert [(le["reason"], le["original"], le["row_position"]) for le in letters] == [
        ("bad_file", b"", f"{path}/{name}.txt") for name in "ab"
    ]


def test_a_file_that_is_gone_when_it_is_read_is_a_bad_file(tmp_path):
    source = ReadFromJsonl(put(tmp_path, {"a.jsonl": '{"n":1}'}))
    ready = source.prepared(source.files())
    with pytest.raises(BadFileError, match=r"gone\.jsonl cannot be opened"):
        list(ready.deliver(FilePart(f"{tmp_path}/gone.jsonl"), "Read"))


# ---- in a pipeline


def test_in_a_pipeline(tmp_path):
    first = '{"at":"2026-01-02T00:00:00Z"}\n{"at":"1999-01-01"}\nnot json\n'
    path = put(tmp_path, {"k=1/a.jsonl": first, "k=2/b.jsonl": '{"at":"2026-01-03"}'})
    seen = tmp_path / "seen"
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | ReadFromJsonl(path, event_time="at")
        [rejected] = claim(p)
        both = rows | beam.Map(lambda b, at=beam.DoFn.TimestampParam: f"{at.to_utc_datetime():%Y-%m-%d} {b.column('k')[0]} {b.num_rows}")
        more = rejected | beam.Map(lambda b: f"{b.column('reason')[0]}")
        (both, more) | beam.Flatten() | beam.io.WriteToText(str(seen), shard_name_template="")
    assert sorted(seen.read_text().splitlines()) == ["1999-01-01 1 2", "2026-01-03 2 1", "malformed"]


def test_nothing_is_pickled_on_the_way(tmp_path):
    p = beam.Pipeline(runner="FnApiRunner")
    rows = p | ReadFromJsonl(put(tmp_path, {"a.jsonl": "{}"}))
    assert isinstance(beam.coders.registry.get_coder(rows.element_type), RowBatchCoder)
    parts = next(t for t in _transforms(p) if t.full_label.endswith("/Spread"))
    assert isinstance(beam.coders.registry.get_coder(parts.outputs[None].element_type), StrUtf8Coder)
    claim(p)


def _transforms(p):
    waiting = [p._root_transform()]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.parts)


def test_parts_survive_their_journey():
    part = FilePart("gs://b/ü?.jsonl", 7, None, 9)
    assert FilePart.from_json(part.to_json()) == part


def test_the_fingerprint_follows_the_content(tmp_path):
    source = ReadFromJsonl(put(tmp_path, {"a.jsonl": "{}"}))
    first = source.fingerprint()
    assert source.fingerprint() == first
    put(tmp_path, {"b.jsonl": "{}"})
    second = source.fingerprint()
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert len({first, second, source.fingerprint()}) == 3


def test_a_sample_is_what_will_be_read(tmp_path):
    lines = "".join(f'{{"n":{i}}}\n' for i in range(10))
    source = ReadFromJsonl(put(tmp_path, {"a.jsonl": lines, "b.jsonl": "broken\n" + lines}))
    assert source.sample(12).column("n").to_pylist() == [*range(10), 0, 1]
    assert source.sample(100).num_rows == 20
    assert ReadFromJsonl(put(tmp_path / "none", {"a.jsonl": "", "b.jsonl": "\n"})).sample(5) is None


# ---- another filesystem


class RememberedFiles(FileSystem):
    """A filesystem in memory, as Beam's connectors to object stores are built."""

    files: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def scheme(cls):
        return "remembered"

    def _list(self, prefix):
        for path, content in sorted(self.files.items()):
            if path.startswith(prefix):
                yield FileMetadata(path, len(content), 1.0)

    def has_dirs(self):
        return False

    def open(self, path, mime_type="", compression_type=None):
        return io.BytesIO(self.files[path])

    def exists(self, path):
        return path in self.files

    def match(self, patterns, limits=None):
        if any("forbidden" in pattern for pattern in patterns):
            raise BeamIOError("no right")
        return super().match(patterns, limits)

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rpartition("/")[::2])

    def metadata(self, path):
        return FileMetadata(path, len(self.files[path]), 1.0)

    def size(self, path):
        return len(self.files[path])

    last_updated = mkdirs = create = copy = rename = delete = checksum = None


RememberedFiles.__abstractmethods__ = frozenset()


@pytest.fixture
def remembered():
    RememberedFiles.files = {
        "remembered://b/in/k=1/a.jsonl": b'{"n":1}\n{"n":2}\n',
        "remembered://b/in/k=2/b.jsonl.gz": gzip.compress(b'{"n":3}\n'),
        "remembered://b/in/_hidden/c.jsonl": b'{"n":4}\n',
        "remembered://b/in/other.txt": b"x",
    }
    yield "remembered://b/in"
    RememberedFiles.files = {}


@pytest.mark.parametrize(
    ("path", "ns"),
    [("", [1, 2, 3]), ("/", [1, 2, 3]), ("/k=1/a.jsonl", [1, 2]), ("/*/*.jsonl", [1, 2]), ("/k=*", [1, 2, 3]), ("/**", [1, 2, 3])],
)
def test_other_filesystems(remembered, path, ns):
    if path == "/**":
        RememberedFiles.files.pop("remembered://b/in/other.txt")
    rows, letters = read(ReadFromJsonl(remembered + path))
    assert (sorted(row["n"] for row in rows), letters) == (ns, [])
    assert {row["k"] for row in rows} <= {1, 2}


@pytest.mark.parametrize(
    ("path", "says"),
    [("remembered://b/nothing", "there is no file"), ("remembered://b/forbidden", "no right"), ("nosuch://b/x", "no filesystem serves")],
)
def test_other_filesystems_tell_what_is_wrong(remembered, path, says):
    with pytest.raises(ConfigError, match=says):
        ReadFromJsonl(path).ping()


def test_typed_rows_are_decoded_as_they_were_read(tmp_path):
    class ReadFromTyped(ReadFromTrouble):
        def read_part(self, part):
            yield RowBatch.from_pydict({"at": ["2026-01-02", "never"], "row_position": ["p:0", "p:1"]})

    source = ReadFromTyped(put(tmp_path, {"a.txt": "x"}), event_time="at")
    rows, letters = read(source)
    assert [letter["reason"] for letter in letters] == ["bad_event_time"]
    again, refused = sort(source.decode([letter["original"] for letter in letters], ["p:1"], "Again"))
    assert (again, [r["reason"] for r in refused]) == ([], ["bad_event_time"])
    assert rows[0]["row_time"] == datetime(2026, 1, 2, tzinfo=UTC)


def test_a_replay_delivers_typed_rows_once(tmp_path):
    rows = RowBatch.from_pydict({"n": [1, 2], "row_position": ["p:0", "p:1"]})
    letters = letters_of_rows("Check", rows, "odd", ["odd", "odd"]).batch
    source = ReadFromTrouble(put(tmp_path, {"a.txt": "x"}))
    assert sort(_DecodeFn("Decode", source).apply(letters))[0] == rows.to_pylist()
