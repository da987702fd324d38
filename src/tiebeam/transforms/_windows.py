"""Windows of event time: what they are, and as a column, for a row's window is a key like any other."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import cached_property
from math import gcd
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import Problem

WINDOW_START, WINDOW_END = "window_start", "window_end"
MILLI = 1_000
SHORTEST = 100_000
_UNITS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


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


class Windowing(ABC):
    """How event time is cut into windows. A pane is the smallest piece of time that is never cut: rows are reduced by panes."""

    @abstractmethod
    def problems(self) -> list[Problem]:
        """What is wrong with the parameters."""

    @abstractmethod
    def panes(self, times: np.ndarray) -> np.ndarray:
        """The start of the pane of each of these times, in microseconds."""

    def windows(self, panes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The starts of the windows that have each pane, as pairs: the number of the pane, the start of the window."""
        return np.arange(len(panes)), panes

    @abstractmethod
    def ends(self, starts: np.ndarray) -> np.ndarray:
        """Where the windows end that begin here."""

    @property
    @abstractmethod
    def tick(self) -> int:
        """How often, in event time, it is worth a look whether a window is over, in microseconds."""


@dataclass(frozen=True)
class Fixed(Windowing):
    """Windows of one length, side by side, aligned with 1970-01-01 UTC and moved by `offset`."""

    size: str | float
    offset: str | float = 0

    def problems(self) -> list[Problem]:
        return length_micros(self.size, "window", MILLI)[1] + length_micros(self.offset, "window, offset", 0)[1]

    @cached_property
    def micros(self) -> int:
        return length_micros(self.size, "window")[0]

    @cached_property
    def moved(self) -> int:
        return length_micros(self.offset, "offset", 0)[0]

    def panes(self, times: np.ndarray) -> np.ndarray:
        return times - (times - self.moved) % self.micros

    def ends(self, starts: np.ndarray) -> np.ndarray:
        return starts + self.micros

    @property
    def tick(self) -> int:
        return _whole_millis(gcd(self.micros, self.moved))


@dataclass(frozen=True)
class Sliding(Windowing):
    """Windows of one length, one every `period`, aligned with 1970-01-01 UTC; a row is in several where they overlap, in none between."""

    size: str | float
    period: str | float

    def problems(self) -> list[Problem]:
        return length_micros(self.size, "window, size", MILLI)[1] + length_micros(self.period, "window, period", MILLI)[1]

    @cached_property
    def lengths(self) -> tuple[int, int, int]:
        """Size, period and pane in microseconds."""
        size, period = length_micros(self.size, "size")[0], length_micros(self.period, "period")[0]
        return size, period, gcd(size, period)

    def panes(self, times: np.ndarray) -> np.ndarray:
        return times - times % self.lengths[2]

    def windows(self, panes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size, period, _ = self.lengths
        last = panes - panes % period
        most = -(-size // period)
        starts = last[:, None] - np.arange(most) * period
        number, nth = np.nonzero(starts + size > panes[:, None])
        return number, starts[number, nth]

    def ends(self, starts: np.ndarray) -> np.ndarray:
        return starts + self.lengths[0]

    @property
    def tick(self) -> int:
        return _whole_millis(self.lengths[2])


@dataclass(frozen=True)
class Calendar(Windowing):
    """Days, weeks (from Monday) or months as the clocks of a time zone have them, however long they are.

    A day begins with its first moment: where clocks skip midnight, with the moment of the change; where midnight comes twice, with
    the first.
    """

    unit: str
    zone: str = "UTC"

    def problems(self) -> list[Problem]:
        found = []
        if self.unit not in ("day", "week", "month"):
            found.append(Problem(f"{self.unit!r} is not one of day, week, month", "window, unit"))
        try:
            ZoneInfo(self.zone)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            fix = 'write a name of the IANA list, such as "Europe/Berlin"'
            found.append(Problem(f"{self.zone!r} is no time zone", "window, zone", fix))
        return found

    def panes(self, times: np.ndarray) -> np.ndarray:
        return self._begins(self._first_days(times))

    def ends(self, starts: np.ndarray) -> np.ndarray:
        return self._begins(self._next(self._first_days(starts)))

    @property
    def tick(self) -> int:
        return 900_000_000  # all changes of clocks since 1972 fall on quarters of an hour

    def _first_days(self, times: np.ndarray) -> np.ndarray:
        """The first local day of the unit that each time is in."""
        local = pc.local_timestamp(pa.array(times).cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us", tz=self.zone)))
        days = local.cast(pa.date32()).cast(pa.int32()).to_numpy().astype("datetime64[D]")
        if self.unit == "week":
            return days - (days.astype(np.int64) + 3) % 7
        return days.astype("datetime64[M]").astype("datetime64[D]") if self.unit == "month" else days

    def _next(self, days: np.ndarray) -> np.ndarray:
        if self.unit == "month":
            return (days.astype("datetime64[M]") + 1).astype("datetime64[D]")
        return days + (7 if self.unit == "week" else 1)

    def _begins(self, days: np.ndarray) -> np.ndarray:
        """The first moment of local days. With fold=0, a time that is skipped or comes twice counts by the clocks before the change."""
        unique, at = np.unique(days, return_inverse=True)
        zone, epoch = ZoneInfo(self.zone), datetime(1970, 1, 1, tzinfo=UTC)
        moments = [(datetime.combine(day, time(), zone).astimezone(UTC) - epoch) // timedelta(microseconds=1) for day in unique.tolist()]
        return np.array(moments, np.int64)[at]


@dataclass(frozen=True)
class Sessions:
    """Windows around rows of a key that follow one another by less than `gap`, as `Sessionize` finds them."""

    gap: str | float

    def problems(self) -> list[Problem]:
        return length_micros(self.gap, "window, gap", MILLI)[1]

    @property
    def tick(self) -> int:
        return min(_whole_millis(length_micros(self.gap, "gap")[0]), 60_000_000)


def windowing(window: Window) -> tuple[Windowing | Sessions | None, list[Problem]]:
    """The windows meant: a length means fixed ones."""
    made = Fixed(window) if isinstance(window, str | int | float) else window
    if made is None:
        return None, []
    if not isinstance(made, Windowing | Sessions):
        fix = 'write "1h", Sliding("1h", "10m"), Sessions("30m"), Calendar("day", zone)'
        return None, [Problem(f"{window!r} is no window", "window", fix)]
    problems = made.problems()
    return (None, problems) if problems else (made, [])


Window = str | float | Windowing | Sessions | None


def _whole_millis(micros: int) -> int:
    """A tick of whole milliseconds, not shorter than one is worth, in which a length goes a whole number of times."""
    whole = micros * MILLI // gcd(micros, MILLI)
    return whole if whole >= SHORTEST else whole * -(-SHORTEST // whole)
