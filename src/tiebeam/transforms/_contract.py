"""Contracts: files in the Open Data Contract Standard v3 (https://bitol-io.github.io/open-data-contract-standard).

Read are the parts on schema, quality and keys; parts for people (team, servers, price, service levels) are passed over.
Whatever is said of a column but cannot be judged row by row is refused, all of it in one message, unless it is marked
as judged elsewhere: `customProperties: [{property: judged_elsewhere, value: true}]`. Our own custom properties, of the
whole contract or of one table:

    new_columns    what becomes of a column that the contract does not name      (words below; drop_row by default)
    changed_types  what becomes of a value that does not fit its column's type   (words below; drop_row by default)

    evolve      the data wins: the new column goes on; a column of a wider type keeps that type
    freeze      the job stops
    drop_row    the row becomes a dead letter
    drop_value  the value is dropped, and counted as `values_dropped`: a loss you have declared
    variant     the value is kept as JSON text in a column `<name>__variant`
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from tiebeam import files
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RESERVED, RowBatch
from tiebeam.transforms import _types
from tiebeam.transforms._form import misshapen
from tiebeam.transforms._properties import Column, Reading

POLICIES = ("evolve", "freeze", "drop_row", "drop_value", "variant")
VERSION = "v3.1.0"

_OBJECT_KEYS = {"id", "name", "physicalType", "physicalName", "logicalType", "description", "businessName", "deprecated", "synonyms"}
_OBJECT_KEYS |= {"authoritativeDefinitions", "tags", "customProperties", "dataGranularityDescription", "properties", "relationships"}
_OBJECT_KEYS |= {"quality", "context"}


@dataclass(frozen=True)
class Contract:
    """Says what the rows of one table look like: columns, rules, keys, and what to do with what does not fit.

    `keys` are the sets of columns that no two rows share; the primary key, if there is one, is the first.
    """

    name: str
    columns: tuple[Column, ...]
    keys: tuple[tuple[str, ...], ...] = ()
    primary_key: tuple[str, ...] = ()
    new_columns: str = "drop_row"
    changed_types: str = "drop_row"
    document: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, path: str) -> Contract:
        """Reads a file on any file system Beam knows; `path#table` picks one table of several."""
        path, _, table = str(path).partition("#")
        try:
            return cls.parse(files.read(path).decode("utf-8-sig"), path, table)
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(Problem(f"the contract cannot be read: {e}", path, "give the path of a contract in ODCS v3 (YAML)")) from e

    @classmethod
    def parse(cls, text: str, where: str = "contract", table: str = "") -> Contract:
        """Reads the text of a contract; raises ConfigError with everything that is wrong with it."""
        reading = Reading(where)
        try:
            document = yaml.load(text, _StrictLoader)
        except yaml.YAMLError as e:
            raise ConfigError(Problem(f"not YAML: {' '.join(str(e).split())}", where)) from e
        if not isinstance(document, dict):
            raise ConfigError(Problem("not a contract: a mapping is expected", where, "start with `kind: DataContract`"))
        for path, expected in misshapen(document):
            reading.wrong(path, expected, "see https://bitol-io.github.io/open-data-contract-standard")
        if reading.problems:
            raise ConfigError(*reading.problems)
        _check_head(document, reading)
        found = _table(document, table, reading)
        contract = None if found is None else _contract(document, *found, reading)
        if reading.problems or contract is None:
            raise ConfigError(*reading.problems)
        return contract

    @classmethod
    def infer(cls, batch: RowBatch, name: str) -> Contract:
        """Makes a contract of the columns and types of a sample; a sample proves no rules, so it has none."""
        try:
            properties = [_types.described(f.name, f.type) for f in batch.schema if f.name not in RESERVED]
        except ValueError as e:
            raise ConfigError(Problem(str(e), name, "drop the column before, or cast it")) from e
        note = f"Inferred from a sample of {batch.num_rows:,} rows."
        table = {"name": name, "logicalType": "object", "physicalType": "table", "description": note, "properties": properties}
        version = "v3.2.0" if "map" in str(properties) or "vector" in str(properties) else VERSION
        head = {"apiVersion": version, "kind": "DataContract", "id": name, "name": name, "version": "1.0.0", "status": "draft"}
        return cls.parse(yaml.safe_dump(head | {"schema": [table]}, sort_keys=False, allow_unicode=True), name)

    def dump(self) -> str:
        """The contract as YAML; comments are not kept."""
        return yaml.safe_dump(self.document, sort_keys=False, allow_unicode=True)

    def summary(self) -> list[tuple[str, str, str]]:
        """Name, type and rules of every column, in words."""
        rows = []
        for column in self.columns:
            rules = ["required"] * column.required + [str(rule) for rule in column.rules]
            for key in (k for k in self.keys if column.name in k):
                others = [name for name in key if name != column.name]
                rules.append("unique" + (f" with {', '.join(others)}" if others else ""))
            rows.append((column.name, str(column.type), "; ".join(rules)))
        return rows

    @property
    def schema(self) -> pa.Schema:
        """The columns of the contract, in its order, without the reserved ones that travel beside them."""
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML libraries silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.value[i][0].start_mark)
        return super().construct_mapping(node, deep)


def _check_head(document: dict[str, Any], reading: Reading) -> None:
    if document.get("kind") != "DataContract":
        reading.wrong("kind", f"expected DataContract, not {document.get('kind')!r}", "write `kind: DataContract`")
    if not str(document.get("apiVersion", "")).startswith("v3."):
        what = f"expected version 3 of the standard, not {document.get('apiVersion')!r}"
        reading.wrong("apiVersion", what, f"write `apiVersion: {VERSION}`")
    for key in ("id", "version"):
        if key not in document:
            reading.wrong(key, "is missing, and the standard requires it", f"write `{key}: …`")


def _table(document: dict[str, Any], name: str, reading: Reading) -> tuple[dict[str, Any], str] | None:
    """The one table that is meant, and its path; notes a problem when there is none."""
    tables = document.get("schema")
    if not tables:
        reading.wrong("schema", "lists no table", "write `schema:` and under it `- name: …` with `properties:`")
        return None
    names = [str(t.get("name")) for t in tables]
    if not name and len(tables) > 1:
        fix = f"pick one: {Path(reading.where).name}#{names[0]} (or {', '.join(names[1:])})"
        reading.wrong("schema", f"holds {len(tables)} tables", fix)
        return None
    if name and name not in names:
        reading.wrong("schema", f"holds no table {name!r}", f"there are: {', '.join(names)}")
        return None
    index = names.index(name) if name else 0
    return tables[index], f"schema[{index}]"


def _contract(document: dict[str, Any], table: dict[str, Any], path: str, reading: Reading) -> Contract:
    reading.known_keys(table, _OBJECT_KEYS, path)
    properties = table.get("properties")
    if not properties:
        reading.wrong(f"{path}.properties", "lists no column", "write `- name: …` with `logicalType: …` for each column")
    columns = reading.columns(properties or [], f"{path}.properties")
    for column in columns:
        if column.name in RESERVED and column.type != RESERVED[column.name]:
            what = f"is a reserved column of type {RESERVED[column.name]}"
            reading.wrong(f"{path}.properties ({column.name})", what, "leave it out: it passes")
    primary_key = reading.primary_key(properties or [], path)
    keys = ([primary_key] if primary_key else []) + reading.unique_keys(properties or [], table, path)
    policies = _policies(document, "", reading) | _policies(table, f"{path}.", reading)
    return Contract(str(table.get("name")), columns, tuple(dict.fromkeys(keys)), primary_key, document=document, **policies)


def _policies(holder: dict[str, Any], path: str, reading: Reading) -> dict[str, str]:
    found = {}
    for i, entry in enumerate(holder.get("customProperties") or []):
        name, value = entry.get("property"), entry.get("value")
        at = f"{path}customProperties[{i}]"
        if name in ("new_columns", "changed_types"):
            if value not in POLICIES:
                near = difflib.get_close_matches(str(value), POLICIES, n=1)
                reading.wrong(at, f"{name} cannot be {value!r}", f"did you mean {near[0]}?" if near else f"one of: {', '.join(POLICIES)}")
            else:
                found[name] = value
        elif near := difflib.get_close_matches(str(name).lower(), ("new_columns", "changed_types"), n=1, cutoff=0.8):
            reading.wrong(at, f"there is no property {name!r}", f"did you mean {near[0]}?")
    return found
