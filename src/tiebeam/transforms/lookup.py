"""Lookup: columns of a small table, added to every row that has its key (a broadcast join).

The table goes to every worker as a side input and is indexed there once: 64-bit hashes of its keys, sorted. A batch's
keys are found by binary search, all at once, and compared for equality, so that a collision of hashes cannot lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from apache_beam import pvalue
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, RowBatch, concat
from tiebeam.steps import BatchFn, apply_batches, count
from tiebeam.transforms._matching import comparable
from tiebeam.transforms._shards import hash_rows
from tiebeam.transforms._states import is_view, plain

ROWS_UNMATCHED = "rows_unmatched"
_HOW = ("left", "inner", "required")
_DUPLICATES = ("refuse", "first")


class Lookup(beam.PTransform):
    """Adds columns of a small table to the rows whose key it has.

    `on` names the key columns, or maps those of the rows to those of the table: `{"product": "id"}`. Null keys match
    nothing; -0.0 is 0.0 and NaN is NaN. Integers of any width match one another; other types must agree.
    In: rows of any schema with the key columns; the table is a bounded PCollection of row batches that fits in memory.
    Out: the columns of the rows, then `columns` of the table. Rows that match nothing have nulls there (`how="left"`), are
    left out and counted in the metric `rows_unmatched` (`"inner"`), or are dead letters (`"required"`). Every row
    matches once at most, so rows are never multiplied. With an empty table the new columns are of type null.
    Errors: `no_match` with `how="required"`. Two rows of the table with one key and different values stop the job; with
    `duplicates="first"` the one with the smallest `row_position` counts, without positions the smallest by its values.

    Example:
        >>> goods = RowBatch.from_pydict({"id": [1, 2], "brand": ["Oak", "Elm"]})
        >>> sales = RowBatch.from_pydict({"product": [2, 3], "amount": [5.0, 1.0]})
        >>> with beam.Pipeline(runner="FnApiRunner") as p:
        ...     table = p | "Goods" >> beam.Create([goods])
        ...     joined = p | "Sales" >> beam.Create([sales]) | Lookup(table, on={"product": "id"}, columns=("brand",))
        ...     _ = joined | beam.FlatMap(RowBatch.to_pylist) | beam.Map(print)
        {'product': 2, 'amount': 5.0, 'brand': 'Elm'}
        {'product': 3, 'amount': 1.0, 'brand': None}
    """

    def __init__(
        self,
        table: beam.PCollection,
        on: Iterable[str] | Mapping[str, str],
        columns: Iterable[str],
        how: str = "left",
        duplicates: str = "refuse",
    ):
        super().__init__()
        self.table = table
        names = (on,) if isinstance(on, str) else on
        self.on = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        self.columns = (columns,) if isinstance(columns, str) else tuple(columns)
        self.how = how
        self.duplicates = duplicates
        if problems := list(self._problems()):
            raise ConfigError(*problems)

    def _problems(self) -> Iterator[Problem]:
        if not self.on:
            yield Problem("names no key", "on", 'name the key columns, such as on=("product_id",)')
        if not self.columns:
            yield Problem("names no column of the table", "columns", "name what is looked up")
        for name in sorted({c for c in self.columns if self.columns.count(c) > 1 or c in self.on}):
            yield Problem(f"the result would have two columns {name!r}", "columns")
        for option, value, allowed in (("how", self.how, _HOW), ("duplicates", self.duplicates, _DUPLICATES)):
            if value not in allowed:
                yield Problem(f"{value!r} is not one of {', '.join(allowed)}", option)
        if not self.table.is_bounded:
            yield Problem("the table never ends, so it cannot be looked up in", "table", "bound it")

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        whole = self.table | "Whole table" >> beam.WindowInto(GlobalWindows())
        join = _JoinFn(self.label, self.on, self.columns, self.how, self.duplicates)
        return apply_batches(rows, "Join", join, pvalue.AsIter(whole))

    def output_schema(self, rows: pa.Schema, table: pa.Schema) -> pa.Schema:
        """The schema of the result; raises ConfigError when rows or table do not fit."""
        keys = [rows.empty_table().column(c).combine_chunks() for c in self.on if c in rows.names]
        _check_rows(self.label, rows, self.on, self.columns)
        index = _Index(self.label, [RowBatch.from_pylist([], schema=table)], tuple(self.on.values()), self.columns, self.duplicates)
        return index.widen(RowBatch.from_pylist([], schema=rows), index.find(keys, list(self.on))).schema


class _JoinFn(BatchFn):
    """Joins batches with the table; all instances in a process share one index."""

    def __init__(self, step: str, on: dict[str, str], columns: tuple[str, ...], how: str, duplicates: str):
        super().__init__(step)
        self.on, self.columns, self.how, self.duplicates = on, columns, how, duplicates
        self.shared = Shared()
        self._index: _Index | None = None

    def apply(self, batch: RowBatch, table: Iterable[RowBatch]) -> Iterable[RowBatch | Letters]:
        if self._index is None:
            keys = tuple(self.on.values())
            self._index = self.shared.acquire(lambda: _Index(self.step, list(table), keys, self.columns, self.duplicates))
        _check_rows(self.step, batch.schema, self.on, self.columns)
        found = self._index.find([batch.column(c) for c in self.on], list(self.on))
        matched = pa.array(found >= 0)
        if self.how != "left" and matched.false_count:
            missed = batch.filter(pc.invert(matched))
            batch, found = batch.filter(matched), found[found >= 0]
            if self.how == "required":
                yield self._letters(missed)
            else:
                count(self.step, ROWS_UNMATCHED, missed.num_rows)
        yield self._index.widen(batch, found)

    def _letters(self, missed: RowBatch) -> Letters:
        keys = missed.select(list(self.on)).to_pylist()
        shown = (", ".join(f"{name}={value!r}" for name, value in key.items()) for key in keys)
        return letters_of_rows(self.step, missed, "no_match", [f"the table has no row with {key}" for key in shown])


def _check_rows(step: str, rows: pa.Schema, on: Iterable[str], columns: Iterable[str]) -> None:
    has = f"they have: {', '.join(rows.names)}"
    problems = [Problem(f"the rows have no column {c!r}", step, has) for c in on if c not in rows.names]
    mend = "rename it in the table, or drop it from the rows"
    problems += [Problem(f"the rows have a column {c!r} already", step, mend) for c in columns if c in rows.names]
    if problems:
        raise ConfigError(*problems)


class _Index:
    """The table, one row per key, ordered by the hash of its key."""

    def __init__(self, step: str, table: list[RowBatch], keys: tuple[str, ...], columns: tuple[str, ...], duplicates: str):
        self.step = step
        self.columns = columns
        rows = _gather(step, table, keys, columns)
        rows = rows.filter(pa.array(_all_valid([rows.column(key) for key in keys])))
        rows = _one_per_key(step, rows, keys, columns, duplicates)
        hashes = hash_rows([rows.column(key) for key in keys])
        order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[order]
        self.rows = rows.take(pa.array(order))
        self.keys = [plain(self.rows.column(key)) for key in keys]
        self.longest_run = int(np.unique(hashes, return_counts=True)[1].max(initial=0))

    def find(self, columns: list[pa.Array], names: list[str]) -> np.ndarray:
        """The row of the table for each row of these key columns, -1 for none."""
        pairs = [comparable(*pair, self.step) for pair in zip(columns, self.keys, names, strict=True)]
        found = np.full(len(columns[0]), -1, np.int64)
        hashes = hash_rows(columns)
        valid = _all_valid(columns)
        at = np.searchsorted(self.hashes, hashes)
        for _ in range(self.longest_run):  # once, unless hashes collide
            row = np.minimum(at, len(self.hashes) - 1)
            candidates = np.flatnonzero(valid & (found < 0) & (self.hashes[row] == hashes))
            same = np.logical_and.reduce([_equal(a.take(candidates), b.take(row[candidates])) for a, b in pairs])
            found[candidates[same]] = row[candidates[same]]
            at = at + 1
        return found

    def widen(self, batch: RowBatch, found: np.ndarray) -> RowBatch:
        """Adds the columns of the table's rows `found`."""
        rows = pa.array(found, mask=found < 0)
        for name in self.columns:
            batch = batch.append_column(name, self.rows.column(name).take(rows))
        return batch


