"""Derive: new columns, computed from the others by expressions in DuckDB's SQL (docs/decisions/0002-expression-language.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import apache_beam as beam
import numpy as np
import pyarrow as pa

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RESERVED, ROW_CHANGE, RowBatch, empty, with_column
from tiebeam.steps import BatchFn, apply_batches
from tiebeam.transforms._expressions import Expressions
from tiebeam.transforms._rules import either


class Derive(beam.PTransform):
    """Adds columns, or replaces them where they stand, by expressions over the columns of the same row.

    Every expression sees the columns as they came in; to build on a derived column, derive again. An expression may not
    look at other rows, at the clock or at chance. `row_change` can be derived, `row_time` and `row_position` are the source's.

    In: batches of any schema that has the columns named.
    Out: the same rows with the new columns, replaced ones in place, others at the end in the order given.
    Errors: a row for which an expression cannot be computed (overflow, division by zero, a failing cast) is a dead letter,
    `expression_failed`; TRY(…) and TRY_CAST(…) give null instead. An expression that is wrong is a ConfigError: at once where
    no column can mend it, at the first batch (or in `output_schema`) where a column is missing or of the wrong type.

    Example:
        >>> batch = RowBatch.from_pydict({"amount": [10.0, 2.5], "pieces": [4, 5]})
        >>> derive = Derive(each="amount / pieces", label="upper('n' || pieces)")
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     _ = p | beam.Create([batch]) | derive | beam.FlatMap(RowBatch.to_pylist) | beam.Map(print)
        {'amount': 10.0, 'pieces': 4, 'each': 2.5, 'label': 'N4'}
        {'amount': 2.5, 'pieces': 5, 'each': 0.5, 'label': 'N5'}
    """

    def __init__(self, columns: Mapping[str, str] | None = None, /, **more: str):
        super().__init__()
        named = {**(columns or {}), **more}
        if not named:
            raise ConfigError(Problem("there is nothing to derive", "Derive", "name a column: Derive(total='price * pieces')"))
        taken = [Problem(f"{n} is set by the source", "Derive", "derive another name") for n in named if n in RESERVED and n != ROW_CHANGE]
        if taken:
            raise ConfigError(*taken)
        self.expressions = Expressions("Derive", named)

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return apply_batches(rows, "Compute", _DeriveFn(self.label, self.expressions))

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns that come out when these go in; raises ConfigError when an expression does not fit them."""
        _check(self.expressions.types(schema))
        nothing = empty(schema)
        return _added(nothing, self.expressions.compute(nothing)[0]).schema


class _DeriveFn(BatchFn):
    def __init__(self, step: str, expressions: Expressions):
        super().__init__(step)
        self.expressions = expressions
        self.bound: pa.Schema | None = None

    def apply(self, batch: RowBatch) -> Iterable[RowBatch | Letters]:
        if self.bound is None or not self.bound.equals(batch.schema):
            _check(self.expressions.types(batch.schema))
            self.bound = batch.schema
        values, failed = self.expressions.compute(batch)
        made = _added(batch, values)
        if not failed:
            yield made
            return
        bad = either(failed.values(), batch.num_rows)
        yield made.filter(pa.array(~bad))
        rows = np.flatnonzero(bad)
        details = self.expressions.failures(batch, failed, rows)
        yield letters_of_rows(self.step, batch.take(pa.array(rows)), "expression_failed", details)


def _check(types: dict[str, pa.DataType]) -> None:
    if types.get(ROW_CHANGE, RESERVED[ROW_CHANGE]) != RESERVED[ROW_CHANGE]:
        raise ConfigError(Problem(f"row_change is text, not {types[ROW_CHANGE]}", "Derive", "give one of insert, update, delete, snapshot"))


def _added(batch: RowBatch, values: dict[str, pa.Array]) -> RowBatch:
    for name, column in values.items():
        batch = with_column(batch, name, column)
    return batch
