"""Delivery: nothing lost, nothing doubled, nothing visible too early, and the letters come first."""

from __future__ import annotations

import os
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from support.pickling import no_pickled_batches, pickled_edges
from support.shelf import ReadFromShelf, WriteToShelf, numbers, on_shelf, staged_on_shelf
from tiebeam import delivery
from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError
from tiebeam.rows import RowBatch
from tiebeam.staging import Staged


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")


@pytest.fixture
def rejected(tmp_path):
    return str(tmp_path / "rejected")


def run(source, sink, rejected, *flags, **settings):
    p = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(list(flags)))
    with Delivery(p, WriteToShelf(rejected), **settings):
        p | source | sink
    assert pickled_edges(p) == []
    with no_pickled_batches():
        return p.run().wait_until_finish()


def ns(path):
    return [row["n"] for row in on_shelf(path)]


def test_every_row_is_either_published_or_kept(out, rejected):
    run(ReadFromShelf(50, bad_every=7), WriteToShelf(out, refuse_from=40), rejected, run_id="r1", name="job")
    kept = on_shelf(rejected)
    assert ns(out) == [n for n in range(40) if n % 7]
    assert sorted(row["row_position"] for row in kept) == sorted(f"numbers:{n}" for n in range(50) if n >= 40 or n % 7 == 0)
    assert {(row["step"], row["reason"]) for row in kept} == {("ReadFromShelf", "unlucky"), ("WriteToShelf", "too_high")}
    assert {(row["run_id"], row["pipeline"], row["attempt"]) for row in kept} == {("r1", "job", 1)}
    assert staged_on_shelf(out) == staged_on_shelf(rejected) == []


def test_the_same_run_again_changes_nothing_and_another_run_appends(out, rejected):
    run(ReadFromShelf(5), WriteToShelf(out), rejected, run_id="r1")
    run(ReadFromShelf(5), WriteToShelf(out), rejected, run_id="r1")
    assert ns(out) == [0, 1, 2, 3, 4]
    run(ReadFromShelf(2), WriteToShelf(out), rejected, run_id="r2")
    assert ns(out) == [0, 0, 1, 1, 2, 3, 4]


def test_replace_leaves_the_new_rows_only_and_none_when_there_are_none(out, rejected):
    run(ReadFromShelf(5), WriteToShelf(out), rejected)
    run(ReadFromShelf(2), WriteToShelf(out, mode="replace"), rejected)
    assert ns(out) == [0, 1]
    run(ReadFromShelf(0), WriteToShelf(out), rejected)
    assert ns(out) == [0, 1]
    run(ReadFromShelf(0), WriteToShelf(out, mode="replace"), rejected)
    assert ns(out) == []


@pytest.mark.parametrize("phase", ["write", "close", "publish"])
def test_nothing_is_published_when_a_phase_fails_and_the_next_run_heals(phase, out, rejected):
    with pytest.raises(Exception, match="shelf"):
        run(ReadFromShelf(20), WriteToShelf(out, broken=phase), rejected, run_id="r1")
    assert ns(out) == []
    if phase != "publish":
        assert staged_on_shelf(out) == []
    run(ReadFromShelf(20), WriteToShelf(out), rejected, run_id="r1")
    assert ns(out) == list(range(20))


def test_nothing_is_published_when_a_step_beside_the_sink_fails(out, rejected):
    def fail(batch):
        raise OSError("elsewhere")

    p = beam.Pipeline(runner="FnApiRunner")
    with Delivery(p, WriteToShelf(rejected)):
        rows = p | ReadFromShelf(20, bad_every=3)
        rows | WriteToShelf(out)
        rows | beam.Reshuffle() | "Fail" >> beam.Map(fail)
    with pytest.raises(Exception, match="elsewhere"):
        p.run().wait_until_finish()
    assert ns(out) == []


def test_rows_stay_invisible_when_the_letters_cannot_be_kept(out, rejected):
    p = beam.Pipeline(runner="FnApiRunner")
    with Delivery(p, WriteToShelf(rejected, broken="publish")):
        p | ReadFromShelf(20, bad_every=3) | WriteToShelf(out)
    with pytest.raises(Exception, match="the shelf fell down"):
        p.run().wait_until_finish()
    assert ns(out) == []


def test_too_many_rejected_publishes_only_the_letters(out, rejected):
    with pytest.raises(Exception, match=r"TooManyRejectedError: 4 of 10 rows read were rejected, a share of 0\.4000"):
        run(ReadFromShelf(10, bad_every=3), WriteToShelf(out), rejected, max_rejected_ratio=0.39)
    assert ns(out) == []
    assert len(on_shelf(rejected)) == 4
    run(ReadFromShelf(10, bad_every=3), WriteToShelf(out), rejected, max_rejected_ratio=0.4)
    assert len(ns(out)) == 6


def test_rows_that_the_sink_refuses_count_as_rejected_too(out, rejected):
    with pytest.raises(Exception, match="5 of 10 rows read were rejected"):
        run(ReadFromShelf(10), WriteToShelf(out, refuse_from=5), rejected, max_rejected_ratio=0)


