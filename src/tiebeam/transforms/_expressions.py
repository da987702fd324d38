"""Expressions: DuckDB's SQL, the part of it that looks at one row (docs/decisions/0002-expression-language.md).

Refused, because the answer would depend on how rows are cut into batches, on the clock or on chance: aggregates, window
functions, subqueries, UNNEST, *, parameters, `now()`, `random()` and their like. What cannot be computed for a row
(overflow, division by zero, a cast that fails) fails that row only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RowBatch, empty
from tiebeam.transforms._rules import Mask, mask
from tiebeam.transforms._types import plain

_SETTINGS: dict[str, Any] = {"threads": 1, "enable_external_access": False}
_SETTINGS |= {"autoload_known_extensions": False, "autoinstall_known_extensions": False}
_REFUSED = {
    "SUBQUERY": "a subquery sees more than one row",
    "WINDOW": "a window function sees more than one row",
    "STAR": "* stands for columns you have not named",
    "PARAMETER": "parameters have no value here",
    "DEFAULT": "DEFAULT has no value here",
}
_MANY, _OTHER = "it sees more than one row", "its value is not made of its arguments alone"
_REFUSED_CALLS = dict.fromkeys(("unnest", "unlist", "generate_subscripts"), _MANY)
_REFUSED_CALLS |= dict.fromkeys(("current_localtimestamp", "current_localtime", "localtime", "localtimestamp"), "it reads the clock")
_FUNCTIONS = """
    SELECT function_name, function_type, bool_and(coalesce(stability, 'CONSISTENT') = 'CONSISTENT'),
           any_value(macro_definition), any_value(parameters)
    FROM duckdb_functions() GROUP BY ALL ORDER BY ALL