def _all_valid(columns: list[pa.Array]) -> np.ndarray:
    return np.logical_and.reduce([column.is_valid().to_numpy(zero_copy_only=False) for column in columns])


def _equal(a: pa.Array, b: pa.Array) -> np.ndarray:
    same = pc.equal(a, b)
    if pt.is_floating(a.type):
        same = pc.or_(same, pc.and_(pc.is_nan(a), pc.is_nan(b)))
    return same.fill_null(False).to_numpy(zero_copy_only=False)


def _gather(step: str, table: list[RowBatch], keys: tuple[str, ...], columns: tuple[str, ...]) -> RowBatch:
    wanted = [*dict.fromkeys([*keys, *columns])]
    if not table:
        return RowBatch.from_arrays([pa.nulls(0)] * len(wanted), names=wanted)
    parts = []
    for batch in table:
        names = batch.schema.names
        if missing := [c for c in wanted if c not in names]:
            raise ConfigError(*(Problem(f"the table has no column {c!r}", step, f"it has: {', '.join(names)}") for c in missing))
        kept = [*wanted, *([ROW_POSITION] if ROW_POSITION in names and ROW_POSITION not in wanted else [])]
        parts.append(RowBatch.from_arrays([plain(c) if is_view(c.type) else c for c in map(batch.column, kept)], names=kept))
    try:
        return concat(parts)
    except pa.ArrowTypeError as e:
        raise ConfigError(Problem(f"the batches of the table differ in type: {e}", step, "conform them to one contract")) from e


