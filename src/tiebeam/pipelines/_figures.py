"""Figures and dates as people read them: thousands separated, few digits, a proper minus."""

from __future__ import annotations

from datetime import date
from typing import Any

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"


def whole(value: Any) -> str:
    return f"{int(value):,}".replace("-", MINUS)


def dollars(value: Any, digits: int = 0) -> str:
    sign = MINUS if value < 0 else ""
    return f"{sign}${abs(value):,.{digits}f}"


def short_dollars(value: Any) -> str:
    """At most four digits: $4.60 M, $329.6 k, $52."""
    size = abs(float(value))
    sign = MINUS if value < 0 else ""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{sign}${size / unit:.{2 if size < 10 * unit else 1}f}{NARROW_SPACE}{letter}"
    return f"{sign}${size:.0f}"


def tick_dollars(value: float) -> str:
    return f"${value / 1000:g}{NARROW_SPACE}k" if abs(value) >= 1000 else f"{MINUS if value < 0 else ''}${abs(value):g}"


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{share * 100:.{digits}f}{NARROW_SPACE}%".replace("-", MINUS)


def change(share: float | None) -> str:
    """A relative change with its sign."""
    return NONE if share is None else f"{'+' if share >= 0 else MINUS}{abs(share) * 100:.1f}{NARROW_SPACE}%"


def day(value: date, year: bool = False, weekday: bool = False) -> str:
    return f"{f'{value:%a} ' if weekday else ''}{value.day} {value:%b}{f' {value.year}' if year else ''}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values that span a range: steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = (high - low) or 1.0
    power = 10.0 ** len(str(int(span))) if span >= 1 else 1.0
    steps = sorted(m * power * 10.0**-k for k in range(6) for m in (1, 2, 2.5, 5))
    step = next((s for s in steps if span / s <= about), steps[-1])
    first = int(low // step)
    values = [round((first + i) * step, 10) for i in range(about + 4)]
    return [v for i, v in enumerate(values) if v <= high or values[i - 1] < high]
