"""One JSON line, judged exactly: what is wrong with it, or what it says in a form that a strict parser reads in one way only.

Follows RFC 8259, read strictly: no NaN, no control characters in strings, no lone surrogates, no key given twice. A key whose value is
null says no more than an absent key.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

MAX_DEPTH = 500

_SURROGATE = re.compile("[\ud800-\udfff]")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class BadLineError(Exception):
    """Why a line is no row: a short stable word, and a sentence for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Number(str):
    """A number as it is written."""

    __slots__ = ()


class Pairs(list):
    """An object: its keys and values as they are written."""


@dataclass(frozen=True)
class Judged:
    """A line that is a row: the same row written anew, how many cells it fills, and which keys it has beyond the known ones."""

    text: str
    cells: int
    extra: tuple[str, ...]


def judge(line: bytes, types: dict[str, pa.DataType]) -> Judged | None:
    """Judges a line by the types of the known columns; None when it is blank. Raises BadLineError."""
    pairs = parsed(line)
    if pairs is None:
        return None
    kept: dict[str, str] = {}
    for key, value in pairs:
        if value is None:
            continue
        if key in kept:
            raise BadLineError("duplicate_key", f"the key {key!r} is given twice")
        kept[key] = _written(fitted(value, types.get(key, pa.string()), key))
    _refuse_surrogates(kept)
    texts = [f"{json.dumps(key, ensure_ascii=False)}:{value}" for key, value in kept.items()]
    return Judged("{" + ",".join(texts) + "}", len(kept), tuple(sorted(k for k in kept if k not in types)))


def parsed(line: bytes) -> Pairs | None:
    """The keys and values of a line; None when it is blank. Raises BadLineError."""
    try:
        text = line.decode()
    except UnicodeDecodeError as e:
        raise BadLineError("invalid_utf8", f"byte {line[e.start]:#04x} at {e.start} is not UTF-8") from None
    if not text.strip(" \t\r\n"):
        return None
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        raise BadLineError("too_deep", f"nested more than {MAX_DEPTH} deep")
    try:
        value = json.loads(text, object_pairs_hook=Pairs, parse_int=Number, parse_float=Number, parse_constant=_no_number)
    except json.JSONDecodeError as e:
        raise BadLineError("malformed", f"{e.msg} at character {e.pos}") from None
    except RecursionError:
        raise BadLineError("too_deep", "nested too deeply") from None
    if not isinstance(value, Pairs):
        kinds = {list: "an array", Number: "a number", str: "a string", bool: "true or false"}
        raise BadLineError("not_an_object", f"the line is {kinds.get(type(value), 'null')}, not an object")
    return value


def _no_number(word: str) -> Any:
    raise BadLineError("malformed", f"{word} is no number in JSON")


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for mark in _STRING.sub(b"", line):
        if mark in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in b"]}":
            depth -= 1
    return deepest


def _refuse_surrogates(kept: dict[str, str]) -> None:
    for key, text in kept.items():
        if _SURROGATE.search(key) or _SURROGATE.search(text):
            raise BadLineError("malformed", f"{key.encode('ascii', 'backslashreplace').decode()} holds half of a surrogate pair")


def fitted(value: Any, kind: pa.DataType, key: str) -> Any:
    """The value in the form in which the column's parser takes it; raises BadLineError when it does not fit."""
    t = pa.types
    if value is None:
        return None
    if t.is_string(kind) or t.is_large_string(kind):
        return value if _finite(value) else _written(value)
    if t.is_struct(kind) and isinstance(value, Pairs):
        return _fitted_struct(value, kind, key)
    if (t.is_list(kind) or t.is_large_list(kind)) and type(value) is list:
        return [fitted(v, kind.value_type, key) for v in value]
    if t.is_boolean(kind) and isinstance(value, bool):
        return value
    if t.is_integer(kind) and isinstance(value, Number):
        return _whole(value, kind, key)
    if t.is_duration(kind) and isinstance(value, Number):
        return _whole(value, pa.int64(), key)
    if t.is_floating(kind) and isinstance(value, Number):
        return _double(value, key)
    if t.is_decimal(kind) and isinstance(value, (str, Number)):
        return str(value)
    direct = (t.is_nested, t.is_boolean, t.is_integer, t.is_floating, t.is_duration)
    if isinstance(value, str) and not any(is_kind(kind) for is_kind in direct):
        return str(value)
    raise BadLineError("wrong_type", f"{key} is {_written(value)[:100]}, not {kind}")


def _fitted_struct(value: Pairs, kind: pa.StructType, key: str) -> Pairs:
    fields = {f.name: f.type for f in kind}
    kept: dict[str, Any] = {}
    for name, inner in value:
        if inner is None:
            continue
        if name in kept:
            raise BadLineError("duplicate_key", f"the key {key}.{name} is given twice")
        if name not in fields:
            raise BadLineError("unknown_field", f"{key} has a field {name!r} that its type does not have")
        kept[name] = fitted(inner, fields[name], f"{key}.{name}")
    return Pairs(kept.items())


def _whole(number: Number, kind: pa.DataType, key: str) -> Number:
    exponent = re.search(r"[eE]([+-]?\d+)$", number)
    if len(number) > 400 or (exponent and abs(int(exponent[1])) > 400):  # Decimal would write out every digit
        raise BadLineError("out_of_range", f"{key} is {number[:100]}, beyond {kind}")
    exact = Decimal(number)
    if exact != exact.to_integral_value():
        raise BadLineError("wrong_type", f"{key} is {number[:100]}, not {kind}")
    bits = kind.bit_width
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if pa.types.is_signed_integer(kind) else (0, 2**bits - 1)
    if not low <= int(exact) <= high:
        raise BadLineError("out_of_range", f"{key} is {number[:100]}, beyond {kind}")
    return Number(int(exact))


def _double(number: Number, key: str) -> Number:
    if float(number) in (float("inf"), float("-inf")):
        raise BadLineError("out_of_range", f"{key} is {number[:100]}, beyond double")
    return number


def _finite(value: Any) -> bool:
    """Whether every number in a value is one that a parser of doubles takes."""
    if isinstance(value, Number):
        return abs(float(value)) != float("inf")
    if isinstance(value, Pairs):
        return all(_finite(v) for _, v in value)
    return all(map(_finite, value)) if isinstance(value, list) else True


def _written(value: Any) -> str:
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k, ensure_ascii=False)}:{_written(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
