"""Properties: the columns of a contract, read from the standard's `properties`, `logicalTypeOptions` and `quality`."""

from __future__ import annotations

import datetime
import difflib
import math
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import Problem
from tiebeam.transforms import _types
from tiebeam.transforms._rules import Bound, Length, MultipleOf, NotMissing, OneOf, Pattern, Rule
from tiebeam.transforms._written import strptime_of

_KEYS = set(
    "id name physicalType physicalName description businessName deprecated synonyms authoritativeDefinitions tags customProperties primaryKey "
    "primaryKeyPosition logicalType logicalTypeOptions semanticType required unique partitioned partitionKeyPosition classification "
    "encryptedName transformSourceObjects transformLogic transformDescription examples enum criticalDataElement relationships quality "
    "properties items map context".split()
)
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_OPTIONS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"multipleOf", "format", *_BOUNDS},
    "number": {"format", *_BOUNDS},
    "date": {"format", *_BOUNDS},
    "time": {"format", *_BOUNDS},
    "timestamp": {"format", "timezone", "defaultTimezone", *_BOUNDS},
    "array": {"minItems", "maxItems"},
    "vector": {"dimensions", "elementType", "distanceMetric", "embeddingModel", "embeddingModelVersion", "normalized"},
    "object": {"required"},
}
_LOGICAL = ("string", "integer", "number", "boolean", "date", "timestamp", "time", "object", "array", "map", "vector")
_FITS = {"number": ("number", "decimal"), "string": ("string", "binary")}
_TEXT_FORMATS = {
    "uuid": r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$",
    "email": r"^[^@\s]+@[^@\s]+\.[^@\s.]+$",
    "uri": r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$",
    "ipv4": r"^((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}$",
}
_ELSEWHERE = "to have it judged elsewhere, add `customProperties: [{property: judged_elsewhere, value: true}]` to it"


@dataclass(frozen=True)
class Column:
    """A column of a contract, or a part of one: the fields of an object, the items of an array, key and value of a map."""

    name: str
    type: pa.DataType
    required: bool = False
    rules: tuple[Rule, ...] = ()
    written: str | None = None
    """How dates and times are written in text (strptime); None is ISO 8601."""
    zone: str = "UTC"
    """The zone of times that are written without one."""
    parts: tuple[Column, ...] = ()

    @property
    def demanding(self) -> bool:
        """Whether anything inside this column is demanded beyond its type."""
        return any(p.required or p.rules or p.demanding for p in self.parts)


