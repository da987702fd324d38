"""Properties: the columns and keys of a contract, read from the standard's `properties`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from polars.exceptions import PolarsError

from tiebeam.transforms import _types
from tiebeam.transforms._demands import BOUNDS, Demands, custom
from tiebeam.transforms._rules import Rule
from tiebeam.transforms._written import read_written, strptime_of

_KEYS = {"id", "name", "physicalType", "physicalName", "description", "businessName", "deprecated", "synonyms", "tags", "context"}
_KEYS |= {"authoritativeDefinitions", "customProperties", "primaryKey", "primaryKeyPosition", "logicalType", "logicalTypeOptions"}
_KEYS |= {"semanticType", "required", "unique", "partitioned", "partitionKeyPosition", "classification", "encryptedName", "examples"}
_KEYS |= {"transformSourceObjects", "transformLogic", "transformDescription", "enum", "criticalDataElement", "relationships"}
_KEYS |= {"quality", "properties", "items", "map"}
_OPTIONS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"multipleOf", "format", *BOUNDS},
    "number": {"format", *BOUNDS},
    "date": {"format", *BOUNDS},
    "time": {"format", *BOUNDS},
    "timestamp": {"format", "timezone", "defaultTimezone", *BOUNDS},
    "array": {"minItems", "maxItems"},
    "vector": {"dimensions", "elementType", "distanceMetric", "embeddingModel", "embeddingModelVersion", "normalized"},
    "object": {"required"},
}
_LOGICAL = ("string", "integer", "number", "boolean", "date", "timestamp", "time", "object", "array", "map", "vector")
_FITS = {"number": ("number", "decimal"), "string": ("string", "binary")}


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


class Reading(Demands):
    """Reads properties, and collects what is wrong with them."""

    def columns(self, properties: Any, path: str) -> tuple[Column, ...]:
        found: dict[str, Column] = {}
        for i, given in enumerate(properties):
            name = given.get("physicalName") or given.get("name")
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
        rules = [*self.option_rules(options, type, path), *self.enum_rules(given, type, path), *self.quality_rules(given, type, path)]
        required = bool(given.get("required") or given.get("primaryKey") or self.refuses_null(given))
        return Column(name, type, required, tuple(rules), written, zone, tuple(p for p in parts if p))

    def _parts(self, given: dict[str, Any], logical: Any, options: dict[str, Any], path: str) -> list[Column | None]:
        if logical == "object":
            fields = self.columns(given.get("properties") or [], f"{path}.properties")
            must = set(options.get("required") or [])
            for name in must - {f.name for f in fields}:
                self.wrong(f"{path}.logicalTypeOptions.required", f"names {name!r}, which is no property here")
            return [replace(f, required=f.required or f.name in must) for f in fields]
        if logical == "array" and given.get("items"):
            return [self.column(given["items"], "item", f"{path}.items")]
        if logical == "map" and given.get("map"):
            sides = [(side, given["map"].get(side)) for side in ("key", "value")]
            return [self.column(part, side, f"{path}.map.{side}") for side, part in sides if part]
        return []

    def _type(
        self, given: dict[str, Any], logical: Any, options: dict[str, Any], parts: list[Column | None], path: str
    ) -> pa.DataType | None:
        try:
            exact = _types.physical(given.get("physicalType", "")) or self._decimal_of_tools(given)
        except (ValueError, TypeError) as e:
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
        said = custom(given)
        if str(given.get("physicalType", "")).upper() in ("DECIMAL", "NUMERIC") and "precision" in said:
            return _types.decimal(int(said["precision"]), int(said.get("scale") or 0))
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
                if element is None or not 0 < (options.get("dimensions") or 0) < 2**31:
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
            written = strptime_of(str(options["format"]))
            read_written(pa.array(["?"]), written, type, "UTC")
        except (ValueError, PolarsError) as e:
            what = str(e).partition("\n")[0]
            return self.wrong(f"{path}.logicalTypeOptions.format", what, "use yyyy MM dd HH mm ss SSS XXX and quoted text")
        return written

    def primary_key(self, properties: list[Any], path: str) -> tuple[str, ...]:
        parts = [p for p in properties if p.get("primaryKey")]
        parts.sort(key=lambda p: p.get("primaryKeyPosition") or 0)
        return self._key([str(p.get("physicalName") or p.get("name")) for p in parts], properties, path)

    def unique_keys(self, properties: list[Any], table: dict[str, Any], path: str) -> list[tuple[str, ...]]:
        keys = []
        for p in properties:
            by_rule = any(r.get("metric") == "duplicateValues" and not custom(r).get("judged_elsewhere") for r in p.get("quality") or [])
            if p.get("unique") or by_rule:
                keys.append(self._key([str(p.get("physicalName") or p.get("name"))], properties, path))
        for i, rule in enumerate(table.get("quality") or []):
            at = f"{path}.quality[{i}]"
            if rule.get("type") != "text" and not custom(rule).get("judged_elsewhere") and self.judgeable(rule, at, False):
                names = (rule.get("arguments") or {}).get("properties") or []
                if not names:
                    self.wrong(f"{at}.arguments.properties", "lists no column", "list the columns of the key")
                keys.append(self._key([str(n) for n in names], properties, f"{at}.arguments"))
        return [key for key in keys if key]

    def _key(self, names: list[str], properties: list[Any], path: str) -> tuple[str, ...]:
        known = {str(p.get("physicalName") or p.get("name")): p.get("logicalType") for p in properties}
        for name in names:
            if name not in known:
                self.wrong(f"{path}.properties", f"the key column {name!r} is not in the contract", f"known: {', '.join(known)}")
            elif known[name] in ("object", "array", "map", "vector"):
                self.wrong(f"{path}.properties ({name})", "a nested column cannot be a key", "choose plain columns")
        return tuple(names)