def _one_per_key(step: str, rows: RowBatch, keys: tuple[str, ...], columns: tuple[str, ...], duplicates: str) -> RowBatch:
    numbered = pa.table([*(plain(rows.column(key)) for key in keys), np.arange(rows.num_rows)], names=[*keys, "\0row"])
    grouped = pa.TableGroupBy(numbered, list(keys), use_threads=False).aggregate([("\0row", "list")]).column("\0row_list")
    lengths = pc.list_value_length(grouped)
    chosen = pc.list_flatten(grouped.filter(pc.equal(lengths, 1))).to_pylist()
    for candidates in grouped.filter(pc.greater(lengths, 1)).to_pylist():
        chosen.append(candidates[_choose(step, rows.take(pa.array(candidates)), keys, columns, duplicates)])
    return rows.take(pa.array(chosen, pa.int64()))


def _choose(step: str, rivals: RowBatch, keys: tuple[str, ...], columns: tuple[str, ...], duplicates: str) -> int:
    contents = [repr(row) for row in rivals.select(list(columns)).to_pylist()]
    if duplicates == "refuse" and len(set(contents)) > 1:
        key = rivals.select(list(keys)).slice(0, 1).to_pylist()[0]
        what = f"the table has {rivals.num_rows} rows with {key} that differ"
        raise ConfigError(Problem(what, step, 'make its keys unique, or take one with duplicates="first"'))
    names = rivals.schema.names
    positions = rivals.column(ROW_POSITION).to_pylist() if ROW_POSITION in names else [None] * rivals.num_rows
    ranks = [(p is None, len(p or ""), p or "", content) for p, content in zip(positions, contents, strict=True)]
    return ranks.index(min(ranks))