@dataclass
class Reading:
    """Reads properties, and collects what is wrong with them."""

    where: str
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, path: str, what: str, fix: str = "") -> None:
        self.problems.append(Problem(what, f"{self.where}: {path}", fix))

    def known_keys(self, given: dict[str, Any], known: set[str], path: str) -> None:
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                self.wrong(f"{path}.{key}", "is not known here", f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}")

    def columns(self, properties: Any, path: str) -> tuple[Column, ...]:
        found: dict[str, Column] = {}
        for i, given in enumerate(properties if isinstance(properties, list) else []):
            name = isinstance(given, dict) and (given.get("physicalName") or given.get("name"))
            at = f"{path}[{i}]" + (f" ({name})" if name else "")
            if not name:
                self.wrong(at, "has no name", "write `name: …`")
            elif str(name) in found:
                self.wrong(at, f"the column {name!r} is described twice", "keep one of the two")
            elif column := self.column(given, str(name), at):
                found[str(name)] = column
        return tuple(found.values())

    def column(self, given: dict[str, Any], name: str, path: str) -> Column | None:
        self.known_keys(given, _KEYS, path)
        options = given.get("logicalTypeOptions") or {}
        logical = given.get("logicalType")
        if logical in _LOGICAL:
            self.known_keys(options, _OPTIONS.get(logical, set()), f"{path}.logicalTypeOptions")
        parts = self._parts(given, logical, options, path)
        type = self._type(given, logical, options, parts, path)
        if type is None:
            return None
        written, zone = self._written(options, type, path), str(options.get("defaultTimezone") or "UTC").replace("Etc/", "")
        rules = [*self._option_rules(options, type, path), *self._enum(given, type, path), *self._quality_rules(given, type, path)]
        required = bool(given.get("required") or given.get("primaryKey") or self._refuses_null(given))
        return Column(name, type, required, tuple(rules), written, zone, tuple(p for p in parts if p))

    def _parts(self, given: dict[str, Any], logical: Any, options: dict[str, Any], path: str) -> list[Column | None]:
        if logical == "object":
            fields = self.columns(given.get("properties") or [], f"{path}.properties")
            must = set(options.get("required") or [])
            for name in must - {f.name for f in fields}:
                self.wrong(f"{path}.logicalTypeOptions.required", f"names {name!r}, which is no property here")
            return [Column(**{**vars(f), "required": f.required or f.name in must}) for f in fields]
        if logical == "array" and isinstance(given.get("items"), dict):
            return [self.column(given["items"], "item", f"{path}.items")]
        if logical == "map" and isinstance(given.get("map"), dict):
            sides = [(side, given["map"].get(side)) for side in ("key", "value")]
            return [self.column(part, side, f"{path}.map.{side}") for side, part in sides if isinstance(part, dict)]
        return []

    def _type(self, given: dict[str, Any], logical: Any, options: dict[str, Any], parts: list[Column | None], path: str) -> pa.DataType | None:
        try:
            exact = _types.physical(given.get("physicalType", "")) or self._decimal_of_tools(given)
        except ValueError as e:
            return self.wrong(f"{path}.physicalType", str(e), "a precision is 1 to 76, a scale not above it")
        if logical is None and exact is not None:
            return exact
        if logical not in _LOGICAL:
            near = difflib.get_close_matches(str(logical), _LOGICAL, n=1)
            what = "says no logicalType" if logical is None else f"{logical!r} is no logical type"
            return self.wrong(f"{path}.logicalType", what, f"did you mean {near[0]}?" if near else f"one of: {', '.join(_LOGICAL)}")
        if exact is not None and _types.kind(exact) in _FITS.get(logical, (logical,)):
            return self._zoned(exact, options) if logical == "timestamp" else exact
        return self._logical_type(logical, options, parts, path)

    def _decimal_of_tools(self, given: dict[str, Any]) -> pa.DataType | None:
        """datacontract-cli keeps precision and scale of a DECIMAL as custom properties."""
        custom = _custom(given)
        if str(given.get("physicalType", "")).upper() in ("DECIMAL", "NUMERIC") and "precision" in custom:
            return _types.decimal(int(custom["precision"]), int(custom.get("scale") or 0))
        return None

    def _zoned(self, type: pa.DataType, options: dict[str, Any]) -> pa.DataType:
        zone = options.get("defaultTimezone") or ("UTC" if options.get("timezone") else type.tz)
        return pa.timestamp(type.unit, str(zone).replace("Etc/", "") if zone else None)

    def _logical_type(self, logical: str, options: dict[str, Any], parts: list[Column | None], path: str) -> pa.DataType | None:
        spelled = options.get("format")
        match logical:
            case "integer" | "number" if spelled:
                known = _types.INTEGERS if logical == "integer" else _types.FLOATS
                if spelled not in known:
                    return self.wrong(f"{path}.logicalTypeOptions.format", f"{spelled!r} is not supported", f"one of: {', '.join(known)}")
                return known[spelled]
            case "string" if spelled in ("binary", "byte"):
                return pa.binary()
            case "timestamp":
                return self._zoned(pa.timestamp("us"), options)
            case "vector":
                element = _types.VECTORS.get(options.get("elementType", "float32"))
                if element is None or not isinstance(options.get("dimensions"), int):
                    fix = f"give dimensions, and elementType as one of: {', '.join(_types.VECTORS)}"
                    return self.wrong(f"{path}.logicalTypeOptions", "does not describe a vector we support", fix)
                return pa.list_(element, options["dimensions"])
            case "object" | "array" | "map":
                return self._nested_type(logical, parts, path)
        return _types.SIMPLE[logical]

    def _nested_type(self, logical: str, parts: list[Column | None], path: str) -> pa.DataType | None:
        key, count = {"object": ("properties", None), "array": ("items", 1), "map": ("map", 2)}[logical]
        if not parts or count not in (None, len(parts)):
            needs = {"object": "`properties:`", "array": "`items:`", "map": "`map:` with `key:` and `value:`"}[logical]
            return self.wrong(f"{path}.{key}", f"is needed: {logical} alone says no type", f"describe what is inside under {needs}")
        types = [p.type for p in parts if p]
        if len(types) < len(parts):
            return None
        if logical == "object":
            return pa.struct([pa.field(p.name, p.type) for p in parts if p])
        return pa.list_(types[0]) if logical == "array" else pa.map_(*types)

    def _written(self, options: dict[str, Any], type: pa.DataType, path: str) -> str | None:
        if _types.kind(type) not in ("date", "time", "timestamp") or not options.get("format"):
            return None
        try:
            return strptime_of(str(options["format"]))
        except ValueError as e:
            return self.wrong(f"{path}.logicalTypeOptions.format", str(e), "use yyyy MM dd HH mm ss SSS XXX and quoted text")

    def _option_rules(self, options: dict[str, Any], type: pa.DataType, path: str) -> list[Rule]:
        path = f"{path}.logicalTypeOptions"
        rules: list[Rule | None] = [self._bound(options[o], sign, type, f"{path}.{o}") for o, sign in _BOUNDS.items() if options.get(o) is not None]
        text, spelled = _types.kind(type) == "string", options.get("format")
        if text and spelled in _TEXT_FORMATS:
            rules.append(Pattern(_TEXT_FORMATS[spelled]))
        elif text and spelled and spelled != "password":
            self.wrong(f"{path}.format", f"{spelled!r} is not supported", f"use `pattern`, or one of: {', '.join(_TEXT_FORMATS)}, binary")
        if options.get("pattern") is not None:
            rules.append(self._pattern(options["pattern"], type, f"{path}.pattern"))
        for low, high in (("minLength", "maxLength"), ("minItems", "maxItems")):
            if low in options or high in options:
                rules.append(self._length(options.get(low, 0), options.get(high), f"{path}.{low if low in options else high}"))
        if options.get("multipleOf") is not None:
            rules.append(self._multiple(options["multipleOf"], type, f"{path}.multipleOf"))
        return [r for r in rules if r]

    def _bound(self, limit: Any, sign: str, type: pa.DataType, path: str) -> Rule | None:
        """A bound in the column's own type; on whole numbers and decimals 0.5 is rounded to the side that means the same."""
        try:
            if _types.kind(type) in ("integer", "decimal"):
                scale = type.scale if _types.kind(type) == "decimal" else 0
                up = sign in (">=", "<")
                exact = Decimal(str(limit)).quantize(Decimal(1).scaleb(-scale), ROUND_CEILING if up else ROUND_FLOOR, Context(prec=100))
                return Bound(sign, pa.scalar(exact if _types.kind(type) == "decimal" else int(exact), type))
            return Bound(sign, scalar(limit, type))
        except (pa.ArrowInvalid, OverflowError, ArithmeticError, ValueError, TypeError) as e:
            return self.wrong(path, f"{limit!r} is no value of {type} ({e})", "give a limit that lies within the type")

    def _pattern(self, regex: Any, type: pa.DataType, path: str) -> Rule | None:
        if _types.kind(type) != "string":
            return self.wrong(path, f"a pattern is for text, and this is {type}", "remove it, or make the column a string")
        try:
            pc.match_substring_regex(pa.array([""]), str(regex))
        except pa.ArrowInvalid as e:
            return self.wrong(path, f"{regex!r} is no regular expression of RE2: {e}", "RE2 has no look-around and no back-references")
        return Pattern(str(regex))

    def _length(self, low: Any, high: Any, path: str) -> Rule | None:
        if any(not isinstance(n, int) or n < 0 for n in (low, 0 if high is None else high)) or (high is not None and high < low):
            return self.wrong(path, f"{low!r} to {high!r} is no range of lengths", "give whole numbers, the smaller first")
        return Length(low, high)

    def _multiple(self, factor: Any, type: pa.DataType, path: str) -> Rule | None:
        largest = 2 ** (type.bit_width - pa.types.is_signed_integer(type)) - 1
        if not isinstance(factor, int) or not 1 <= factor <= largest:
            return self.wrong(path, f"{factor!r} is no whole number that {type} can be a multiple of", "give a whole number from 1 on")
        return MultipleOf(factor)

    def _enum(self, given: dict[str, Any], type: pa.DataType, path: str) -> list[Rule]:
        if not given.get("enum"):
            return []
        values = [entry.get("value") if isinstance(entry, dict) else entry for entry in given["enum"]]
        return self._values(OneOf, values, type, f"{path}.enum")

    def _values(self, rule: Any, values: list[Any], type: pa.DataType, path: str) -> list[Rule]:
        good = []
        for i, value in enumerate(values):
            try:
                good.append(scalar(value, type))
            except (pa.ArrowException, OverflowError, ArithmeticError, ValueError, TypeError):
                quoted = ' (quote it: in YAML a bare NO, on or 2020-01-01 is no text)' if _types.kind(type) == "string" else ""
                self.wrong(f"{path}[{i}]", f"{value!r} is no value of {type}", f"give a value of that type{quoted}")
        return [rule(pa.array([g.as_py() for g in good], type))]

    def _quality_rules(self, given: dict[str, Any], type: pa.DataType, path: str) -> list[Rule]:
        rules: list[Rule] = []
        for i, rule in enumerate(given.get("quality") or []):
            at, arguments = f"{path}.quality[{i}]", rule.get("arguments") or {}
            if rule.get("type") == "text" or _custom(rule).get("judged_elsewhere") or not self._judgeable(rule, at, True):
                continue
            if rule["metric"] == "invalidValues":
                self.known_keys(arguments, {"validValues", "pattern"}, f"{at}.arguments")
                if arguments.get("validValues") is not None:
                    rules += self._values(OneOf, arguments["validValues"], type, f"{at}.arguments.validValues")
                if arguments.get("pattern") is not None:
                    rules += [r for r in [self._pattern(arguments["pattern"], type, f"{at}.arguments.pattern")] if r]
                if not arguments:
                    self.wrong(f"{at}.arguments", "is needed", "give validValues or pattern")
            elif rule["metric"] == "missingValues":
                words = [w for w in arguments.get("missingValues") or [] if w is not None]
                rules += self._values(NotMissing, words, type, f"{at}.arguments.missingValues")
        return rules

    def _judgeable(self, rule: dict[str, Any], path: str, of_column: bool) -> bool:
        """Whether a quality rule speaks of rows, and allows none to break it."""
        metrics = ("invalidValues", "missingValues", "nullValues", "duplicateValues") if of_column else ("duplicateValues",)
        if rule.get("type", "library") != "library" or "metric" not in rule:
            self.wrong(path, f"a {rule.get('type', 'library')} rule without `metric` cannot be judged row by row", _ELSEWHERE)
        elif rule["metric"] not in metrics:
            self.wrong(f"{path}.metric", f"{rule['metric']} cannot be judged row by row", _ELSEWHERE)
        elif not (rule.get("mustBe") == 0 or rule.get("mustBeLessOrEqualTo") == 0 or rule.get("mustBeLessThan") == 1):
            self.wrong(path, f"only `mustBe: 0` can be judged row by row, for {rule['metric']}", _ELSEWHERE)
        else:
            return True
        return False

    def _refuses_null(self, given: dict[str, Any]) -> bool:
        return any(
            rule.get("metric") in ("nullValues", "missingValues") and not _custom(rule).get("judged_elsewhere") for rule in given.get("quality") or []
        )

    def primary_key(self, properties: list[Any], path: str) -> tuple[str, ...]:
        parts = [p for p in properties if isinstance(p, dict) and p.get("primaryKey")]
        parts.sort(key=lambda p: p.get("primaryKeyPosition") or 0)
        return self._key([str(p.get("physicalName") or p.get("name")) for p in parts], properties, path)

    def unique_keys(self, properties: list[Any], table: dict[str, Any], path: str) -> list[tuple[str, ...]]:
        keys = []
        for p in (p for p in properties if isinstance(p, dict)):
            by_rule = any(r.get("metric") == "duplicateValues" and not _custom(r).get("judged_elsewhere") for r in p.get("quality") or [])
            if p.get("unique") or by_rule:
                keys.append(self._key([str(p.get("physicalName") or p.get("name"))], properties, path))
        for i, rule in enumerate(table.get("quality") or []):
            at = f"{path}.quality[{i}]"
            if rule.get("type") != "text" and not _custom(rule).get("judged_elsewhere") and self._judgeable(rule, at, False):
                names = (rule.get("arguments") or {}).get("properties") or []
                if not names:
                    self.wrong(f"{at}.arguments.properties", "lists no column", "list the columns of the key")
                keys.append(self._key([str(n) for n in names], properties, f"{at}.arguments"))
        return [key for key in keys if key]

    def _key(self, names: list[str], properties: list[Any], path: str) -> tuple[str, ...]:
        known = {str(p.get("physicalName") or p.get("name")): p.get("logicalType") for p in properties if isinstance(p, dict)}
        for name in names:
            if name not in known:
                self.wrong(f"{path}.properties", f"the key column {name!r} is not in the contract", f"known: {', '.join(known)}")
            elif known[name] in ("object", "array", "map", "vector"):
                self.wrong(f"{path}.properties ({name})", "a nested column cannot be a key", "choose plain columns")
        return tuple(names)