def test_a_share_of_nothing_is_not_judged(out, rejected):
    run(ReadFromShelf(0), WriteToShelf(out), rejected, max_rejected_ratio=0)
    p = beam.Pipeline(runner="FnApiRunner")
    judged = Delivery(p, WriteToShelf(rejected), max_rejected_ratio=0.5)
    with pytest.raises(ConfigError, match="no source says how many rows were read"), judged:
        p | beam.Create([numbers(0, 3)]) | WriteToShelf(out)


def test_two_sinks_publish_together_behind_one_store(tmp_path, rejected):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, WriteToShelf(rejected)):
        rows = p | ReadFromShelf(20, bad_every=5)
        rows | "Write A" >> WriteToShelf(a, refuse_from=18)
        rows | "Write B" >> WriteToShelf(b, refuse_from=19)
    assert ns(a) == [n for n in range(18) if n % 5]
    assert ns(b) == [n for n in range(19) if n % 5]
    assert len(on_shelf(rejected)) == 4 + 2 + 1


def test_the_failure_of_one_sink_hides_the_rows_of_none_but_itself_and_heals(tmp_path, rejected):
    """Sinks publish together, but there is no transaction across systems: what one has published, a rerun finds done."""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for broken in ("publish", None):
        p = beam.Pipeline(runner="FnApiRunner")
        with Delivery(p, WriteToShelf(rejected), run_id="r1"):
            rows = p | ReadFromShelf(5)
            rows | "Write A" >> WriteToShelf(a)
            rows | "Write B" >> WriteToShelf(b, broken=broken)
        if broken:
            with pytest.raises(Exception, match="fell down"):
                p.run().wait_until_finish()
            assert ns(b) == []
        else:
            p.run().wait_until_finish()
    assert ns(a) == ns(b) == [0, 1, 2, 3, 4]


def test_sinks_of_the_same_label_in_different_composites(monkeypatch, tmp_path, rejected):
    monkeypatch.setattr(delivery, "keep_at", WriteToShelf)

    class Branch(beam.PTransform):
        def __init__(self, path):
            super().__init__()
            self.path = path

        def expand(self, rows):
            return rows | WriteToShelf(self.path)

    for outer in (True, False):
        paths = [str(tmp_path / f"{outer}{i}") for i in range(2)]
        with beam.Pipeline(runner="FnApiRunner") as p:
            rows = p | beam.Create([numbers(0, 3)])
            if outer:
                with Delivery(p, WriteToShelf(rejected)):
                    rows | "One" >> Branch(paths[0])
                    rows | "Two" >> Branch(paths[1])
            else:
                rows | "One" >> Branch(paths[0])
                rows | "Two" >> Branch(paths[1])
        assert ns(paths[0]) == ns(paths[1]) == [0, 1, 2]


@pytest.mark.parametrize("flag", ["--direct_runner_bundle_repeat=2", "--direct_num_workers=1"])
def test_bundles_that_run_three_times_count_once(flag, out, rejected):
    run(ReadFromShelf(50, bad_every=7), WriteToShelf(out), rejected, flag, run_id="r1")
    assert ns(out) == [n for n in range(50) if n % 7]
    assert len(on_shelf(rejected)) == 8


def test_windows_of_the_user_in_front_of_a_sink(out, rejected):
    with beam.Pipeline(runner="FnApiRunner") as p, Delivery(p, WriteToShelf(rejected)):
        rows = p | ReadFromShelf(20, bad_every=7)
        stamped = rows | beam.Map(lambda b: beam.window.TimestampedValue(b, b.column("n")[0].as_py())).with_output_types(RowBatch)
        windowed = stamped | beam.WindowInto(beam.window.FixedWindows(5))
        windowed | WriteToShelf(out, refuse_from=15)
    assert ns(out) == [n for n in range(15) if n % 7]
    assert len(on_shelf(rejected)) == 3 + 5


def test_a_sink_without_a_delivery_keeps_letters_beside_its_output(monkeypatch, tmp_path, out):
    monkeypatch.setattr(delivery, "keep_at", WriteToShelf)
    with beam.Pipeline(runner="FnApiRunner") as p:
        p | "Read A" >> ReadFromShelf(10, bad_every=3) | "Write A" >> WriteToShelf(out, refuse_from=9)
        p | "Read B" >> ReadFromShelf(5, bad_every=2) | "Write B" >> WriteToShelf(str(tmp_path / "other"))
    assert ns(out) == [1, 2, 4, 5, 7, 8]
    assert sorted(row["row_position"] for row in on_shelf(f"{out}.rejected")) == ["numbers:0", "numbers:3", "numbers:6", "numbers:9"]
    assert len(on_shelf(tmp_path / "other.rejected")) == 3


def test_where_letters_go_by_default():
    assert delivery.beside("out/") == "out.rejected"
    assert delivery.beside("shop.duckdb#sales") == "shop.duckdb.rejected"


