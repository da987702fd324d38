"""Form: which part of a contract is a mapping, a list or plain text, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_TEXT, _WHOLE, _LIST = (str, int, float), (int,), (list,)
_CUSTOM: dict[str, Any] = {"property": _TEXT}
_RULE: dict[str, Any] = {
    "type": _TEXT,
    "metric": _TEXT,
    "customProperties": [_CUSTOM],
    "arguments": {"validValues": _LIST, "missingValues": _LIST, "properties": [_TEXT], "pattern": _TEXT},
}
_OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("format", "elementType", "defaultTimezone", "pattern"), _TEXT),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "dimensions"), _WHOLE),
    "required": [_TEXT],
}
_PROPERTY: dict[str, Any] = {
    **dict.fromkeys(("name", "physicalName", "logicalType", "physicalType"), _TEXT),
    "primaryKeyPosition": _WHOLE,
    "logicalTypeOptions": _OPTIONS,
    "customProperties": [_CUSTOM],
    "quality": [_RULE],
    "enum": _LIST,
}
_PROPERTY |= {"properties": [_PROPERTY], "items": _PROPERTY, "map": {"key": _PROPERTY, "value": _PROPERTY}}
_CONTRACT = {
    "customProperties": [_CUSTOM],
    "schema": [{"name": _TEXT, "properties": [_PROPERTY], "quality": [_RULE], "customProperties": [_CUSTOM]}],
}
_WORDS = {_TEXT: "text", _WHOLE: "a whole number", _LIST: "a list"}


def misshapen(document: Any) -> Iterator[tuple[str, str]]:
    """Paths of parts that have another form than the standard says, and what is expected there."""
    yield from _misshapen(document, _CONTRACT, "")


def _misshapen(value: Any, form: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(form, dict):
        if not isinstance(value, dict):
            yield path, f"expected a mapping, not {value!r:.60}"
            return
        for key, inner in form.items():
            if value.get(key) is not None:
                yield from _misshapen(value[key], inner, f"{path}.{key}".lstrip("."))
    elif isinstance(form, list):
        if not isinstance(value, list):
            yield path, f"expected a list, not {value!r:.60}"
            return
        for i, item in enumerate(value):
            yield from _misshapen(item, form[0], f"{path}[{i}]")
    elif not isinstance(value, form) or isinstance(value, bool):
        yield path, f"expected {_WORDS[form]}, not {value!r:.60}"