def scalar(value: Any, type: pa.DataType) -> pa.Scalar:
    """A value from YAML in a column's own type; raises when it is of another kind, or would change."""
    family = _types.kind(type)
    if family == "decimal":
        return pa.scalar(Decimal(str(value)), type)
    if family in ("date", "time", "timestamp") and isinstance(value, str):
        text = value.replace("Z", "+00:00") if family == "timestamp" else value
        reads = {"date": datetime.date, "time": datetime.time, "timestamp": datetime.datetime}[family]
        value = reads.fromisoformat(text)
    if family == "timestamp" and isinstance(value, datetime.datetime) and (value.tzinfo is None) != (type.tz is None):
        value = value.replace(tzinfo=datetime.UTC if type.tz else None)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if {"string": isinstance(value, str), "boolean": isinstance(value, bool), "integer": isinstance(value, int), "number": is_number}.get(family, True):
        if family == "integer" and isinstance(value, bool):
            raise TypeError("a truth value is no number")
        made = pa.scalar(value, type)
        if family == "number" and math.isinf(made.as_py()):
            raise ValueError("beyond every number of this type")
        return made
    raise TypeError(f"expected {family}")


def _custom(given: dict[str, Any]) -> dict[str, Any]:
    return {entry.get("property"): entry.get("value") for entry in given.get("customProperties") or [] if isinstance(entry, dict)}
