"""Conform: rows of any shape become rows of a contract, without silent loss.

Contracts are files in the Open Data Contract Standard v3; `Contract` loads, infers and dumps them.
"""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RowBatch, empty
from tiebeam.steps import BatchFn, apply_batches, count
from tiebeam.transforms._contract import Contract
from tiebeam.transforms._keys import UniqueRows
from tiebeam.transforms._shape import conform

__all__ = ["Conform", "Contract"]

VALUES_DROPPED = "values_dropped"


class Conform(beam.PTransform):
    """Casts rows to the columns of a contract and refuses those that break it.

    In: batches of any schema.
    Out: batches with the contract's columns in its order, then the reserved columns that came in, then what the policies
    `new_columns` and `changed_types` let through (the words are explained in `tiebeam.transforms._contract`).
    Errors: a row that does not fit is a dead letter; its detail names every rule it breaks, its reason is the first:
    not_castable, missing_value, not_accepted, out_of_range, pattern, length, multiple_of, new_column, duplicate_key.
    A contract that cannot be followed is a ConfigError when the transform is made.
    State: where a key is declared (primaryKey, unique, duplicateValues), all rows of the run are grouped by it, in
    `key_shards` groups; of rows that share a key the one with the smallest row_position stays (without positions: the
    smallest by content). Rows with a row_change are changes of a key, and never its duplicates. Keys cannot be judged over
    input that never ends; `judge_keys=False` leaves them to the sink.

    Example:
        >>> contract = Contract.infer(RowBatch.from_pydict({"id": [1], "price": [9.99]}), "items")
        >>> batch = RowBatch.from_pydict({"price": ["1.50", "2"], "id": ["7", "8"]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     _ = p | beam.Create([batch]) | Conform(contract) | beam.FlatMap(RowBatch.to_pylist) | beam.Map(print)
        {'id': 7, 'price': 1.5}
        {'id': 8, 'price': 2.0}
    """

    def __init__(self, contract: str | Contract, *, judge_keys: bool = True, key_shards: int = 16):
        super().__init__()
        self.contract = Contract.load(contract) if isinstance(contract, str) else contract
        self.judge_keys = judge_keys
        self.key_shards = key_shards

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        keys = self.contract.keys if self.judge_keys else ()
        if keys and not rows.is_bounded:
            what = f"{self.contract.name!r} declares the key ({', '.join(keys[0])}), and keys cannot be judged over input that never ends"
            raise ConfigError(Problem(what, self.label, "say Conform(…, judge_keys=False) and let an upserting sink keep the key"))
        fitted = apply_batches(rows, "Fit", _ConformFn(self.label, self.contract))
        for key in keys:
            name = "Unique " + ", ".join(key)
            fitted = fitted | name >> UniqueRows(f"{self.label}: {name}", key, self.key_shards)
        return fitted

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns that come out when these go in."""
        return conform(empty(schema), self.contract).rows.schema


class _ConformFn(BatchFn):
    def __init__(self, step: str, contract: Contract):
        super().__init__(step)
        self.contract = contract

    def apply(self, batch: RowBatch) -> Iterable[RowBatch | Letters]:
        judged = conform(batch, self.contract)
        count(self.step, VALUES_DROPPED, judged.dropped)
        if not judged.failures:
            yield judged.rows
            return
        yield judged.rows.filter(pa.array(~judged.bad))
        bad = np.flatnonzero(judged.bad)
        yield letters_of_rows(self.step, batch.take(pa.array(bad)), [judged.reason(i) for i in bad], [judged.detail(i) for i in bad])
