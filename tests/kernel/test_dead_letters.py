"""Dead letters: one schema, whole originals, and always a place to go."""

from __future__ import annotations

import gc
import weakref
from datetime import UTC, datetime

import apache_beam as beam
import pyarrow as pa
import pytest

from support.shelf import ReadFromShelf, WriteToShelf, numbers, on_shelf
from tiebeam import dead_letters
from tiebeam.dead_letters import SCHEMA, letters, letters_of_rows
from tiebeam.delivery import Delivery
from tiebeam.rows import RowBatch, with_column
from tiebeam.steps import BatchFn, apply_batches


def test_letters_of_raw_rows():
    details, originals = ["no brace", "no end"], [b"{", b"[\xff"]
    batch = letters("Parse", "malformed", details, originals, "json", source="a.jsonl", positions=["a:0", "a:2"]).batch
    assert batch.schema == SCHEMA
    first, second = batch.to_pylist()
    assert (first["step"], first["reason"], first["detail"], first["original"]) == ("Parse", "malformed", "no brace", b"{")
    assert (second["original"], second["row_position"], second["original_format"]) == (b"[\xff", "a:2", "json")
    assert (first["source"], first["attempt"], first["row_time"], first["run_id"]) == ("a.jsonl", 1, None, None)
    assert abs((datetime.now(UTC) - first["failed_at"]).total_seconds()) < 60


def test_each_letter_may_have_its_own_reason():
    assert letters("Parse", ["a", "b"], ["", ""], [b"1", b"2"], "csv").batch.column("reason").to_pylist() == ["a", "b"]


def test_the_original_of_a_typed_row_is_the_row():
    moments = pa.array([1, 2, None], pa.timestamp("us", tz="UTC"))
    rows = with_column(with_column(numbers(0, 3), "row_time", moments), "deep", pa.array([{"x": [1]}, None, {"x": []}]))
    batch = letters_of_rows("Check", rows, "odd", ["a", "b", "c"]).batch
    assert batch.schema == SCHEMA
    back = [pa.ipc.open_stream(original).read_next_batch() for original in batch.column("original").to_pylist()]
    assert pa.Table.from_batches(back).equals(pa.Table.from_batches([rows]))
    assert batch.column("row_position").to_pylist() == ["numbers:0", "numbers:1", "numbers:2"]
    assert batch.column("row_time").equals(moments)
    assert set(batch.column("original_format").to_pylist()) == {"arrow"}


class _RejectFn(BatchFn):
    """Rejects everything with the reason given."""

    def __init__(self, step, reason):
        super().__init__(step)
        self.reason = reason

    def apply(self, batch):
        yield batch
        yield letters_of_rows(self.step, batch.slice(0, 1), self.reason, ["told to"])


def rows_of(p, label, start=0):
    return p | label >> beam.Create([numbers(start, start + 2)])


def test_an_unclaimed_letter_stops_the_pipeline_and_says_what_to_do():
    p = beam.Pipeline(runner="FnApiRunner")
    apply_batches(rows_of(p, "A"), "Check", _RejectFn("Check", "odd"))
    with pytest.raises(Exception, match=r"step 'Check' rejected 1 row.*'odd': told to.*write its rows with a tiebeam sink"):
        p.run().wait_until_finish()


def test_a_step_that_rejects_nothing_needs_no_place():
    with beam.Pipeline(runner="FnApiRunner") as p:
        p | ReadFromShelf(5)


def test_letters_after_the_delivery_closed_stop_the_pipeline(tmp_path):
    p = beam.Pipeline(runner="FnApiRunner")
    with Delivery(p, WriteToShelf(str(tmp_path / "rejected"))):
        rows = rows_of(p, "A")
    apply_batches(rows, "Late", _RejectFn("Late", "odd"))
    with pytest.raises(Exception, match="step 'Late' rejected"):
        p.run().wait_until_finish()


def test_a_claim_takes_only_what_is_upstream():
    p = beam.Pipeline(runner="FnApiRunner")
    a = apply_batches(rows_of(p, "A"), "Check A", _RejectFn("Check A", "odd"))
    b = apply_batches(rows_of(p, "B"), "Check B", _RejectFn("Check B", "odd"))
    assert [c.producer.full_label for c in dead_letters.claim(p, upstream_of=a)] == ["Check A/ParDo(_RejectFn)"]
    assert [c.producer.full_label for c in dead_letters.unclaimed(p)] == ["Check B/ParDo(_RejectFn)"]
    assert len(dead_letters.claim(p, upstream_of=(a, b) | beam.Flatten())) == 1
    assert dead_letters.claim(p) == []


class _Aside(beam.PTransform):
    """Its letters come from a branch that its rows do not pass."""

    def expand(self, rows):
        apply_batches(rows, "Aside", _RejectFn(self.label, "aside"))
        return rows | beam.Map(lambda batch: batch).with_output_types(RowBatch)


def test_a_claim_takes_finished_composites_whole_and_side_inputs():
    p = beam.Pipeline(runner="FnApiRunner")
    side = apply_batches(rows_of(p, "S"), "Check S", _RejectFn("Check S", "odd"))
    rows = rows_of(p, "A") | "Aside" >> _Aside()
    joined = rows | "Join" >> beam.Map(lambda batch, _: batch, beam.pvalue.AsIter(side))
    taken = {c.producer.full_label for c in dead_letters.claim(p, upstream_of=joined)}
    assert taken == {"Check S/ParDo(_RejectFn)", "Aside/Aside/ParDo(_RejectFn)"}


def test_the_same_step_twice_in_one_composite_has_labels_of_its_own():
    class Twice(beam.PTransform):
        def expand(self, rows):
            return apply_batches(apply_batches(rows, "One", _RejectFn("One", "a")), "Two", _RejectFn("Two", "b"))

    p = beam.Pipeline(runner="FnApiRunner")
    rows_of(p, "A") | Twice()
    assert len(dead_letters.unclaimed(p)) == 2


def test_a_pipeline_with_dead_letters_can_be_forgotten():
    p = beam.Pipeline(runner="FnApiRunner")
    p | ReadFromShelf(3, bad_every=2)
    gone = weakref.ref(p)
    del p
    gc.collect()
    assert gone() is None


def test_a_store_that_refuses_a_letter_stops_the_run(tmp_path):
    class _Picky(WriteToShelf):
        def writer(self, run_id):
            return _PickyWriter(super().writer(run_id))

    class _PickyWriter:
        def __init__(self, writer):
            self.writer = writer
            self.close, self.abort = writer.close, writer.abort

        def write(self, batch):
            return [letters_of_rows("store", batch, "unwanted", ["no room"] * batch.num_rows)]

    p = beam.Pipeline(runner="FnApiRunner")
    with Delivery(p, _Picky(str(tmp_path / "rejected"))):
        p | ReadFromShelf(5, bad_every=2) | WriteToShelf(str(tmp_path / "out"))
    with pytest.raises(Exception, match="'unwanted': no room"):
        p.run().wait_until_finish()
    assert on_shelf(tmp_path / "out") == []
