"""Sources that never end: watermark, checkpoint and reuse of readers without a runner, and exact jobs on Prism. The clock is logical."""

from __future__ import annotations

import json
from typing import ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from support import matrix, streams
from support.matrix import Trial
from support.streams import Pace, Part, Scripted, dealt, piece
from tiebeam.errors import ConfigError
from tiebeam.io import _endless
from tiebeam.io._endless import ReadEndless, _Adapted, _MarkCoder
from tiebeam.rows import ROW_TIME, RowBatch, with_column
from tiebeam.runners import safe_flags
from tiebeam.transforms._fold import Fold, Folded, Tables, micros_of
from tiebeam.transforms._keyed import Keyed

SECOND = 1_000_000
TIME = pa.timestamp("us", tz="UTC")


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """Readers of one test are not lent to another."""
    monkeypatch.setattr(_endless, "POOL", _endless._Pool())
    return _endless.POOL


def rows_at(*secs: float) -> RowBatch:
    return RowBatch.from_pydict({"key": ["a"] * len(secs), ROW_TIME: pa.array([int(s * SECOND) for s in secs]).cast(TIME)})


def at(secs: float) -> Timestamp:
    """What is reported when no row before this is expected."""
    return Timestamp(micros=int(secs * SECOND) - 1_000)


def part(*pieces: tuple[float, RowBatch], opens: float = -1000, slow: bool = False) -> Part:
    return Part(tuple(piece(rows, int(arrival * SECOND)) for arrival, rows in pieces), int(opens * SECOND), slow)


def scripted(*parts: Part, disorder: float = 0, lag: float = 0, ends: bool = False) -> Scripted:
    return Scripted(parts, int(disorder * SECOND), int(lag * SECOND), step=10 * SECOND, ends=ends)


def opened(source: Scripted, mark=None, whole: bool = True):
    return _Adapted(source, whole).create_reader(None, mark)


def told(reader) -> tuple[list[float], Timestamp]:
    """What one look gives: the seconds of its rows, and the watermark."""
    found = micros_of(reader.get_current().results[0]) / SECOND if reader.advance() else []
    return list(found), reader.get_watermark()


def read_on(reader) -> list[float]:
    """All rows up to the end of the source."""
    found: list[float] = []
    while reader.get_watermark() < MAX_TIMESTAMP:
        found += told(reader)[0]
    return found


def test_the_watermark_is_that_of_the_slowest_partition_less_the_disorder():
    reader = opened(
        scripted(
            part((100, rows_at(100)), (100, rows_at(150))), part((100, rows_at(70)), (100, rows_at(90)), (100, rows_at(120))), disorder=5
        )
    )
    assert told(reader) == ([100], MIN_TIMESTAMP)  # nothing is known of the second
    assert told(reader) == ([70], at(65))
    assert told(reader) == ([90], at(85))  # the earliest first
    assert told(reader) == ([120], at(95))


def test_a_partition_without_rows_moves_on_with_the_clock():
    """One that had none yet, and one that has none any more: both are as far as now less the lag."""
    reader = opened(scripted(part((100, rows_at(100))), part(), disorder=5, lag=20))
    assert told(reader) == ([100], at(80))
    assert told(reader) == ([], at(90))
    assert told(reader) == ([], at(100))


def test_a_partition_that_is_being_connected_to_holds_the_watermark():
    reader = opened(scripted(part((100, rows_at(100))), part((100, rows_at(100)), opens=115)))
    assert told(reader) == ([100], MIN_TIMESTAMP)
    assert [told(reader), told(reader)] == [([], MIN_TIMESTAMP)] * 2
    assert told(reader) == ([100], at(120))


def test_a_clock_that_runs_ahead_makes_no_other_row_late():
    """Neither those of other partitions nor those that follow in its own."""
    reader = opened(scripted(part((100, rows_at(3700)), (110, rows_at(110))), part((100, rows_at(100)))))
    assert told(reader) == ([3700], MIN_TIMESTAMP)
    assert told(reader) == ([100], at(100))
    assert told(reader) == ([], at(110))
    assert told(reader) == ([110], at(110))


def test_a_source_that_ends_tells_so_behind_its_last_row():
    reader = opened(scripted(part((100, rows_at(100))), ends=True))
    assert told(reader)[0] == [100]
    assert reader.get_watermark() < MAX_TIMESTAMP
    assert told(reader) == ([], MAX_TIMESTAMP)


