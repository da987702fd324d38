"""What was sold, in the retail report: per day, hour, department and week, and the products sold best.

A section says in words what its chart shows; the words are computed too.
"""

from __future__ import annotations

from datetime import date, timedelta
from itertools import groupby
from typing import Any

from tiebeam.pipelines import _charts
from tiebeam.pipelines._charts import WIDE, Cell, responsive
from tiebeam.pipelines._figures import change, day, dollars, percent, short_dollars, whole
from tiebeam.pipelines._html import Markup, element
from tiebeam.pipelines._page import bar, legend, section, table

SHOWN_DEPARTMENTS = 12
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FULL_SCALE = 0.4  # a weekly change of 40 % has the full colour
_IN_FULL = {
    "DRUG GM": "Drug and general",
    "MEAT-PCKGD": "Packaged meat",
    "SEAFOOD-PCKGD": "Packaged seafood",
    "SPIRITS": "Wine and spirits",
}


def name_of(department: str) -> str:
    """A department in ordinary words: the source writes in capitals, and shortens."""
    return _IN_FULL.get(department) or (department.capitalize() if department.isupper() else department)


def revenue(db: Any) -> Markup:
    rows = db.execute("SELECT day, revenue::DOUBLE, baskets FROM days ORDER BY day").fetchall()
    first, last = rows[0][0], rows[-1][0]
    middles = []
    for monday, group in groupby(rows, key=lambda r: r[0] - timedelta(r[0].weekday())):
        week = [r[1] for r in group]
        if len(week) >= 3:
            middles.append((max(first, min(monday + timedelta(3), last)), sum(week) / len(week)))
    tips = [f"{day(d, year=True, weekday=True)}|{dollars(value)}|{whole(baskets)} baskets" for d, value, baskets in rows]

    def draw(width: int) -> Markup:
        return _charts.days([r[:2] for r in rows], middles, tips, width, "Revenue per day, with the average of each week")

    marks = legend(("thin", "per day"), ("thick", "average of the week, Monday to Sunday"))
    return section("revenue", "Revenue per day", _about_days(rows), marks, responsive(draw))


def _about_days(rows: list[tuple[date, float, int]]) -> str:
    sums: dict[int, list[float]] = {}
    for d, value, _ in rows:
        sums.setdefault(d.weekday(), []).append(value)
    means = sorted((sum(v) / len(v), _WEEKDAYS[w]) for w, v in sums.items())
    present = {r[0] for r in rows}
    missing = [d for d in (rows[0][0] + timedelta(i) for i in range((rows[-1][0] - rows[0][0]).days)) if d not in present]
    closed = f" No sales on {', '.join(map(day, missing))}." if 0 < len(missing) < 4 else ""
    (worst, weakest), (best, strongest) = means[0], means[-1]
    return f"{strongest} is the strongest day with {dollars(best)} on average, {weakest} the weakest with {dollars(worst)}.{closed}"


def hours(db: Any) -> Markup:
    rows = db.execute("SELECT weekday, hour, revenue::DOUBLE, baskets FROM hours").fetchall()
    found = {(weekday, hour): (baskets, value) for weekday, hour, value, baskets in rows}
    best_day, best_hour = max(found, key=lambda k: (found[k][0], k))
    most = found[best_day, best_hour][0]

    def span(weekday: int, hour: int) -> str:
        return f"{_WEEKDAYS[weekday - 1]}, {hour}:00 to {hour + 1}:00"

    def cell(weekday: int, hour: int) -> Cell:
        baskets, value = found.get((weekday, hour), (0, 0.0))
        return Cell(baskets / most if baskets else None, f"{span(weekday, hour)}|{whole(baskets)} baskets|{dollars(value)}")

    def draw(width: int) -> Markup:
        order = [(h + 5) % 24 for h in range(24)]  # a shop's day begins before dawn, not at midnight
        every, letters, labels, height = (1, None, 100, 26) if width == WIDE else (4, 3, 34, 22)
        names = [str(h) if i % every == 0 else "" for i, h in enumerate(order)]
        lines = [(_WEEKDAYS[w - 1][:letters], [cell(w, h) for h in order]) for w in range(1, 8)]
        return _charts.heat(lines, names, width, "Baskets by weekday and hour", labels=labels, cell_height=height)

    lead = f"Baskets by weekday and hour of the day. The busiest hour of the week is {span(best_day, best_hour)}."
    return section("hours", "When people shop", lead, responsive(draw), note="Hours are local time in New York, summer time included.")


