"""Demands: the rules of a column, read from the standard's `logicalTypeOptions`, `enum` and `quality`.

A rule is kept when it speaks of single rows and allows none to break it. Whatever else is said is refused, unless it is
text for people or marked as judged elsewhere.
"""

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

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_TEXT_FORMATS = {
    "uuid": r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$",
    "email": r"^[^@\s]+@[^@\s]+\.[^@\s.]+$",
    "uri": r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$",
    "ipv4": r"^((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}$",
}
_NOT_JUDGED = {"uniqueItems", "minProperties", "maxProperties", "multipleOf"}
_ELSEWHERE = "to have it judged elsewhere, add `customProperties: [{property: judged_elsewhere, value: true}]` to it"


@dataclass
class Demands:
    """Reads rules, and collects what is wrong with them."""

    where: str
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, path: str, what: str, fix: str = "") -> Any:
        """Notes a problem; returns None, for what could not be read."""
        self.problems.append(Problem(what, f"{self.where}: {path}", fix))

    def known_keys(self, given: dict[str, Any], known: set[str], path: str) -> None:
        for key in given:
            if key not in known:
                if key in _NOT_JUDGED:
                    self.wrong(f"{path}.{key}", "cannot be judged here", "remove it, or judge it by a Derive or Filter behind Conform")
                    continue
                near = difflib.get_close_matches(str(key), known, n=1)
                fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
                self.wrong(f"{path}.{key}", "is not known here", fix)

    def option_rules(self, options: dict[str, Any], type: pa.DataType, path: str) -> list[Rule]:
        path = f"{path}.logicalTypeOptions"
        limits = {o: options[o] for o in BOUNDS if options.get(o) is not None}
        rules: list[Rule | None] = [self._bound(limit, BOUNDS[o], type, f"{path}.{o}") for o, limit in limits.items()]
        text, spelled = _types.kind(type) == "string", options.get("format")
        if text and spelled in _TEXT_FORMATS:
            rules.append(Pattern(_TEXT_FORMATS[spelled]))
        elif text and spelled and spelled != "password":
            self.wrong(f"{path}.format", f"{spelled!r} is not supported", f"use `pattern`, or one of: {', '.join(_TEXT_FORMATS)}, binary")
        if options.get("pattern") is not None:
            rules.append(self._pattern(options["pattern"], type, f"{path}.pattern"))
        for low, high in (("minLength", "maxLength"), ("minItems", "maxItems")):
            if low in options or high in options:
                rules.append(self._length(options.get(low) or 0, options.get(high), f"{path}.{low if low in options else high}"))
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
        if low < 0 or (high is not None and high < low):
            return self.wrong(path, f"{low!r} to {high!r} is no range of lengths", "give whole numbers, the smaller first")
        return Length(low, high)

    def _multiple(self, factor: Any, type: pa.DataType, path: str) -> Rule | None:
        largest = 2 ** (type.bit_width - pa.types.is_signed_integer(type)) - 1
        if not isinstance(factor, int) or not 1 <= factor <= largest:
            return self.wrong(path, f"{factor!r} is no whole number that {type} can be a multiple of", "give a whole number from 1 on")
        return MultipleOf(factor)

    def enum_rules(self, given: dict[str, Any], type: pa.DataType, path: str) -> list[Rule]:
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
                quoted = " (quote it: in YAML a bare NO, on or 2020-01-01 is no text)" if _types.kind(type) == "string" else ""
                self.wrong(f"{path}[{i}]", f"{value!r} is no value of {type}", f"give a value of that type{quoted}")
        return [rule(pa.array([g.as_py() for g in good], type))]

    def quality_rules(self, given: dict[str, Any], type: pa.DataType, path: str) -> list[Rule]:
        rules: list[Rule] = []
        for i, rule in enumerate(given.get("quality") or []):
            at, arguments = f"{path}.quality[{i}]", rule.get("arguments") or {}
            if rule.get("type") == "text" or custom(rule).get("judged_elsewhere") or not self.judgeable(rule, at, True):
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

    def judgeable(self, rule: dict[str, Any], path: str, of_column: bool) -> bool:
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

    def refuses_null(self, given: dict[str, Any]) -> bool:
        rules = (rule for rule in given.get("quality") or [] if not custom(rule).get("judged_elsewhere"))
        return any(rule.get("metric") in ("nullValues", "missingValues") for rule in rules)


def scalar(value: Any, type: pa.DataType) -> pa.Scalar:
    """A value from YAML in a column's own type; raises when it is of another kind, or would change."""
    family = _types.kind(type)
    if family == "decimal":
        return pa.scalar(Decimal(str(value)), type)
    if family in ("date", "time", "timestamp") and isinstance(value, str):
        text = value.replace("Z", "+00:00") if family == "timestamp" else value
        reads = {"date": datetime.date.fromisoformat, "time": datetime.time.fromisoformat, "timestamp": datetime.datetime.fromisoformat}
        value = reads[family](text)
    if family == "timestamp" and isinstance(value, datetime.datetime) and (value.tzinfo is None) != (type.tz is None):
        value = value.replace(tzinfo=datetime.UTC if type.tz else None)
    expected: Any = {"string": str, "boolean": bool, "integer": int, "number": int | float}.get(family, object)
    if not isinstance(value, expected) or (isinstance(value, bool) and family in ("integer", "number")):
        raise TypeError(f"expected {family}")
    made = pa.scalar(value, type)
    if family == "number" and math.isinf(made.as_py()):
        raise ValueError("beyond every number of this type")
    return made


def custom(given: dict[str, Any]) -> dict[str, Any]:
    entries = given.get("customProperties") or []
    return {str(entry.get("property")): entry.get("value") for entry in entries}
