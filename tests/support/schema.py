"""Holds data to a JSON schema, as strictly as Kubernetes holds a resource to that of its kind: what is not described is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
_KNOWN = {
    *("$schema", "$id", "title", "type", "properties", "required", "items", "enum", "pattern", "additionalProperties", "description"),
    *(
        "minItems",
        "minLength",
        "format",
        "default",
        "nullable",
        "anyOf",
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
    ),
}


def wrong(data: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Says what is wrong with the data, and where."""
    assert set(schema) <= _KNOWN, f"{where}: this test does not know {set(schema) - _KNOWN}"
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(data, int | str):
            yield f"{where}: neither a number nor text"
        return
    kind = schema.get("type")
    if kind and (not isinstance(data, _TYPES[kind]) or (kind != "boolean" and isinstance(data, bool))):
        yield f"{where}: {data!r} is not {kind}"
        return
    if "enum" in schema and data not in schema["enum"]:
        yield f"{where}: {data!r} is not one of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], data):
        yield f"{where}: {data!r} does not match {schema['pattern']}"
    if isinstance(data, str | list) and len(data) < schema.get("minItems", schema.get("minLength", 0)):
        yield f"{where}: too short"
    if isinstance(data, list):
        for i, item in enumerate(data):
            yield from wrong(item, schema.get("items", {}), f"{where}[{i}]")
    if isinstance(data, dict) and kind == "object":
        yield from _wrong_fields(data, schema, where)


def _wrong_fields(data: dict[str, Any], schema: dict[str, Any], where: str) -> Iterator[str]:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or others is True
    yield from (f"{where}.{name}: is missing" for name in schema.get("required", ()) if name not in data)
    for name, value in data.items():
        if name in fields:
            yield from wrong(value, fields[name], f"{where}.{name}")
        elif isinstance(others, dict):
            yield from wrong(value, others, f"{where}.{name}")
        elif not open_ended:
            yield f"{where}.{name}: there is no such field"
