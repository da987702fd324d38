"""Shape: a batch brought into the shape of a contract, and what the contract's policies decide about the rest.

A pure function over columns: nothing is split, counted or written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import ContractError
from tiebeam.rows import RESERVED, RowBatch
from tiebeam.transforms._casts import holds_all, without
from tiebeam.transforms._contract import Contract
from tiebeam.transforms._judge import Failure, Judged, judge, plainly
from tiebeam.transforms._properties import Column
from tiebeam.transforms._rules import Mask, either, mask
from tiebeam.transforms._types import kind

VARIANT = "__variant"


@dataclass
class Judgement:
    """A batch in the shape of a contract, all of its rows, and everything that is wrong with some of them."""

    rows: RowBatch
    failures: list[Failure] = field(default_factory=list)
    dropped: int = 0

    @property
    def bad(self) -> Mask:
        return either((f.rows for f in self.failures), self.rows.num_rows)

    def reason(self, row: Any) -> str:
        return next(f.reason for f in self.failures if f.rows[row])

    def detail(self, row: Any) -> str:
        return "; ".join(f.of(row) for f in self.failures if f.rows[row])


def conform(batch: RowBatch, contract: Contract) -> Judgement:
    """Judges a batch by a contract."""
    names = batch.schema.names
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ContractError(f"two columns have the same name: {', '.join(twice)}")
    given = dict(zip(names, batch.columns, strict=True))
    shape = _Shape(contract, {})
    for column in contract.columns:
        values = given.pop(column.name, None)
        shape.add_column(column, pa.nulls(batch.num_rows, column.type) if values is None else values)
    for name in RESERVED:
        if name in given:
            shape.columns.setdefault(name, given.pop(name))
    for name, values in given.items():
        shape.add_new(name, values)
    fields = [pa.field(name, values.type) for name, values in shape.columns.items()]
    rows = RowBatch.from_arrays(list(shape.columns.values()), schema=pa.schema(fields))
    return Judgement(rows, shape.failures, shape.dropped)


@dataclass
class _Shape:
    """The columns on their way out, and what the policies decide about each."""

    contract: Contract
    columns: dict[str, pa.Array]
    variants: dict[str, pa.Array] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    dropped: int = 0

    def add_column(self, column: Column, values: pa.Array) -> None:
        judged = judge(values, column)
        policy = self.contract.changed_types
        if policy == "evolve" and _wider(values, column):
            self.columns[column.name] = plainly(values)
            self.failures += [f for f in judged.failures if f.reason != "not_castable"]
            return
        if policy == "freeze" and judged.unfit:
            first = judged.unfit[0]
            raise ContractError(f"the contract {self.contract.name!r} freezes its types: {first.of(int(np.flatnonzero(first.rows)[0]))}")
        if policy in ("drop_value", "variant") and not column.required:
            judged = self._let_go(column, values, judged, keep=policy == "variant")
        self.columns[column.name] = judged.values
        self.failures += judged.failures

    def _let_go(self, column: Column, values: pa.Array, judged: Judged, keep: bool) -> Judged:
        """Takes the values that do not fit out of a column: into its variant, or away and counted."""
        unfit = either((f.rows for f in judged.unfit), len(values))
        if keep:
            if plainly(values[:0]).type != column.type:
                self.columns[column.name] = judged.values
                self.columns[column.name + VARIANT] = json_text(without(plainly(values), ~unfit))
        else:
            self.dropped += int(unfit.sum())
        if not unfit.any():
            return judged
        left = [replace(f, rows=f.rows & ~unfit) for f in judged.failures]
        return Judged(without(judged.values, unfit), [f for f in left if f.rows.any()])

    def add_new(self, name: str, values: pa.Array) -> None:
        policy = self.contract.new_columns
        present = mask(pc.is_valid(values))
        if self._is_variant(name, values):
            self.columns[name] = pc.coalesce(self.columns[name], values) if name in self.columns else values
        elif policy == "evolve":
            self.columns[name] = values
        elif policy == "variant":
            self.columns[name + VARIANT] = json_text(plainly(values))
        elif policy == "drop_value":
            self.dropped += int(present.sum())
        elif present.any() and policy == "freeze":
            raise ContractError(f"the contract {self.contract.name!r} freezes its columns, and {name!r} is not one of them")
        elif present.any():
            self.failures.append(Failure(present, "new_column", name, "is not in the contract", values))

    def _is_variant(self, name: str, values: pa.Array) -> bool:
        """Whether this is a variant column of an earlier pass: a replayed row has one."""
        base = name.removesuffix(VARIANT)
        kept = self.contract.changed_types if base in self.contract.schema.names else self.contract.new_columns
        return base != name and kept == "variant" and values.type == pa.string()


def _wider(values: pa.Array, column: Column) -> bool:
    """Whether a column comes in a type that holds all the contract's type holds, and more; text is no such type."""
    incoming = plainly(values[:0]).type
    return incoming != column.type and kind(incoming) not in ("string", "null") and holds_all(column.type, incoming)


def json_text(values: pa.Array) -> pa.Array:
    """Each value as JSON text; null stays null."""
    if pa.types.is_nested(values.type):
        return pa.array(_json_of(values), pa.string())
    distinct = values.dictionary_encode()
    return pa.array(_json_of(distinct.dictionary), pa.string()).take(distinct.indices)


def _json_of(values: pa.Array) -> Iterator[str | None]:
    for value in values.to_pylist():
        yield None if value is None else json.dumps(value, ensure_ascii=False, default=_json_default)


def _json_default(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value.isoformat() if hasattr(value, "isoformat") else str(value)