"""


class Expressions:
    """Checks named expressions, binds them to a schema, and computes them over batches."""

    def __init__(self, where: str, texts: Mapping[str, str]):
        self.where = where
        self.texts = dict(texts)
        self.columns: dict[str, set[str]] = {}
        problems = []
        for name, text in self.texts.items():
            found: list[Problem] = []
            self.columns[name] = self._check(name, text, found)
            problems += found
        if problems:
            raise ConfigError(*problems)

    @cached_property
    def _engine(self) -> Any:
        return _connect()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_engine"}

    def _check(self, name: str, text: str, problems: list[Problem]) -> set[str]:
        """Notes what is wrong with an expression whatever the rows are; returns the columns it may refer to."""

        def wrong(what: str, fix: str) -> set[str]:
            problems.append(Problem(what, f"{self.where}: {name} = {text!r}", fix))
            return set()

        if not isinstance(text, str):
            return wrong(f"expected an expression in SQL, not {text!r}", "give it as text: 'amount * 0.92'")
        tree = _parse(self._engine, text)
        if "error_message" in tree:
            return wrong(tree["error_message"].splitlines()[0], "write one SQL expression, such as amount * 0.92")
        select = tree["statements"][0]["node"]
        whole = select.pop("select_list", [])
        if len(tree["statements"]) != 1 or len(whole) != 1 or whole[0].get("alias") or select != _nothing_else():
            return wrong("this is more than one expression", "write one SQL expression, without SELECT, FROM, AS or ;")
        for reason in dict.fromkeys(self._refusals(whole[0])):
            wrong(reason, "an expression looks at one row; use Aggregate or MapBatches for more")
        return _columns(whole[0])

    def _refusals(self, tree: dict[str, Any]) -> Iterator[str]:
        for node in _nodes(tree):
            if node.get("class") in _REFUSED:
                yield _REFUSED[node["class"]]
            elif node.get("class") == "FUNCTION":
                call = node["function_name"].lower()
                if call in _REFUSED_CALLS:
                    yield f"{call}: {_REFUSED_CALLS[call]}"
                elif call in (unsteady := _unsteady()):
                    yield f"{call}: {unsteady[call]}"
                elif call == "age" and len(node["arguments"]) == 1:
                    yield "age: with one argument it reads the clock"

    def types(self, schema: pa.Schema) -> dict[str, pa.DataType]:
        """The types the expressions have over a schema; raises ConfigError for what cannot be bound to it."""
        nothing = empty(schema)
        problems, types = [], {}
        for name, text in self.texts.items():
            where = f"{self.where}: {name} = {text!r}"
            if unknown := sorted(self.columns[name] - {n.casefold() for n in schema.names}):
                problems.append(Problem(f"there is no column {', '.join(unknown)}", where, f"columns here: {', '.join(schema.names)}"))
                continue
            try:
                types[name] = self._bind(name, text, nothing)
            except self._errors as e:
                what = " ".join(str(e).partition("Candidate functions")[0].partition("\n\n")[0].split()).removeprefix("Binder Error: ")
                problems.append(Problem(what, where, "see https://duckdb.org/docs/stable/sql/functions/overview"))
        if problems:
            raise ConfigError(*problems)
        return types

    def _bind(self, name: str, text: str, nothing: RowBatch) -> pa.DataType:
        rows = self._engine.from_arrow(self._used(nothing, {name}))
        rows.filter(f"((\n{text}\n)) IS NULL")  # a WHERE takes no aggregate, window function or UNNEST: a second guard
        return plain(rows.project(f"(\n{text}\n)").to_arrow_table().schema.field(0).type)

    @property
    def _errors(self) -> type[Exception]:
        import duckdb

        return duckdb.Error

    def compute(self, batch: RowBatch) -> tuple[dict[str, pa.Array], dict[str, Mask]]:
        """The values of every expression, and for those that fail on some rows which ones."""
        rows = self._engine.from_arrow(self._used(batch, set(self.texts)))
        try:
            made = rows.project(", ".join(f'(\n{text}\n) AS "{i}"' for i, text in enumerate(self.texts.values()))).to_arrow_table()
        except self._errors:
            return self._compute_each(rows)
        return {name: _column(made, i) for i, name in enumerate(self.texts)}, {}

    def _compute_each(self, rows: Any) -> tuple[dict[str, pa.Array], dict[str, Mask]]:
        """Computes with TRY, which is null where a row fails; wrapped, so that a value that is null is told from it."""
        wrapped = ", ".join(f"TRY({{'v': (\n{text}\n)}}) AS \"{i}\"" for i, text in enumerate(self.texts.values()))
        made = rows.project(wrapped).to_arrow_table()
        values, failed = {}, {}
        for i, name in enumerate(self.texts):
            column = _column(made, i)
            values[name] = _plainly(pc.struct_field(column, "v"))
            if column.null_count:
                failed[name] = mask(pc.is_null(column))
        return values, failed

    def _used(self, batch: RowBatch, names: set[str]) -> pa.Table:
        """The columns that expressions refer to: the others need not be understood by the engine."""
        wanted = set().union(*(self.columns[n] for n in names))
        used = [n for n in batch.schema.names if n.casefold() in wanted]
        for folded in wanted:
            same = [n for n in used if n.casefold() == folded]
            if len(same) > 1:
                what = f"SQL knows no upper and lower case in names, and these differ in it only: {', '.join(same)}"
                raise ConfigError(Problem(what, self.where, "rename one of them before"))
        table = pa.Table.from_batches([batch.select(used)])
        return table if used else table.append_column("row", pa.nulls(batch.num_rows, pa.bool_()))

    def failures(self, batch: RowBatch, failed: dict[str, Mask], rows: Iterable[int]) -> list[str]:
        """Tells for each row which expressions fail, and on what."""
        told = []
        for row in rows:
            parts = []
            for name in (n for n in failed if failed[n][row]):
                used = [n for n in batch.schema.names if n.casefold() in self.columns[name]]
                given = ", ".join(f"{n} = {str(batch.column(n)[row].as_py())[:100]!r}" for n in used)
                parts.append(f"{name}: {self.texts[name]} cannot be computed for {given}")
            told.append("; ".join(parts))
        return told


def _connect() -> Any:
    import duckdb

    engine = duckdb.connect(":memory:", config=_SETTINGS)
    engine.execute("SET TimeZone = 'UTC'")
    engine.execute("SET ieee_floating_point_ops = false")  # x / 0 fails, instead of being infinite
    return engine


def _parse(engine: Any, text: str) -> dict[str, Any]:
    return json.loads(engine.execute("SELECT json_serialize_sql(?)", [f"SELECT\n{text}\n"]).fetchall()[0][0])


@cache
def _nothing_else() -> dict[str, Any]:
    """The parse tree around an expression to which no FROM, WHERE or other clause is added."""
    select = _parse(_connect(), "1")["statements"][0]["node"]
    del select["select_list"]
    return select


@cache
def _unsteady() -> dict[str, str]:
    """Functions that are refused, and why: those whose value is not made of their arguments alone, row by row."""
    engine = _connect()
    rows = engine.execute(_FUNCTIONS).fetchall()
    scalars = {name for name, type, steady, *_ in rows if type == "scalar" and steady}
    unsteady = {name: _OTHER for name, type, steady, *_ in rows if type == "scalar" and name not in scalars}
    unsteady |= {name: _MANY for name, type, *_ in rows if type in ("aggregate", "window") and name not in scalars}
    for name, type, _, body, parameters in rows:
        if type == "macro" and name not in scalars:
            tree = _parse(engine, body)
            calls = {node["function_name"].lower() for node in _nodes(tree) if node.get("class") == "FUNCTION"}
            free = _columns(tree) - {p.casefold() for p in parameters}  # current_date and its like look like columns
            if "error_message" in tree or free or calls & (unsteady.keys() | _REFUSED_CALLS.keys()):
                unsteady[name] = _OTHER
    return unsteady


def _column(table: pa.Table, i: int) -> pa.Array:
    merged = table.column(i).combine_chunks()
    return _plainly(merged.combine_chunks() if isinstance(merged, pa.ChunkedArray) else merged)


def _plainly(values: pa.Array) -> pa.Array:
    to = plain(values.type)
    return values if values.type == to else values.cast(to)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a parse tree, from the top down."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _columns(tree: Any, bound: frozenset[str] = frozenset()) -> set[str]:
    """The columns a parse tree refers to, without regard to case; not the parameters of its lambdas."""
    if isinstance(tree, list):
        return set().union(*(_columns(part, bound) for part in tree))
    if not isinstance(tree, dict):
        return set()
    if tree.get("class") == "COLUMN_REF":
        return {tree["column_names"][0].casefold()} - bound
    if tree.get("class") == "LAMBDA":
        return _columns(tree["expr"], bound | _columns(tree["lhs"]))
    return set().union(*(_columns(part, bound) for part in tree.values()))
