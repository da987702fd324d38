"""Windows of event time as a column: in a bounded pipeline a row's window is a key like any other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa

from tiebeam.errors import Problem

WINDOW_START = "window_start"
_UNITS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def window_micros(window: str | float | None) -> tuple[int, list[Problem]]:
    """The length of a window in microseconds, 0 for none."""
    return (0, []) if window is None else length_micros(window, "window")


def length_micros(length: str | float, where: str, least: int = 1) -> tuple[int, list[Problem]]:
    """A length of time in microseconds, of at least so many; `where` names the parameter in a problem."""
    text = f"{length}s" if isinstance(length, int | float) else str(length)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", text)
    micros = round(float(match[1]) * _UNITS[match[2]]) if match else -1
    if micros < least:
        return 0, [Problem(f"{length!r} is not a length of time", where, 'write "30s", "1m", "6h", "1d" or a number of seconds')]
    return micros, []


def lengths(problems: list[Problem], least: int = 1, **named: str | float | None) -> Iterator[int]:
    """Lengths of time in microseconds, in the order given, 0 for none; adds to the problems what is none."""
    for where, length in named.items():
        micros, wrong = (0, []) if length is None else length_micros(length, where, least)
        problems += wrong
        yield micros


def window_starts(times: pa.Array, micros: int) -> pa.Array:
    """The start of the fixed window, aligned with the epoch, of each of these times, none of which is null."""
    ticks = times.cast(pa.int64()).to_numpy()
    return pa.array(ticks - ticks % micros, pa.int64()).cast(times.type)
