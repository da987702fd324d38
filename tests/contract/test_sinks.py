"""What holds for every sink: staged rows are invisible, published ones appear together and once."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from contract import targets
from contract.cases import SOME
from contract.reading import ns_of
from support.pickling import no_pickled_batches, pickled_edges
from support.shelf import WriteToShelf, on_shelf
from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError
from tiebeam.staging import Staged

SINKS = targets.named("sink")
SOURCES = set(targets.named("source"))
READABLE = [name for name in SINKS if name in SOURCES]
ROWS = list(range(SOME.num_rows))


def run(sink, folder, *batches, run_id="r1", flags=()):
    """Writes batches in a pipeline of their own."""
    p = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(list(flags)))
    with Delivery(p, WriteToShelf(str(folder / "rejected")), run_id=run_id):
        p | beam.Create(list(batches)).with_output_types(pa.RecordBatch) | "Write" >> sink
    assert pickled_edges(p) == []
    with no_pickled_batches():
        p.run().wait_until_finish()
    assert on_shelf(folder / "rejected") == []


def stage(sink, run_id, *batches):
    writer = sink.writer(run_id)
    for batch in batches:
        assert list(writer.write(batch) or ()) == []
    staged = writer.close()
    assert sum(piece.rows for piece in staged) == sum(batch.num_rows for batch in batches)
    assert Staged.unpack([Staged.pack(staged)]) == sorted(staged, key=lambda s: s.handle), "facts must be JSON"
    return staged


@pytest.fixture(params=targets.with_gaps(READABLE, "delivery"))
def name(request):
    return request.param


@pytest.fixture(params=targets.with_gaps(READABLE, "replace"))
def replaced(request):
    """A place that can be replaced."""
    return request.param


def test_append_adds(name, tmp_path):
    run(targets.sink(name, tmp_path), tmp_path, SOME, run_id="r1")
    run(targets.sink(name, tmp_path), tmp_path, SOME.slice(0, 1), run_id="r2")
    assert ns_of(name, tmp_path) == sorted([*ROWS, 0])


def test_replace_replaces(replaced, tmp_path):
    name = replaced
    run(targets.sink(name, tmp_path), tmp_path, SOME, run_id="r1")
    run(targets.sink(name, tmp_path, mode="replace"), tmp_path, SOME.slice(1), run_id="r2")
    assert ns_of(name, tmp_path) == ROWS[1:]


def test_the_same_run_twice_changes_nothing(name, tmp_path):
    for _ in range(2):
        run(targets.sink(name, tmp_path), tmp_path, SOME)
        assert ns_of(name, tmp_path) == ROWS


def test_the_same_replacement_twice_changes_nothing(replaced, tmp_path):
    for _ in range(2):
        run(targets.sink(replaced, tmp_path, mode="replace"), tmp_path, SOME)
        assert ns_of(replaced, tmp_path) == ROWS


def test_a_run_repeated_after_others_does_not_undo_them(replaced, tmp_path):
    name = replaced
    run(targets.sink(name, tmp_path, mode="replace"), tmp_path, SOME.slice(0, 1), run_id="r1")
    run(targets.sink(name, tmp_path), tmp_path, SOME.slice(1, 1), run_id="r2")
    run(targets.sink(name, tmp_path, mode="replace"), tmp_path, SOME.slice(0, 1), run_id="r1")
    assert ns_of(name, tmp_path) == [0, 1]


def test_bundles_that_run_three_times_count_once(name, tmp_path):
    parts = [SOME.slice(i, 1) for i in ROWS]
    run(targets.sink(name, tmp_path), tmp_path, *parts, flags=["--direct_runner_bundle_repeat=2"])
    assert ns_of(name, tmp_path) == ROWS


def test_no_rows_leave_what_is_there(name, tmp_path):
    run(targets.sink(name, tmp_path), tmp_path, run_id="r0")
    assert ns_of(name, tmp_path) == []
    run(targets.sink(name, tmp_path), tmp_path, SOME, run_id="r1")
    run(targets.sink(name, tmp_path), tmp_path, run_id="r2")
    assert ns_of(name, tmp_path) == ROWS


def test_no_rows_replace_what_is_there(replaced, tmp_path):
    run(targets.sink(replaced, tmp_path), tmp_path, SOME, run_id="r1")
    run(targets.sink(replaced, tmp_path, mode="replace"), tmp_path, run_id="r2")
    assert ns_of(replaced, tmp_path) == []


def test_staged_rows_are_invisible_until_published_and_published_once(name, tmp_path):
    sink = targets.sink(name, tmp_path)
    staged = stage(sink, "r1", SOME.slice(0, 1)) + stage(sink, "r1", SOME.slice(1))
    assert ns_of(name, tmp_path) == []
    assert sink.publish("r1", staged) is True
    assert ns_of(name, tmp_path) == ROWS
    assert sink.publish("r1", staged) is False
    assert ns_of(name, tmp_path) == ROWS


def test_what_no_report_names_is_never_published(name, tmp_path):
    """A bundle that a runner runs again leaves a first attempt behind."""
    sink = targets.sink(name, tmp_path)
    stage(sink, "r1", SOME)
    again = stage(sink, "r1", SOME)
    sink.publish("r1", again)
    assert ns_of(name, tmp_path) == ROWS


def test_an_aborted_writer_leaves_nothing(name, tmp_path):
    sink = targets.sink(name, tmp_path)
    writer = sink.writer("r1")
    list(writer.write(SOME) or ())
    writer.abort()
    sink.publish("r1", stage(sink, "r1", SOME.slice(0, 1)))
    assert ns_of(name, tmp_path) == [0]


def test_a_writer_without_rows_stages_nothing(name, tmp_path):
    assert targets.sink(name, tmp_path).writer("r1").close() == []


def test_a_discarded_run_is_gone_and_may_be_run_again(name, tmp_path):
    sink = targets.sink(name, tmp_path)
    stage(sink, "r1", SOME)
    sink.discard("r1")
    sink.discard("r1")
    assert ns_of(name, tmp_path) == []
    sink.publish("r1", stage(sink, "r1", SOME))
    assert ns_of(name, tmp_path) == ROWS
    sink.discard("r1")
    assert ns_of(name, tmp_path) == ROWS


def test_a_run_id_is_any_name(name, tmp_path):
    for run_id in ("2026-11-24", "a/b c:d'\"ü", "a_b c:d'\"ü"):
        run(targets.sink(name, tmp_path), tmp_path, SOME.slice(0, 1), run_id=run_id)
    assert ns_of(name, tmp_path) == [0, 0, 0]


@pytest.mark.parametrize("name", SINKS)
def test_the_location_is_the_places_own(name, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    sink = targets.sink(name, here)
    modes = {"append", "replace"} & set(sink.modes)
    assert {sink.location()} == {targets.sink(name, here, mode=mode).location() for mode in modes}
    assert targets.sink(name, here).location() != targets.sink(name, there).location()


@pytest.mark.parametrize("name", SINKS)
def test_a_place_that_cannot_be_written_is_told_before_the_run(name, tmp_path):
    targets.sink(name, tmp_path).ping()
    assert list(tmp_path.iterdir()) == [], "a ping changes nothing"
    impossible = registry_sink(name, tmp_path)
    with pytest.raises(ConfigError):
        impossible.ping()


def registry_sink(name, folder):
    return type(targets.sink(name, folder))(**targets.target(name).impossible(folder))
