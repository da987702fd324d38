"""Steps: rows are counted, rejected ones are sorted out, nothing empty goes on."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.testing.util import assert_that, equal_to

from support.shelf import WriteToShelf, numbers
from tiebeam import steps
from tiebeam.dead_letters import letters_of_rows
from tiebeam.delivery import Delivery
from tiebeam.steps import BatchFn, apply_batches


class _EvenFn(BatchFn):
    def apply(self, batch, *side):
        odd = [n % 2 == 1 for n in batch.column("n").to_pylist()]
        bad = batch.filter(odd)
        yield batch.filter([not o for o in odd])
        if bad.num_rows:
            yield letters_of_rows(self.step, bad, "odd", ["odd"] * bad.num_rows)


class _SilentFn(BatchFn):
    def apply(self, batch):
        return None


def run(tmp_path, *batches):
    p = beam.Pipeline(runner="FnApiRunner")
    with Delivery(p, WriteToShelf(str(tmp_path / "rejected"))):
        rows = apply_batches(p | beam.Create(list(batches)), "Even", _EvenFn("Even"))
        apply_batches(rows, "Silent", _SilentFn("Silent"))
        sizes = rows | beam.Map(lambda batch: batch.num_rows)
    assert_that(sizes, equal_to([n for n in (sum(v % 2 == 0 for v in b.column("n").to_pylist()) for b in batches) if n]))
    result = p.run()
    result.wait_until_finish()
    return {
        (c.key.step.split("/")[0], c.key.metric.name): c.committed
        for c in result.metrics().query(MetricsFilter().with_namespace(steps.NAMESPACE).with_steps(["Even", "Silent"]))["counters"]
    }


def test_rows_are_counted_in_metrics_and_in_the_tally(tmp_path):
    steps.reset_tally()
    counted = run(tmp_path, numbers(0, 5), numbers(5, 6), numbers(6, 7))
    expected = {("Even", "rows_in"): 7, ("Even", "rows_out"): 4, ("Even", "rows_rejected"): 3, ("Silent", "rows_in"): 4}
    assert counted == expected
    assert {key: n for key, n in steps.tally().items() if key[0] in ("Even", "Silent")} == expected
    steps.reset_tally()
    assert steps.tally() == {}


def test_a_step_must_say_what_it_does():
    with pytest.raises(NotImplementedError):
        next(BatchFn("nothing").process(numbers(0, 1)))
