"""Charts as inline SVG, drawn for a given width: no script, no font and no file from elsewhere.

Colours are the variables of the page's style, so that a chart follows light and dark. Marks carry `data-tip`, whose
lines are shown by the page while pointed at. `responsive` draws a chart twice, for a desk and for a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from tiebeam.pipelines._figures import day, short_dollars, tick_dollars, ticks
from tiebeam.pipelines._html import Markup, element, join

WIDE, NARROW = 1040, 358


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map: `level` from -1 to 1 is its colour, None leaves it empty."""

    level: float | None
    tip: str
    text: str = ""


@dataclass(frozen=True)
class Interval:
    """One row of a whisker chart."""

    label: str
    low: float
    middle: float
    high: float
    tip: str


def responsive(draw: Callable[[int], Markup]) -> Markup:
    """The same chart for wide and for narrow screens; the style shows one of them."""
    return join(element("div", draw(width), class_=name) for width, name in ((WIDE, "wide"), (NARROW, "narrow")))


def svg(width: float, height: float, label: str, *children: object) -> Markup:
    return element("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


def text(x: float, y: float, words: str, anchor: str = "start", class_: str | None = None) -> Markup:
    return element("text", words, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def days(points: list[tuple[date, float]], averages: list[tuple[date, float]], tips: list[str], width: int, label: str) -> Markup:
    """A line per day with its weekly average on top; a day without a value breaks the line."""
    height, left, right, top, bottom = (300 if width == WIDE else 230), 46, 8, 26, 24
    first, last = points[0][0], points[-1][0]
    scale = ticks(0, max(v for _, v in points), 5 if width == WIDE else 4)

    def at(d: date, value: float) -> tuple[float, float]:
        x = left + (width - left - right) * (d - first).days / max(1, (last - first).days)
        return x, height - bottom - (height - top - bottom) * value / scale[-1]

    runs: list[list[tuple[float, float]]] = []
    for i, (d, value) in enumerate(points):
        if i == 0 or (d - points[i - 1][0]).days > 1:
            runs.append([])
        runs[-1].append(at(d, value))
    base = height - bottom
    areas = [element("path", d=f"{_path(run)}L{run[-1][0]:.1f},{base}L{run[0][0]:.1f},{base}Z", class_="area") for run in runs]
    lines = [element("path", d=_path(run), class_="thin") for run in runs]
    average = element("path", d=_path([at(*p) for p in averages]), class_="thick")
    step = (width - left - right) / max(1, (last - first).days)
    hits = [
        element("rect", x=at(d, 0)[0] - step / 2, y=top, width=step, height=base - top, class_="hit", data_tip=tip)
        for (d, _), tip in zip(points, tips, strict=True)
    ]
    return svg(
        width, height, label, _rules(scale, left, width - right, lambda v: at(first, v)[1], tick_dollars),
        _months(first, last, lambda d: at(d, 0)[0], base + 16, width), areas, lines, average, _peak(points, at, width), hits,
    )  # fmt: skip


def _rules(scale: list[float], left: float, right: float, y: Callable[[float], float], words: Callable[[float], str]) -> list[Markup]:
    return [
        join([element("line", x1=left, x2=right, y1=y(v), y2=y(v), class_="rule"), text(left - 6, y(v) + 4, words(v), "end")])
        for v in scale
    ]


def _months(first: date, last: date, x: Callable[[date], float], y: float, width: int) -> list[Markup]:
    starts = [d for d in (first + timedelta(i) for i in range((last - first).days + 1)) if d.day == 1]
    return [text(x(d), y, f"{d:%b}") for d in starts if width == WIDE or d.month % 2]


def _peak(points: list[tuple[date, float]], at: Callable[[date, float], tuple[float, float]], width: int) -> Markup:
    best, value = max(points, key=lambda p: p[1])
    x, y = at(best, value)
    anchor = "end" if x > width * 0.7 else "start"
    shift = -8 if anchor == "end" else 8
    return join(
        [
            element("circle", cx=x, cy=y, r=3.5, class_="dot"),
            text(x + shift, y - 4, f"{day(best)}: {short_dollars(value)}", anchor, "strong"),
        ]
    )


def heat(
    rows: list[tuple[str, list[Cell]]], columns: list[str], width: int, label: str, *, labels: int = 132, cell_height: int = 22
) -> Markup:
    """A heat map. On a narrow screen row labels stand above their rows when there are many columns."""
    count = max(len(cells) for _, cells in rows)
    above = width < WIDE and count > 30
    left = 0 if above else labels
    size = (width - left) / count
    pitch = cell_height + (16 if above else 2)
    top = 18
    parts = [
        text(left + size * i + (size / 2 if count <= 30 else 0), 12, c, "middle" if count <= 30 else "start")
        for i, c in enumerate(columns)
        if c
    ]
    for r, (name, cells) in enumerate(rows):
        y = top + r * pitch
        parts.append(text(0, y + 11, name) if above else text(left - 8, y + cell_height / 2 + 4, name, "end"))
        y += 15 if above else 0
        parts += [_cell(cell, left + size * i, y, size, cell_height) for i, cell in enumerate(cells)]
    return svg(width, top + len(rows) * pitch + 2, label, parts)


def _cell(cell: Cell, x: float, y: float, width: float, height: float) -> Markup:
    gap = 2 if width > 12 else 1
    place = {"x": x, "y": y, "width": width - gap, "height": height, "rx": 2 if width > 12 else 1, "data_tip": cell.tip}
    if cell.level is None:
        return element("rect", **place, class_="none")
    strength = min(1.0, abs(cell.level))
    box = element("rect", **place, class_="up" if cell.level >= 0 else "down", fill_opacity=0.07 + 0.93 * strength)
    if not cell.text:
        return box
    return join([box, text(x + (width - gap) / 2, y + height / 2 + 4, cell.text, "middle", "on" if strength > 0.66 else "over")])


def bars(
    values: list[tuple[str, list[float]]], tips: list[str], words: Callable[[float], str], width: int, label: str, *, every: int = 1
) -> Markup:
    """Columns side by side, one or more series each; `every` thins the labels below them."""
    height, left, right, top, bottom = 240, 46, 4, 12, 26
    scale = ticks(0, max(v for _, series in values for v in series), 4)
    pitch = (width - left - right) / len(values)
    base = height - bottom

    def y(value: float) -> float:
        return base - (base - top) * value / scale[-1]

    parts: list[Markup] = []
    for i, ((name, series), tip) in enumerate(zip(values, tips, strict=True)):
        x = left + i * pitch
        slot = pitch * 0.86 / len(series)
        parts += [
            element("rect", x=x + pitch * 0.07 + slot * s, y=y(v), width=max(1, slot - 1), height=base - y(v), class_=f"series{s + 1}")
            for s, v in enumerate(series)
        ]
        to_last = len(values) - 1 - i
        if to_last == 0 or (i % every == 0 and to_last > every / 2):
            parts.append(text(x + pitch / 2, base + 16, name, "middle"))
        parts.append(element("rect", x=x, y=top, width=pitch, height=base - top, class_="hit", data_tip=tip))
    return svg(width, height, label, _rules(scale, left, width - right, y, words), parts)


def whiskers(rows: list[Interval], words: Callable[[float], str], width: int, label: str) -> Markup:
    """An estimate with its interval per row, against zero."""
    pitch, top, left, right = 24, 22, (110 if width == WIDE else 74), 14
    scale = ticks(min(r.low for r in rows), max(r.high for r in rows), 8 if width == WIDE else 4)
    bottom = top + pitch * len(rows)

    def x(value: float) -> float:
        return left + (width - left - right) * (value - scale[0]) / (scale[-1] - scale[0])

    parts = [
        join(
            [
                element("line", x1=x(v), x2=x(v), y1=top - 4, y2=bottom, class_="zero" if v == 0 else "rule"),
                text(x(v), 12, words(v), "middle"),
            ]
        )
        for v in scale
    ]
    for i, row in enumerate(rows):
        y = top + pitch * (i + 0.5)
        kind = "gain" if row.low > 0 else "loss" if row.high < 0 else "unsure"
        parts += [
            text(left - 12, y + 4, row.label, "end"),
            element("line", x1=x(row.low), x2=x(row.high), y1=y, y2=y, class_=f"whisker {kind}"),
            element("circle", cx=x(row.middle), cy=y, r=4.5, class_=kind),
            element("rect", x=0, y=y - pitch / 2, width=width, height=pitch, class_="hit", data_tip=row.tip),
        ]
    return svg(width, bottom + 4, label, parts)