def test_reading_goes_on_from_a_mark_as_bytes_with_the_watermark_it_had():
    source = scripted(
        part((100, rows_at(100)), (120, rows_at(120))), part((100, rows_at(90)), (120, rows_at(110))), disorder=5, lag=50, ends=True
    )
    coder = _MarkCoder()
    first = opened(source)
    assert [told(first)[0], told(first)[0]] == [[100], [90]]
    encoded = coder.encode(first.get_checkpoint_mark())
    assert json.loads(encoded) == {"version": 1, "partitions": {"0": [1, 100 * SECOND], "1": [1, 90 * SECOND]}}
    _endless.POOL = _endless._Pool()  # as in another process
    second = opened(source, coder.decode(encoded))
    assert second.start() is False
    assert second.get_watermark() == at(85)  # of the row at 90, which was read before the mark
    assert read_on(second) == [110, 120]
    assert coder.encode(coder.decode(encoded)) == encoded


def test_a_mark_of_another_version_is_refused():
    with pytest.raises(ConfigError, match="version 2"):
        _MarkCoder().decode(b'{"version":2,"partitions":{}}')


def test_a_reader_is_lent_to_whoever_resumes_where_it_stands():
    source = scripted(part((100, rows_at(100)), (100, rows_at(101)), (100, rows_at(102))))
    first = opened(source)
    first.advance()
    used, early = first._reader, first.get_checkpoint_mark()
    second = opened(source, early)
    assert told(second)[0] == [101]
    assert second._reader is used
    second.get_checkpoint_mark()
    other = opened(source, early)  # where nobody stands any more
    assert told(other)[0] == [101]
    assert other._reader is not used


def test_a_reader_that_breaks_in_a_bundle_is_closed_and_not_lent(pool):
    reader = opened(scripted(part((100, rows_at(100)))))
    reader.advance()
    used = reader._reader
    reader.close()
    assert used.closed
    assert not pool._idle


def test_a_reader_that_cannot_be_moved_is_closed(monkeypatch):
    made = []

    def fail(reader, positions):
        made.append(reader)
        raise OSError("no connection")

    monkeypatch.setattr(streams.ScriptedReader, "seek", fail)
    with pytest.raises(OSError, match="no connection"):
        opened(scripted(part())).start()
    assert made[0].closed


def test_finalization_tells_the_reader_its_positions():
    reader = opened(scripted(part((100, rows_at(100))), part()))
    reader.advance()
    used, mark = reader._reader, reader.get_checkpoint_mark()
    mark.finalize_checkpoint()
    assert used.committed == {"0": 1, "1": None}
    _MarkCoder().decode(_MarkCoder().encode(mark)).finalize_checkpoint()  # elsewhere there is nobody to tell


def test_prism_reads_all_partitions_in_one_restriction_and_others_each_in_its_own():
    source = scripted(part((100, rows_at(100))), part((100, rows_at(90)), (110, rows_at(95))), part(), ends=True)
    assert _Adapted(source, whole=True).split(20) == [_Adapted(source, whole=True)]
    parts = _Adapted(source, whole=False).split(20)
    assert [read_on(each.create_reader(None, None)) for each in parts] == [[100], [90, 95], []]
    assert parts[1].split(20) == [parts[1]]


# On runners.


class Count(Fold):
    """Numbers the rows of each key by their time."""

    keys: ClassVar = {"rows": ("key",)}

    def fold(self, state: Tables, rows: Tables, upto: int) -> Folded:
        seen = dict(zip(*(state["seen"].column(c).to_pylist() for c in ("key", "n")), strict=True)) if state else {}
        if "rows" not in rows:
            return Folded(state=state)
        batch = rows["rows"].take(pa.array(np.argsort(micros_of(rows["rows"]), kind="stable")))
        numbers = []
        for key in batch.column("key").to_pylist():
            seen[key] = seen.get(key, 0) + 1
            numbers.append(seen[key])
        kept = RowBatch.from_pydict({"key": pa.array(seen.keys(), pa.string()), "n": pa.array(seen.values(), pa.int64())})
        return Folded([with_column(batch, "n", pa.array(numbers))], {"seen": kept})


def many(n: int, seed: int) -> RowBatch:
    """Rows with times all different, in no order."""
    chance = np.random.default_rng(seed)
    times = (chance.permutation(n) - 5) * SECOND
    return RowBatch.from_pydict({"key": [f"k{k}" for k in chance.integers(0, 7, n)], ROW_TIME: pa.array(times).cast(TIME)})