def test_two_sinks_for_one_place_are_refused(out, rejected):
    p = beam.Pipeline(runner="FnApiRunner")
    with pytest.raises(ConfigError, match="two sinks write to"), Delivery(p, WriteToShelf(rejected)):
        rows = p | ReadFromShelf(5)
        rows | "Write A" >> WriteToShelf(out)
        rows | "Write B" >> WriteToShelf(out + "/")


def test_rows_and_letters_in_one_place_are_refused(out):
    p = beam.Pipeline(runner="FnApiRunner")
    with pytest.raises(ConfigError, match="rows and dead letters both go to"), Delivery(p, WriteToShelf(out)):
        p | ReadFromShelf(5) | WriteToShelf(out)


def test_a_delivery_within_a_delivery_is_refused(rejected):
    p = beam.Pipeline(runner="FnApiRunner")
    inner = Delivery(p, WriteToShelf(rejected))
    with Delivery(p, WriteToShelf(rejected)), pytest.raises(ConfigError, match="inside a Delivery already"), inner:
        pytest.fail("it was let in")


def test_unbounded_rows_are_refused_by_a_sink_that_takes_bounded_ones_only(out):
    p = beam.Pipeline(runner="FnApiRunner")
    endless = p | beam.Create([numbers(0, 1)])
    endless.is_bounded = False
    with pytest.raises(ConfigError, match="takes bounded input only"):
        endless | WriteToBoundedShelf(out)


class WriteToBoundedShelf(WriteToShelf):
    takes_unbounded = False


def test_a_replay_counts_attempts_and_parks_what_was_tried_too_often(monkeypatch, tmp_path, out, rejected):
    monkeypatch.setattr(delivery, "keep_at", WriteToShelf)
    prior = {"numbers:0": 3, "numbers:3": 1}
    run(ReadFromShelf(7, bad_every=3), WriteToShelf(out), rejected, prior_attempts=prior, max_attempts=3)
    assert {row["row_position"]: row["attempt"] for row in on_shelf(rejected)} == {"numbers:3": 2, "numbers:6": 1}
    assert {row["row_position"]: row["attempt"] for row in on_shelf(Path(rejected) / "parked")} == {"numbers:0": 4}


def test_sources_and_sinks_travel_to_other_processes(monkeypatch, out, rejected):
    """Fresh interpreters: what DoFns hold must be importable and picklable there."""
    roots = [str(Path(delivery.__file__).parents[1]), str(Path(__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]))
    flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    run(ReadFromShelf(50, bad_every=7), WriteToShelf(out, refuse_from=40), rejected, *flags)
    assert ns(out) == [n for n in range(40) if n % 7]
    assert len(on_shelf(rejected)) == 10 + 6


def test_a_failed_attempt_does_not_hide_the_letters_of_the_next(out, rejected):
    with pytest.raises(Exception, match="fell down"):
        run(ReadFromShelf(10, bad_every=5), WriteToShelf(out, broken="publish"), rejected, run_id="r1")
    run(ReadFromShelf(10, bad_every=3), WriteToShelf(out), rejected, run_id="r1")
    kept = {row["row_position"] for row in on_shelf(rejected)}
    assert {f"numbers:{n}" for n in range(10)} - {f"numbers:{n}" for n in ns(out)} <= kept


def test_staged_pieces_survive_packing():
    pieces = [Staged("b", 2, 10, {"min": {"n": 1}, "names": ["ü"]}), Staged("a", 1)]
    assert Staged.unpack([Staged.pack(pieces[:1]), Staged.pack(pieces[1:])]) == [pieces[1], pieces[0]]


LABELS = """\
Read/Starts
Read/Apart
Read/Parse
Read/Parse: dead letters have a place
Write/Whole run
Write/Stage
Write/Stage: dead letters have a place
Deliver/Whole run of dead letters 0
Deliver/Whole run of dead letters 1
Deliver/All dead letters
Deliver/Keep dead letters
Deliver/Live dead letters
Deliver/Digest dead letters
Deliver/Name dead letters
Deliver/Stage dead letters
Deliver/Stage dead letters: dead letters have a place
Deliver/Publish dead letters: begin
Deliver/Publish dead letters
Deliver/Rows read
Deliver/Count rows read
Deliver/Count rows rejected
Deliver/Judge the share rejected
Deliver/Publish Write: begin
Deliver/Publish Write
"""


def test_labels_are_public_and_stable(out, rejected):
    """A running job is updated by labels: changing one is a change for users."""
    p = beam.Pipeline(runner="FnApiRunner")
    with Delivery(p, WriteToShelf(rejected), max_rejected_ratio=0.5):
        p | "Read" >> ReadFromShelf(5) | "Write" >> WriteToShelf(out)
    top = []
    for node in p.transforms_stack[0].parts:
        top += [part.full_label for part in node.parts] if node.full_label in ("Read", "Write", "Deliver") else [node.full_label]
    assert "\n".join(top) + "\n" == LABELS