def departments(db: Any) -> Markup:
    rows = db.execute(
        "SELECT department, sum(revenue)::DOUBLE AS r, sum(baskets)::BIGINT FROM department_days GROUP BY 1 ORDER BY r DESC, 1"
    ).fetchall()
    baskets = db.execute("SELECT sum(baskets)::BIGINT FROM days").fetchone()[0]
    total = sum(r[1] for r in rows)
    shown = [(name_of(d), r, b / baskets) for d, r, b in rows[:SHOWN_DEPARTMENTS]]
    if rest := rows[SHOWN_DEPARTMENTS:]:
        shown.append((f"{len(rest)} smaller ones", sum(r[1] for r in rest), None))
    most = max(r for _, r, _ in shown)
    lines = [(d, bar(r / most), short_dollars(r), percent(r / total), percent(share)) for d, r, share in shown]
    name, value, share = shown[0]
    lead = f"{name} brings {percent(value / total, 0)} of the revenue and is in {percent(share, 0)} of all baskets."
    head = ["department", "", "revenue", "share", "in baskets"]
    return section("departments", "Departments", lead, table(head, lines, {2, 3, 4}, "barred"))


def weeks(db: Any) -> Markup:
    largest = "SELECT department FROM department_weeks GROUP BY 1 ORDER BY sum(revenue) DESC, 1 LIMIT ?"
    order = [d for (d,) in db.execute(largest, [SHOWN_DEPARTMENTS]).fetchall()]
    rows = db.execute("SELECT department, week, revenue::DOUBLE, change FROM department_weeks").fetchall()
    found = {(department, week): (value, moved) for department, week, value, moved in rows}
    every = sorted({week for _, week, _, moved in rows if moved is not None})

    def cell(department: str, week: date) -> Cell:
        value, moved = found.get((department, week), (0.0, None))
        span = f"{day(week)} to {day(week + timedelta(6), year=True)}"
        words = f"{name_of(department)}|{span}|{dollars(value)}, {change(moved)} on the week before"
        return Cell(None if moved is None else moved / _FULL_SCALE, words)

    def draw(width: int) -> Markup:
        begins = [i == 0 or week.month != every[i - 1].month for i, week in enumerate(every)]
        named = [begun and (width == WIDE or week.month % 3 == 1) for begun, week in zip(begins, every, strict=True)]
        names = [f"{week:%b}" if shown else "" for shown, week in zip(named, every, strict=True)]
        lines = [(name_of(d), [cell(d, w) for w in every]) for d in order]
        return _charts.heat(lines, names, width, "Change of revenue per department and week")

    marks = legend(("down", "40 % less, or worse"), ("level", "unchanged"), ("up", "40 % more, or better"))
    lead = _about_weeks([(moved, department, week) for department, week, _, moved in rows if moved is not None and department in order[:6]])
    return section("weeks", "Week over week", lead, marks, responsive(draw), note="Only whole weeks, Monday to Sunday, are compared.")


def _about_weeks(moves: list[tuple[float, str, date]]) -> str:
    lead = "Each cell is a week compared with the one before it."
    if not moves:
        return lead
    (gain, winner, won), (loss, loser, lost) = max(moves), min(moves)
    then = "and lost most" if loser == winner else f"{name_of(loser)} lost most"
    best = f"{name_of(winner)} gained most in one week, {change(gain)} in that of {day(won)}"
    return f"{lead} Among the six largest departments {best}, {then}, {change(loss)} in that of {day(lost)}."


def products(db: Any) -> Markup:
    rows = db.execute(
        "SELECT department, coalesce(product_type, product_category, 'not described'), brand, package_size, product_id, t.revenue::DOUBLE, "
        "t.baskets FROM top_products t JOIN (SELECT department, sum(revenue) AS size FROM product_sales GROUP BY 1) USING (department) "
        "ORDER BY size DESC, department, place"
    ).fetchall()
    groups = [(department, list(group)) for department, group in groupby(rows, key=lambda r: r[0])]
    cards = [_card(department, group, opened=i < 4) for i, (department, group) in enumerate(groups[:SHOWN_DEPARTMENTS])]
    most = max(len(group) for _, group in groups)
    lead = f"The {most} products with the most revenue in each of the largest departments; the others are in the table top_products."
    return section("products", "Top products", lead, element("div", cards, class_="cards"))


def _card(department: str, rows: list[Any], opened: bool) -> Markup:
    most = max(r[5] for r in rows) or 1.0
    lines = []
    for _, kind, brand, size, number, value, baskets in rows:
        about = element("small", " · ".join(("", *filter(None, (size, brand)), f"no. {number}")))
        what = element("span", kind.capitalize(), about, class_="what")
        figure = element("span", dollars(value), class_="figure")
        lines.append(element("li", what, figure, bar(value / most), title=f"{whole(baskets)} baskets"))
    return element("details", element("summary", name_of(department)), element("ol", lines), open="open" if opened else None, class_="card")
