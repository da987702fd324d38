"""What people see on a terminal: tables of at most 100 columns, and the live progress of a run.

Results go to standard output, progress to standard error. On a terminal progress is redrawn in place; elsewhere it is
one line every few seconds.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

WIDTH = 100


def width() -> int:
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> str:
    """Lays out a table within the width: the last column wraps, numbers are right-aligned with thousands separated."""
    rows = [list(row) for row in rows]
    columns = [[row[i] for row in rows] for i in range(len(head))]
    right = [any(map(_is_number, column)) and all(value is None or _is_number(value) for value in column) for column in columns]
    return _layout(list(head), [[_cell(value) for value in row] for row in rows], right, title)


def paragraphs(text: str) -> str:
    """Fills paragraphs to the width; indented lines, which are examples, stay as they are."""
    return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width()) for part in text.split("\n\n"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return str(value)


def _layout(head: list[str], cells: list[list[str]], right: list[bool], title: str) -> str:
    sizes = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(head, *cells, strict=True)]
    sizes[-1] = max(12, min(sizes[-1], width() - sum(sizes[:-1]) - 2 * (len(head) - 1)))

    def line(row: list[str]) -> list[str]:
        last = [part for text in row[-1].split("\n") for part in textwrap.wrap(text, sizes[-1]) or [""]]
        first = [c.rjust(s) if r else c.ljust(s) for c, s, r in zip(row[:-1], sizes, right, strict=False)]
        lasts = [part.rjust(sizes[-1]) if right[-1] else part for part in last]
        indent = sum(s + 2 for s in sizes[:-1])
        return ["  ".join([*first, lasts[0]]).rstrip(), *(" " * indent + part for part in lasts[1:])]

    rule = "  ".join("─" * s for s in sizes)
    body = [part for row in cells for part in line(row)]
    return "\n".join([*([title] if title else []), *line(head), rule, *body])


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{int(value // 60)} min {int(value % 60)} s"


class Progress:
    """Shows what `read()` says, as lines of text, until the `with` block ends."""

    def __init__(self, read: Callable[[float], list[str]], stream: Any = None, every_secs: float = 5.0):
        self.read = read
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every_secs = 0.25 if self.live else every_secs
        self.done = threading.Event()
        self.drawn = 0

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        self.thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.done.set()
        self.thread.join()
        self._erase()

    def _show(self) -> None:
        while not self.done.wait(self.every_secs):
            lines = self.read(time.monotonic() - self.started)
            if not self.live:
                lines = lines[:1]
            self._erase()
            self.stream.write("".join(f"{line[: width()]}\n" for line in lines))
            self.stream.flush()
            self.drawn = len(lines)

    def _erase(self) -> None:
        if self.live and self.drawn:
            self.stream.write(f"\x1b[{self.drawn}F\x1b[J")
            self.stream.flush()
            self.drawn = 0
