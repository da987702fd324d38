"""Aggregates and windows as text, for options: `total=sum(amount)`, `1h every 10m`, `day Europe/Berlin`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

from tiebeam.errors import ConfigError, Problem
from tiebeam.transforms import aggregate
from tiebeam.transforms.aggregate import Calendar, Fixed, Sessions, Sliding

_REDUCERS: dict[str, Callable[..., aggregate.Reducer]] = {
    "count": aggregate.Count,
    "sum": aggregate.Sum,
    "mean": aggregate.Mean,
    "min": aggregate.Min,
    "max": aggregate.Max,
    "first": aggregate.First,
    "last": aggregate.Last,
    "stddev": aggregate.StdDev,
    "variance": aggregate.Variance,
    "distinct": aggregate.ApproxDistinct,
    "median": lambda column: aggregate.ApproxQuantiles(column, (0.5,)),
}
AGGREGATES = ", ".join(_REDUCERS)
WINDOWS = '"1h", "1h every 10m", "session 30m", "day", "week" or "month" with a time zone, such as "day Europe/Berlin"'


def reducers(texts: Iterable[str], where: str) -> dict[str, aggregate.Reducer]:
    """Reads `name=function(column)`; raises ConfigError with all that is wrong."""
    found: dict[str, aggregate.Reducer] = {}
    problems = []
    for text in texts:
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\w+)\s*\(\s*(.*?)\s*\)\s*", text)
        if not match:
            problems.append(Problem(f"{text!r} is no aggregate", where, "write name=function(column), such as total=sum(amount)"))
            continue
        name, function, column = match.groups()
        if function not in _REDUCERS:
            near = difflib.get_close_matches(function, _REDUCERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {AGGREGATES}"
            problems.append(Problem(f"{function!r} is no function", where, hint))
        elif name in found:
            problems.append(Problem(f"{name!r} is named twice", where, "give each aggregate its own name"))
        elif not column and function != "count":
            problems.append(Problem(f"{text!r} names no column", where, f"write {name}={function}(column)"))
        else:
            found[name] = _REDUCERS[function](*([column] if column else []))
    if problems:
        raise ConfigError(*problems)
    return found


def window(text: str | None) -> aggregate.Window:
    """Reads a window; what is no length is found by the window itself."""
    words = (text or "").split()
    match words:
        case []:
            return None
        case ["session", gap]:
            return Sessions(gap)
        case ["day" | "week" | "month" as unit, *zone]:
            return Calendar(unit, " ".join(zone) or "UTC")
        case [size, "every", period]:
            return Sliding(size, period)
        case _:
            return Fixed(" ".join(words))
