"""The sections of the retail report that show results, each read from the warehouse and drawn.

A section says in words what its chart shows; the words are computed too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from itertools import groupby
from typing import Any

from tiebeam.pipelines import _charts
from tiebeam.pipelines._charts import Cell, Interval, responsive
from tiebeam.pipelines._figures import change, day, dollars, percent, short_dollars, whole
from tiebeam.pipelines._html import Markup, element, join

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SEGMENTS = {
    "champions": "shopped lately, often, and for much: 4 or 5 in all three scores",
    "loyal": "3 or more in all three scores",
    "big baskets": "shopped lately and for much, but seldom",
    "small baskets": "shopped lately and often, for little",
    "occasional": "shopped lately, seldom and for little",
    "slipping away": "used to shop often or for much, not lately",
    "cooling": "in between, not lately",
    "dormant": "seldom, for little, and not lately",
}
_IN_FULL = {
    "DRUG GM": "Drug and general",
    "MEAT-PCKGD": "Packaged meat",
    "SEAFOOD-PCKGD": "Packaged seafood",
    "SPIRITS": "Wine and spirits",
}
_SHOWN_DEPARTMENTS = 12


def name_of(department: str) -> str:
    """A department in ordinary words: the source writes in capitals, and shortens."""
    return _IN_FULL.get(department) or (department.capitalize() if department.isupper() else department)


def section(key: str, title: str, lead: Any, *content: Any, note: Any = None) -> Markup:
    return element(
        "section",
        element("h2", title),
        element("p", lead, class_="lead"),
        *content,
        element("p", note, class_="note") if note else None,
        id=key,
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], right: set[int] = frozenset(), class_: str | None = None) -> Markup:  # type: ignore[assignment]
    def cells(kind: str, values: Sequence[Any]) -> list[Markup]:
        return [element(kind, v, class_="right" if i in right else None) for i, v in enumerate(values)]

    body = [element("tr", cells("td", row)) for row in rows]
    whole_table = element("table", element("thead", element("tr", cells("th", head))), element("tbody", body), class_=class_)
    return element("div", whole_table, class_="scroll")


def bar(share: float, class_: str = "bar") -> Markup:
    return element("span", element("i", style=f"width:{100 * max(0.0, min(1.0, share)):.1f}%"), class_=class_)


def legend(*entries: tuple[str, str]) -> Markup:
    return element("p", (element("span", element("i", class_=kind), words) for kind, words in entries), class_="legend")


def revenue(db: Any) -> Markup:
    rows = db.execute("SELECT day, revenue::DOUBLE, baskets FROM days ORDER BY day").fetchall()
    weeks = [(w, list(group)) for w, group in groupby(rows, key=lambda r: r[0] - timedelta(r[0].weekday()))]
    middle = [(max(rows[0][0], min(w + timedelta(3), rows[-1][0])), sum(r[1] for r in g) / len(g)) for w, g in weeks if len(g) >= 3]
    tips = [f"{day(d, year=True, weekday=True)}|{dollars(value)}|{whole(baskets)} baskets" for d, value, baskets in rows]
    sums: dict[int, list[float]] = {}
    for d, value, _ in rows:
        sums.setdefault(d.weekday(), []).append(value)
    means = sorted(((sum(v) / len(v), WEEKDAYS[w]) for w, v in sums.items()), reverse=True)
    present = {r[0] for r in rows}
    missing = [d for d in (rows[0][0] + timedelta(i) for i in range((rows[-1][0] - rows[0][0]).days)) if d not in present]
    closed = f" No sales on {', '.join(day(d) for d in missing)}." if 0 < len(missing) < 4 else ""
    lead = f"{means[0][1]} is the strongest day with {dollars(means[0][0])} on average, {means[-1][1]} the weakest with {dollars(means[-1][0])}.{closed}"

    def draw(width: int) -> Markup:
        return _charts.days([(d, v) for d, v, _ in rows], middle, tips, width, "Revenue per day, with the average of each week")

    marks = legend(("thin", "per day"), ("thick", "average of the week, Monday to Sunday"))
    return section("revenue", "Revenue per day", lead, marks, responsive(draw))


def hours(db: Any) -> Markup:
    found = {(w, h): (baskets, value) for w, h, value, baskets in db.execute("SELECT weekday, hour, revenue::DOUBLE, baskets FROM hours").fetchall()}
    most = max(b for b, _ in found.values())
    best_day, best_hour = max(found, key=lambda k: found[k][0])

    def cell(weekday: int, hour: int) -> Cell:
        baskets, value = found.get((weekday, hour), (0, 0.0))
        return Cell(baskets / most if baskets else None, f"{WEEKDAYS[weekday - 1]}, {hour}:00 to {hour + 1}:00|{whole(baskets)} baskets|{dollars(value)}")

    def draw(width: int) -> Markup:
        short = width != _charts.WIDE
        order = [(h + 5) % 24 for h in range(24)]  # a shop's day begins before dawn, not at midnight
        names = [str(h) if i % (4 if short else 1) == 0 else "" for i, h in enumerate(order)]
        rows = [(WEEKDAYS[w - 1][: 3 if short else None], [cell(w, h) for h in order]) for w in range(1, 8)]
        return _charts.heat(rows, names, width, "Baskets by weekday and hour", labels=34 if short else 100, cell_height=22 if short else 26)

    lead = f"Baskets by weekday and hour of the day. The busiest hour of the week is {WEEKDAYS[best_day - 1]}, {best_hour}:00 to {best_hour + 1}:00."
    return section("hours", "When people shop", lead, responsive(draw), note="Hours are local time in New York, summer time included.")


def departments(db: Any) -> Markup:
    rows = db.execute("SELECT department, sum(revenue)::DOUBLE AS r, sum(baskets)::BIGINT FROM department_days GROUP BY 1 ORDER BY r DESC, 1").fetchall()
    baskets = db.execute("SELECT sum(baskets)::BIGINT FROM days").fetchone()[0]
    total = sum(r[1] for r in rows)
    shown = [(name_of(d), r, b / baskets) for d, r, b in rows[:_SHOWN_DEPARTMENTS]]
    if rest := rows[_SHOWN_DEPARTMENTS:]:
        shown.append((f"{len(rest)} smaller ones", sum(r[1] for r in rest), None))
    most = max(r for _, r, _ in shown)
    lines = [
        (d, bar(r / most), element("span", short_dollars(r), title=dollars(r, 2)), percent(r / total), percent(share)) for d, r, share in shown
    ]
    first = shown[0]
    lead = f"{first[0]} brings {percent(first[1] / total, 0)} of the revenue and is in {percent(first[2], 0)} of all baskets."
    return section("departments", "Departments", lead, table(["department", "", "revenue", "share", "in baskets"], lines, {2, 3, 4}, "barred"))


def weeks(db: Any) -> Markup:
    order = [d for (d,) in db.execute("SELECT department FROM department_weeks GROUP BY 1 ORDER BY sum(revenue) DESC, 1 LIMIT 12").fetchall()]
    rows = db.execute("SELECT department, week, revenue::DOUBLE, change FROM department_weeks").fetchall()
    found = {(d, w): (value, moved) for d, w, value, moved in rows}
    every = sorted({w for _, w, _, moved in rows if moved is not None})
    moves = [(moved, d, w) for d, w, _, moved in rows if moved is not None and d in order[:6]]
    best, worst = max(moves), min(moves)

    def cell(department: str, week: date) -> Cell:
        value, moved = found.get((department, week), (0.0, None))
        span = f"{day(week)} to {day(week + timedelta(6), year=True)}"
        return Cell(None if moved is None else moved / 0.4, f"{name_of(department)}|{span}|{dollars(value)}, {change(moved)} on the week before")

    def draw(width: int) -> Markup:
        starts = [f"{w:%b}" if i == 0 or w.month != every[i - 1].month else "" for i, w in enumerate(every)]
        starts = starts if width == _charts.WIDE else [s if s[:1] and every[i].month % 3 == 1 else "" for i, s in enumerate(starts)]
        return _charts.heat([(name_of(d), [cell(d, w) for w in every]) for d in order], starts, width, "Change of revenue per department and week")

    loser = "and lost most" if worst[1] == best[1] else f"{name_of(worst[1])} lost most"
    lead = (
        f"Each cell is a week compared with the one before it. Among the six largest departments {name_of(best[1])} gained most in one week, "
        f"{change(best[0])} in that of {day(best[2])}, {loser}, {change(worst[0])} in that of {day(worst[2])}."
    )
    marks = legend(("down", "40 % less, or worse"), ("level", "unchanged"), ("up", "40 % more, or better"))
    return section("weeks", "Week over week", lead, marks, responsive(draw), note="Only whole weeks, Monday to Sunday, are compared.")


def products(db: Any) -> Markup:
    rows = db.execute(
        "SELECT department, coalesce(product_type, product_category, 'not described'), brand, package_size, t.product_id, t.revenue::DOUBLE, t.baskets "
        "FROM top_products t JOIN (SELECT department, sum(revenue) AS all_of_it FROM product_sales GROUP BY 1) USING (department) "
        "ORDER BY all_of_it DESC, department, place"
    ).fetchall()
    groups = [(d, list(g)) for d, g in groupby(rows, key=lambda r: r[0])]
    cards = [_card(d, g, opened=i < 4) for i, (d, g) in enumerate(groups[:_SHOWN_DEPARTMENTS])]
    most = max(len(g) for _, g in groups)
    lead = f"The {most} products with the most revenue in each of the largest departments; the others are in the table top_products."
    return section("products", "Top products", lead, element("div", cards, class_="cards"))


def _card(department: str, rows: list[Any], opened: bool) -> Markup:
    most = max(r[5] for r in rows) or 1.0
    lines = [
        element(
            "li",
            element("span", kind.capitalize(), element("small", " · ".join(("", *filter(None, (size, brand, f"no. {number}"))))), class_="what"),
            element("span", dollars(value), class_="figure"),
            bar(value / most),
            title=f"{whole(baskets)} baskets",
        )
        for _, kind, brand, size, number, value, baskets in rows
    ]
    return element("details", element("summary", name_of(department)), element("ol", lines), open="open" if opened else None, class_="card")


def baskets(db: Any) -> Markup:
    rows = db.execute("SELECT products, baskets, revenue::DOUBLE FROM basket_sizes ORDER BY products").fetchall()
    total, money = sum(r[1] for r in rows), sum(r[2] for r in rows)
    last = 40
    bins = [(str(n), b, r) for n, b, r in rows if n < last]
    rest = [(b, r) for n, b, r in rows if n >= last]
    if rest:
        bins.append((f"{last}+", sum(b for b, _ in rest), sum(r for _, r in rest)))
    tips = [f"{n} product{'' if n == '1' else 's'}|{whole(b)} baskets, {percent(b / total)}|{percent(r / money)} of revenue" for n, b, r in bins]
    large = [(b, r) for n, b, r in rows if n > 20]
    lead = (
        f"Half of all baskets hold {_median([(n, b) for n, b, _ in rows])} products or fewer. Those with more than 20 are {percent(sum(b for b, _ in large) / total, 0)} "
        f"of baskets and {percent(sum(r for _, r in large) / money, 0)} of revenue."
    )

    def draw(width: int) -> Markup:
        shares = [(n, [b / total, r / money]) for n, b, r in bins]
        return _charts.bars(shares, tips, lambda v: f"{v * 100:g} %", width, "Baskets by number of products", every=3 if width == _charts.WIDE else 9)

    marks = legend(("series1", "share of baskets"), ("series2", "share of revenue"))
    return section("baskets", "Basket sizes", lead, marks, responsive(draw), note="Different products in a basket, whatever the quantity.")


def _median(counted: list[tuple[int, int]]) -> int:
    half, seen = sum(n for _, n in counted) / 2, 0
    for value, n in counted:
        seen += n
        if seen >= half:
            return value
    return 0


def repeats(db: Any) -> Markup:
    rows = db.execute("SELECT times, sum(pairs)::BIGINT, sum(revenue)::DOUBLE FROM repeat_purchases GROUP BY 1 ORDER BY 1").fetchall()
    pairs, money = sum(r[1] for r in rows), sum(r[2] for r in rows)
    edges = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 9), (10, 14), (15, 25), (26, 51), (52, None))
    bins = []
    for low, high in edges:
        inside = [(p, r) for t, p, r in rows if t >= low and (high is None or t <= high)]
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}–{high}"
        bins.append((name, sum(p for p, _ in inside), sum(r for _, r in inside)))
    tips = [f"bought {n} time{'' if n == '1' else 's'}|{whole(p)} pairs, {percent(p / pairs)}|{percent(r / money)} of revenue" for n, p, r in bins]
    again = [(p, r) for t, p, r in rows if t >= 2]
    lead = (
        f"How often a household bought one and the same product. {percent(sum(p for p, _ in again) / pairs, 0)} of all pairs of household and product "
        f"were bought again; they make {percent(sum(r for _, r in again) / money, 0)} of the revenue."
    )

    def draw(width: int) -> Markup:
        shares = [(n, [p / pairs, r / money]) for n, p, r in bins]
        return _charts.bars(shares, tips, lambda v: f"{v * 100:g} %", width, "Repeat purchases", every=1 if width == _charts.WIDE else 3)

    marks = legend(("series1", "share of pairs of household and product"), ("series2", "share of revenue"))
    return section("repeats", "Repeat purchases", lead, marks, responsive(draw), _repeat_rates(db))


def _repeat_rates(db: Any) -> Markup:
    rows = db.execute(
        "SELECT department, sum(pairs) FILTER (times >= 2)::DOUBLE / sum(pairs) AS again, sum(pairs)::BIGINT FROM repeat_purchases "
        "GROUP BY 1 ORDER BY sum(revenue) DESC, 1 LIMIT 12"
    ).fetchall()
    lines = sorted(((name_of(d), bar(again or 0), percent(again), whole(pairs)) for d, again, pairs in rows), key=lambda x: -float(x[2][:-2]))
    return table(["department", "", "bought again", "pairs"], lines, {2, 3}, "barred")


def campaigns(db: Any) -> Markup:
    names = ("campaign_id", "campaign_type", "start_date", "end_date", "households", "redemptions", "redeemers", "days", "uplift", "uplift_low", "uplift_high")
    found = db.execute(f"SELECT {', '.join(names)} FROM campaigns ORDER BY start_date, campaign_id").fetchall()
    rows = [dict(zip(names, row, strict=True)) for row in found]
    measured = [r for r in rows if r["uplift"] is not None]
    intervals = [Interval(f"{r['campaign_id']} · {r['campaign_type'][-1:]}", r["uplift_low"], r["uplift"], r["uplift_high"], _campaign_tip(r)) for r in measured]
    clear = [r for r in measured if r["uplift_low"] > 0 or r["uplift_high"] < 0]
    gains = sum(r["uplift"] > 0 for r in clear)
    lead = (
        f"{len(measured)} of {len(rows)} campaigns can be measured. In {len(clear)} of them the effect differs from none beyond its margin of error, "
        f"{gains} up and {len(clear) - gains} down; chance alone would make about {max(1, round(len(measured) * 0.05))} of {len(measured)} look so."
    )
    method = (
        "Effect: what a household that received the campaign spent per week on the products its coupons are for, during the campaign less in as many "
        "days before it; from that, the same difference for households that did not receive it. Every recipient counts, whether or not a coupon was "
        "redeemed. The line is the 95 % interval. This takes out the season and what was on everybody's shelf, but recipients were chosen by the "
        "retailer, not drawn by lot: read it as evidence, not as proof. Not measured: campaigns with fewer than 14 days, or without as many days "
        "before them, in the data."
    )

    def draw(width: int) -> Markup:
        def words(value: float) -> str:
            return "0" if value == 0 else dollars(value, 0 if value == int(value) else 1)

        return _charts.whiskers(intervals, words, width, "Effect per campaign, dollars per household and week")

    marks = legend(("gain", "a gain"), ("loss", "a loss"), ("unsure", "cannot be told from no effect"))
    head = ["campaign", "type", "from", "to", "recipients", "redeemed by", "coupons redeemed", "effect per household and week"]
    lines = [_campaign_line(r) for r in rows]
    return section(
        "campaigns", "Coupon campaigns", lead, element("h3", "Effect in dollars per household and week"), marks,
        responsive(draw) if intervals else None, element("p", method, class_="note"),
        element("details", element("summary", f"All {len(rows)} campaigns"), table(head, lines, {4, 5, 6, 7}, "dense"), class_="card"),
    )  # fmt: skip


def _effect(r: dict[str, Any]) -> str:
    if r["uplift"] is None:
        return "not measured"
    margin = (r["uplift_high"] - r["uplift_low"]) / 2
    return f"{'+' if r['uplift'] >= 0 else ''}{dollars(r['uplift'], 2)} ± {margin:.2f}"


def _campaign_tip(r: dict[str, Any]) -> str:
    span = f"{day(r['start_date'])} to {day(r['end_date'], year=True)}"
    return f"Campaign {r['campaign_id']}, {r['campaign_type']}|{span}|{_effect(r)} per household and week|{whole(r['households'])} recipients"


def _campaign_line(r: dict[str, Any]) -> list[Any]:
    rate = f"{whole(r['redeemers'])} ({percent(r['redeemers'] / r['households'] if r['households'] else None)})"
    dates = [day(r["start_date"], year=True), day(r["end_date"], year=True)]
    return [str(r["campaign_id"]), r["campaign_type"][-1:], *dates, whole(r["households"]), rate, whole(r["redemptions"]), _effect(r)]


def segments(db: Any) -> Markup:
    found = {s: (h, b, float(r)) for s, h, b, r in db.execute("SELECT segment, households, baskets, revenue FROM segments").fetchall()}
    count, money = sum(v[0] for v in found.values()), sum(v[2] for v in found.values())
    lines = []
    for name in sorted(found, key=lambda s: -found[s][2]):
        h, b, r = found[name]
        shares = join([bar(h / count, "bar one"), bar(r / money, "bar two")])
        lines.append((element("span", name.capitalize(), element("small", SEGMENTS.get(name, "")), class_="stacked"), shares, whole(h), percent(h / count), percent(r / money), dollars(r / h), f"{b / h:.0f}"))
    top = max(found, key=lambda s: found[s][2])
    lead = f"{top.capitalize()} are {percent(found[top][0] / count, 0)} of households and bring {percent(found[top][2] / money, 0)} of the revenue."
    head = ["segment", "", "households", "of households", "of revenue", "revenue each", "baskets each"]
    note = (
        "Scores from 1 to 5 by fifths of all households: recency (days since the last basket), frequency (baskets), monetary (revenue). "
        "Households with equal values get equal scores."
    )
    marks = legend(("series1", "share of households"), ("series2", "share of revenue"))
    return section("segments", "Household segments", lead, marks, table(head, lines, {2, 3, 4, 5, 6}, "barred segments"), _scores(db), note=note)


def _scores(db: Any) -> Markup:
    rows = db.execute("SELECT recency, frequency, count(*), avg(revenue)::DOUBLE FROM households GROUP BY 1, 2").fetchall()
    found = {(r, f): (n, mean) for r, f, n, mean in rows}
    most = max(n for n, _ in found.values())

    def cell(recency: int, frequency: int) -> Cell:
        n, mean = found.get((recency, frequency), (0, 0.0))
        return Cell(n / most if n else None, f"recency {recency}, frequency {frequency}|{whole(n)} households|{dollars(mean)} each", whole(n) if n else "")

    def draw(width: int) -> Markup:
        names = ["seldom", "", "", "", "often"] if width != _charts.WIDE else ["bought seldom", "2", "3", "4", "bought often"]
        ends = {5: "lately", 1: "long ago"}
        rows = [(ends.get(r, str(r)), [cell(r, f) for f in range(1, 6)]) for r in range(5, 0, -1)]
        return _charts.heat(rows, names, width, "Households by recency and frequency", labels=72, cell_height=34)

    return join([element("h3", "Households by how lately and how often they shopped"), responsive(draw)])


