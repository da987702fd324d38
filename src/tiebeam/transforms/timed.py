"""Rows with an event time, and only those: put before steps that need one, so that a row without is rejected once, not by each."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from tiebeam.dead_letters import Letters
from tiebeam.rows import RowBatch
from tiebeam.steps import BatchFn, apply_batches
from tiebeam.transforms._keyed import check_columns, in_time


class Timed(beam.PTransform):
    """Lets rows go on whose event time every engine can tell.

    In: rows with `row_time`.
    Out: the rows as they are.
    Errors: `no_event_time` where it is null, `time_out_of_range` before 1677-09-22 or after 2262-04-11.

    Example:
        >>> from tiebeam.transforms._fold import times_of
        >>> rows = RowBatch.from_pydict({"n": [1, 2], "row_time": times_of([0, 1])})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     _ = p | beam.Create([rows]) | Timed() | beam.FlatMap(lambda rows: rows["n"].to_pylist()) | beam.Map(print)
        1
        2
    """

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return apply_batches(rows, "Choose", _TimedFn(self.label))


class _TimedFn(BatchFn):
    def apply(self, batch: RowBatch) -> Iterator[RowBatch | Letters]:
        check_columns(self.step, batch.schema, (), timed=True)
        batch, refused = in_time(self.step, batch)
        yield from refused
        yield batch
