"""Filter: the rows for which a condition in DuckDB's SQL is true (docs/decisions/0002-expression-language.md)."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RowBatch
from tiebeam.steps import BatchFn, apply_batches, count
from tiebeam.transforms._expressions import Expressions
from tiebeam.transforms._rules import mask

ROWS_FILTERED = "rows_filtered"


class Filter(beam.PTransform):
    """Keeps the rows for which a condition is true; where it is false or null the row is left out, and counted.

    In: batches of any schema that has the columns named.
    Out: the rows kept, unchanged. Those left out are counted in the metric `rows_filtered`.
    Errors: a row for which the condition cannot be computed is a dead letter, `expression_failed`. A condition that is
    wrong, or is not a truth value, is a ConfigError, as in `Derive`.

    Example:
        >>> batch = RowBatch.from_pydict({"amount": [10, -3, None], "kind": ["sale", "sale", "sale"]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     kept = p | beam.Create([batch]) | Filter("amount > 0 AND kind = 'sale'")
        ...     _ = kept | beam.FlatMap(RowBatch.to_pylist) | beam.Map(print)
        {'amount': 10, 'kind': 'sale'}
    """

    def __init__(self, condition: str):
        super().__init__()
        self.expressions = Expressions("Filter", {"condition": condition})

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return apply_batches(rows, "Select", _FilterFn(self.label, self.expressions))

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The same columns; raises ConfigError when the condition does not fit them."""
        _check(self.expressions, schema)
        return schema


class _FilterFn(BatchFn):
    def __init__(self, step: str, expressions: Expressions):
        super().__init__(step)
        self.expressions = expressions
        self.bound: pa.Schema | None = None

    def apply(self, batch: RowBatch) -> Iterable[RowBatch | Letters]:
        if self.bound is None or not self.bound.equals(batch.schema):
            _check(self.expressions, batch.schema)
            self.bound = batch.schema
        values, failed = self.expressions.compute(batch)
        kept = mask(values["condition"].cast(pa.bool_()))
        rejected = failed.get("condition", np.zeros(batch.num_rows, bool))
        count(self.step, ROWS_FILTERED, int((~kept & ~rejected).sum()))
        yield batch if kept.all() else batch.filter(pa.array(kept))
        if rejected.any():
            rows = np.flatnonzero(rejected)
            details = self.expressions.failures(batch, failed, rows)
            yield letters_of_rows(self.step, batch.take(pa.array(rows)), "expression_failed", details)


def _check(expressions: Expressions, schema: pa.Schema) -> None:
    type = expressions.types(schema)["condition"]
    if type not in (pa.bool_(), pa.null()):
        text = expressions.texts["condition"]
        raise ConfigError(Problem(f"the condition is {type}, not a truth value", f"Filter: {text!r}", "compare it: … > 0, … IS NOT NULL"))
