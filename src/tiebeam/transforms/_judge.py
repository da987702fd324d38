"""Judging: one column of a batch against one column of a contract, as masks.

Nested columns are judged part by part: the fields of an object, the items of an array, keys and values of a map; a part
that fails fails the row it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.transforms._casts import cast_exactly, without
from tiebeam.transforms._properties import Column
from tiebeam.transforms._rules import Mask, either, mask
from tiebeam.transforms._types import kind, plain

_SHOWN = 100


@dataclass(frozen=True)
class Failure:
    """Values that fail: which rows, why in one stable word, and what a person is told."""

    rows: Mask
    reason: str
    column: str
    rule: str
    values: pa.Array | None
    places: np.ndarray | None = None
    """For a nested value: the row that each of `values` belongs to. Then `broken` says which of them fail."""
    broken: Mask | None = None

    def of(self, row: int) -> str:
        """Tells what is wrong with one row."""
        at = row
        if self.places is not None and self.broken is not None:
            at = int(np.flatnonzero((self.places == row) & self.broken)[0])
        if self.values is None:
            return f"{self.column}: {self.rule}"
        shown = str(self.values[at].as_py()) if self.values.type != pa.string() else repr(self.values[at].as_py())
        return f"{self.column}: {shown[:_SHOWN]}{'…' if len(shown) > _SHOWN else ''} {self.rule}"


@dataclass(frozen=True)
class Judged:
    """A column in the contract's type, null where a value did not fit, and everything found wrong with it."""

    values: pa.Array
    failures: list[Failure]

    @property
    def unfit(self) -> list[Failure]:
        return [f for f in self.failures if f.reason == "not_castable"]


def judge(values: pa.Array, column: Column) -> Judged:
    """Casts a column without loss and applies its rules."""
    values = plainly(values)
    made, failures = _fitted(values, column)
    if column.required and values.null_count:
        failures.append(Failure(mask(pc.is_null(values)), "missing_value", column.name, "has no value", None))
    for rule in column.rules:
        broken = rule.broken(made)
        if broken.any():
            failures.append(Failure(broken, rule.reason, column.name, rule.refusal, made))
    return Judged(made, failures)


def plainly(values: pa.Array) -> pa.Array:
    """The same values in their ordinary Arrow type."""
    if isinstance(values, pa.ExtensionArray):
        return plainly(values.storage)
    if pa.types.is_dictionary(values.type):
        return plainly(values.dictionary_decode())
    if pa.types.is_run_end_encoded(values.type):
        return plainly(pc.run_end_decode(values))
    to = plain(values.type)
    return values if values.type == to else values.cast(to)


def _fitted(values: pa.Array, column: Column) -> tuple[pa.Array, list[Failure]]:
    source, target = kind(values.type), kind(column.type)
    if column.parts and source == target and (values.type != column.type or column.demanding):
        nested = {"object": _object, "array": _array, "map": _map}[target]
        return nested(values, column)
    if {source, target} == {"array", "vector"}:
        return _array_or_vector(values, column)
    made, bad = cast_exactly(values, column.type, column.written, column.zone)
    return made, [] if bad is None else [Failure(bad, "not_castable", column.name, f"is no {column.type}", values)]


def _object(values: pa.Array, column: Column) -> tuple[pa.Array, list[Failure]]:
    present, parts, failures = mask(pc.is_valid(values)), [], []
    given = dict(zip([f.name for f in values.type], values.flatten(), strict=True))
    for part in column.parts:
        named = replace(part, name=f"{column.name}.{part.name}")
        judged = judge(given.pop(part.name, pa.nulls(len(values), part.type)), named)
        parts.append(judged.values)
        failures += [replace(f, rows=f.rows & present) for f in judged.failures]
    for name, extra in given.items():
        unknown = mask(pc.is_valid(extra))
        failures.append(Failure(unknown, "not_castable", f"{column.name}.{name}", "is not in the contract", extra))
    made = pa.StructArray.from_arrays(parts, fields=list(column.type), mask=pa.array(~present))
    return made, [f for f in failures if f.rows.any()]


def _array_or_vector(values: pa.Array, column: Column) -> tuple[pa.Array, list[Failure]]:
    if kind(column.type) == "array":
        return _fitted(values.cast(pa.list_(values.type.value_type)), column)
    size = column.type.list_size
    misfit = mask(pc.not_equal(pc.list_value_length(values), size))
    whole = without(values, misfit)
    items = Column(column.name, pa.list_(column.type.value_type), parts=(Column("item", column.type.value_type),))
    made, failures = _fitted(whole, items)
    if misfit.any():
        failures.append(Failure(misfit, "not_castable", column.name, f"is no vector of {size}", values))
    return made.cast(column.type), failures


def _array(values: pa.Array, column: Column) -> tuple[pa.Array, list[Failure]]:
    judged = judge(values.flatten(), replace(column.parts[0], name=f"{column.name}[]"))
    made = pa.ListArray.from_arrays(_offsets(values), judged.values, type=column.type, mask=pc.is_null(values))
    return made, _lifted(judged.failures, np.asarray(pc.list_parent_indices(values)), len(values))


def _map(values: pa.Array, column: Column) -> tuple[pa.Array, list[Failure]]:
    entries = values.cast(pa.list_(pa.struct([pa.field("key", values.type.key_type), pa.field("value", values.type.item_type)])))
    sides = entries.flatten().flatten()
    key, value = (judge(side, replace(p, name=f"{column.name}.{p.name}")) for side, p in zip(sides, column.parts, strict=True))
    failures = _lifted(key.failures + value.failures, np.asarray(pc.list_parent_indices(entries)), len(values))
    if key.values.null_count:  # a map has no null keys, so rows whose keys did not fit are left out, and null in the end
        good = ~either((f.rows for f in failures), len(values))
        places = pa.array(np.cumsum(good) - 1, mask=~good)
        return _map(values.filter(pa.array(good)), column)[0].take(places), failures
    made = pa.MapArray.from_arrays(_offsets(entries), key.values, value.values, type=column.type, mask=pc.is_null(values))
    return made, failures


def _offsets(values: pa.Array) -> pa.Array:
    sizes = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())


def _lifted(failures: list[Failure], parents: np.ndarray, rows: int) -> list[Failure]:
    """The failures of items as failures of the rows that hold them."""
    lifted = []
    for f in failures:
        at = np.zeros(rows, bool)
        at[parents[f.rows]] = True
        places = parents if f.places is None else parents[f.places]
        lifted.append(replace(f, rows=at, places=places, broken=f.rows if f.broken is None else f.broken))
    return lifted