def numbered(batch: RowBatch) -> matrix.Rows:
    seen: dict[str, int] = {}
    expected = []
    for row in sorted(batch.to_pylist(), key=lambda row: row[ROW_TIME]):
        seen[row["key"]] = seen.get(row["key"], 0) + 1
        expected.append({**row, "n": seen[row["key"]]})
    return matrix.canonical(expected)


SKEWS = {
    "skewed": streams.SKEWED,
    "one of them late, one never used": (Pace(weight=1), Pace(weight=1, opens=0.7), Pace(weight=0)),
    "all slow": (Pace(slow=True), Pace(slow=True, weight=3), Pace(slow=True, opens=0.3)),
}


@pytest.mark.parametrize("name", SKEWS)
def test_on_prism_keyed_state_is_exact_over_skewed_partitions(prism, name):
    batch = many(500, 1)
    source = dealt([batch], SKEWS[name], disorder=25 * SECOND, seed=3)
    assert sum(1 for part in source.parts if part.pieces) > 1
    rows, letters = matrix.run({"t": Trial(Keyed(Count(), tick=10 * SECOND, shards=3), [])}, reading(source), prism.flags())["t"]
    assert (rows, letters) == (numbered(batch), [])


def reading(source: Scripted):
    def begin(p, trials):
        return {name: {"": p | ReadEndless(source, poll_secs=0.01)} for name in trials}

    return begin


def test_on_prism_windows_of_beam_are_exact(prism):
    """Each row is in the one pane of its window: none is late, none twice."""
    batch = many(400, 2)
    source = dealt([batch], disorder=25 * SECOND, seed=5)

    def panes(rows):
        stamp = beam.FlatMap(lambda b: [beam.window.TimestampedValue(("all", 1), t / SECOND) for t in micros_of(b)])
        counts = rows | stamp.with_output_types(tuple[str, int]) | beam.WindowInto(FixedWindows(60)) | beam.GroupByKey()
        return counts | beam.ParDo(_PaneFn()).with_output_types(RowBatch)

    rows, _ = matrix.run({"t": Trial(panes, [])}, reading(source), prism.flags())["t"]
    starts, counts = np.unique(micros_of(batch) // (60 * SECOND) * 60, return_counts=True)
    assert {row["start"]: row["n"] for row in rows} == dict(zip(starts.tolist(), counts.tolist(), strict=True))
    assert len(rows) == len(starts)


class _PaneFn(beam.DoFn):
    def process(self, keyed, window=beam.DoFn.WindowParam):
        yield RowBatch.from_pydict({"start": [int(window.start)], "n": [sum(keyed[1])]})


def test_a_source_with_a_declared_end_gives_the_same_rows_in_batch():
    batch = many(200, 3)
    source = dealt([batch], disorder=25 * SECOND, seed=4, bounded=True)

    def begin(p, trials):
        rows = p | ReadEndless(source, poll_secs=0)
        assert rows.is_bounded
        return {name: {"": rows} for name in trials}

    rows, letters = matrix.run({"t": Trial(Keyed(Count(), tick=10 * SECOND), [])}, begin, matrix.FNAPI)["t"]
    assert (rows, letters) == (numbered(batch), [])


@pytest.mark.parametrize(
    ("flags", "poll_secs", "said"),
    [
        (["--runner=FnApiRunner"], 1, "reads no watermark.*PrismRunner"),
        (["--runner=DirectRunner"], 1, "picks one of three runners.*PrismRunner"),
        (["--runner=BundleBasedDirectRunner"], 1, "timers do not hold back.*PrismRunner"),
        (["--runner=SparkRunner"], 1, "finalization fail there.*Flink"),
        (["--runner=PrismRunner"], 1, "state is overwritten.*add --experiments=prism_disable_sdf_split"),
        (["--runner=FlinkRunner"], 0.5, "less than one second.*whole seconds"),
    ],
)
def test_a_runner_that_cannot_run_streams_is_refused_when_the_graph_is_built(flags, poll_secs, said):
    p = beam.Pipeline(options=PipelineOptions(flags))
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        _ = p | ReadEndless(scripted(part()), poll_secs=poll_secs)


def test_others_are_not_refused():
    flink = ["--runner=FlinkRunner", "--flink_master=flink:8081", *safe_flags({})]
    for flags in (flink, ["--runner=PrismRunner", "--experiments=prism_disable_sdf_split"]):
        rows = beam.Pipeline(options=PipelineOptions(flags)) | ReadEndless(scripted(part()))
        assert not rows.is_bounded
        assert rows.element_type is RowBatch


def test_a_source_without_partitions_is_refused():
    with pytest.raises(ConfigError, match="no partitions"):
        opened(scripted())
