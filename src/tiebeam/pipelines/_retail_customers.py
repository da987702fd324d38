"""Who bought, and how, in the retail report: baskets, repeat purchases, coupons, spells, segments of households."""

from __future__ import annotations

from typing import Any

from tiebeam.pipelines import _charts
from tiebeam.pipelines._charts import WIDE, Cell, Interval, responsive
from tiebeam.pipelines._figures import NONE, day, dollars, percent, whole
from tiebeam.pipelines._html import Markup, element, join
from tiebeam.pipelines._page import bar, legend, section, table
from tiebeam.pipelines._retail_sales import SHOWN_DEPARTMENTS, name_of

_LARGEST_BASKET = 40
_LARGE_BASKET = 20
_TIMES = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 9), (10, 14), (15, 25), (26, 51), (52, None))
_SEGMENTS = {
    "champions": "shopped lately, often, and for much: 4 or 5 in all three scores",
    "loyal": "3 or more in all three scores",
    "big baskets": "shopped lately and for much, but seldom",
    "small baskets": "shopped lately and often, for little",
    "occasional": "shopped lately, seldom and for little",
    "slipping away": "used to shop often or for much, not lately",
    "cooling": "in between, not lately",
    "dormant": "seldom, for little, and not lately",
}
_METHOD = (
    "The effect is what a household that received the campaign spent per week on the products its coupons are for, during the campaign "
    "less in as many days before it; and from that, the same difference for households that did not receive it. Every recipient counts, "
    "whether or not a coupon was redeemed. The line is the 95 % interval. This takes out the season and what was on everybody's shelf; but "
    "recipients were chosen by the retailer, not drawn by lot, so read it as evidence, not as proof. Not measured: campaigns of which "
    "fewer than 14 days, or not as many days before them, are in the data."
)
_CAMPAIGN = (
    "campaign_id, campaign_type, start_date, end_date, households, redemptions, redeemers, "
    "uplift::DOUBLE AS uplift, uplift_low::DOUBLE AS low, uplift_high::DOUBLE AS high"
)

Bin = tuple[str, int, float]


def baskets(db: Any) -> Markup:
    rows = db.execute("SELECT products, baskets, revenue::DOUBLE FROM basket_sizes ORDER BY products").fetchall()
    bins = [(str(n), b, r) for n, b, r in rows if n < _LARGEST_BASKET]
    bins += _bin(f"{_LARGEST_BASKET}+", [r[1:] for r in rows if r[0] >= _LARGEST_BASKET])
    count, money = _totals(bins)
    _, large, worth = (_bin("large", [r[1:] for r in rows if r[0] > _LARGE_BASKET]) or [("large", 0, 0.0)])[0]
    lead = (
        f"Half of all baskets hold {_median(rows)} products or fewer. Those with more than {_LARGE_BASKET} "
        f"are {percent(large / count, 0)} of baskets and {percent(worth / money, 0)} of revenue."
    )
    tips = [
        f"{n} product{'' if n == '1' else 's'}|{whole(b)} baskets, {percent(b / count)}|{percent(r / money)} of revenue" for n, b, r in bins
    ]
    marks = legend(("series1", "share of baskets"), ("series2", "share of revenue"))
    chart = _shares(bins, tips, "Baskets by number of products", 3, 9)
    return section("baskets", "Basket sizes", lead, marks, chart, note="Different products in a basket, whatever the quantity.")


def repeats(db: Any) -> Markup:
    rows = db.execute("SELECT times, sum(pairs)::BIGINT, sum(revenue)::DOUBLE FROM repeat_purchases GROUP BY 1 ORDER BY 1").fetchall()
    bins = []
    for low, high in _TIMES:
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}\N{EN DASH}{high}"
        bins += _bin(name, [r[1:] for r in rows if r[0] >= low and (high is None or r[0] <= high)])
    pairs, money = _totals(bins)
    once = sum(p for t, p, _ in rows if t == 1), sum(r for t, _, r in rows if t == 1)
    lead = (
        f"How often a household bought one and the same product. {percent(1 - once[0] / pairs, 0)} of all pairs of household and product "
        f"were bought again; they make {percent(1 - once[1] / money, 0)} of the revenue."
    )
    tips = [
        f"bought {n} time{'' if n == '1' else 's'}|{whole(p)} pairs, {percent(p / pairs)}|{percent(r / money)} of revenue"
        for n, p, r in bins
    ]
    marks = legend(("series1", "share of pairs of household and product"), ("series2", "share of revenue"))
    chart = _shares(bins, tips, "Pairs of household and product by number of purchases", 1, 3)
    return section("repeats", "Repeat purchases", lead, marks, chart, _repeat_rates(db))


def _repeat_rates(db: Any) -> Markup:
    rows = db.execute(
        "SELECT department, coalesce(sum(pairs) FILTER (times >= 2), 0)::DOUBLE / sum(pairs), sum(pairs)::BIGINT FROM repeat_purchases "
        "GROUP BY 1 ORDER BY sum(revenue) DESC, 1 LIMIT ?",
        [SHOWN_DEPARTMENTS],
    ).fetchall()
    lines = [(name_of(d), bar(again), percent(again), whole(pairs)) for d, again, pairs in sorted(rows, key=lambda r: -r[1])]
    return table(["department", "", "bought again", "pairs"], lines, {2, 3}, "barred")


def _bin(name: str, rows: list[tuple[int, float]]) -> list[Bin]:
    return [(name, sum(r[0] for r in rows), sum(r[1] for r in rows))] if rows else []


def _totals(bins: list[Bin]) -> tuple[int, float]:
    return sum(b[1] for b in bins), sum(b[2] for b in bins)


def _median(rows: list[Any]) -> int:
    seen, half = 0, sum(r[1] for r in rows) / 2
    for value, n, _ in rows:
        seen += n
        if seen >= half:
            return value
    return 0


def _shares(bins: list[Bin], tips: list[str], label: str, every: int, every_narrow: int) -> Markup:
    count, money = _totals(bins)
    values = [(name, [n / count, r / money]) for name, n, r in bins]

    def draw(width: int) -> Markup:
        thinned = every if width == WIDE else every_narrow
        return _charts.bars(values, tips, lambda v: f"{v * 100:g} %", width, label, every=thinned)

    return responsive(draw)


def campaigns(db: Any) -> Markup:
    found = db.execute(f"SELECT {_CAMPAIGN} FROM campaigns ORDER BY start_date, campaign_id")
    names = [column[0] for column in found.description]
    rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    measured = [r for r in rows if r["uplift"] is not None]
    intervals = [Interval(f"{r['campaign_id']} · {_kind(r)}", r["low"], r["uplift"], r["high"], _campaign_tip(r)) for r in measured]

    def words(value: float) -> str:
        return "0" if value == 0 else dollars(value, 0 if value == int(value) else 1)

    def draw(width: int) -> Markup:
        return _charts.whiskers(intervals, words, width, "Effect per campaign, dollars per household and week")

    head = ["campaign", "type", "from", "to", "recipients", "redeemed by", "coupons redeemed", "effect per household and week"]
    every = table(head, map(_campaign_line, rows), {4, 5, 6, 7}, "dense")
    return section(
        "campaigns",
        "Coupon campaigns",
        _about_campaigns(len(rows), measured),
        element("h3", "Effect in dollars per household and week"),
        legend(("gain", "a gain"), ("loss", "a loss"), ("unsure", "cannot be told from no effect")),
        responsive(draw) if intervals else None,
        element("p", _METHOD, class_="note"),
        element("details", element("summary", f"All {len(rows)} campaigns"), every, class_="card"),
    )


def _about_campaigns(count: int, measured: list[dict[str, Any]]) -> str:
    gains, losses = sum(r["low"] > 0 for r in measured), sum(r["high"] < 0 for r in measured)
    chance = max(1, round(len(measured) * 0.05))
    return (
        f"{len(measured)} of {count} campaigns can be measured. {gains + losses} of them show an effect beyond their margin of error, "
        f"{gains} a gain and {losses} a loss; by chance alone about {chance} of {len(measured)} would."
    )


def _kind(r: dict[str, Any]) -> str:
    return r["campaign_type"].removeprefix("Type ")


def _effect(r: dict[str, Any]) -> str:
    if r["uplift"] is None:
        return "not measured"
    return f"{'+' if r['uplift'] >= 0 else ''}{dollars(r['uplift'], 2)} ± {(r['high'] - r['low']) / 2:.2f}"


def _campaign_tip(r: dict[str, Any]) -> str:
    span = f"{day(r['start_date'])} to {day(r['end_date'], year=True)}"
    return f"Campaign {r['campaign_id']}, {r['campaign_type']}|{span}|{_effect(r)}|{whole(r['households'])} recipients"


def _campaign_line(r: dict[str, Any]) -> list[Any]:
    rate = f"{whole(r['redeemers'])} ({percent(r['redeemers'] / r['households'] if r['households'] else None)})"
    dates = [day(r["start_date"], year=True), day(r["end_date"], year=True)]
    return [str(r["campaign_id"]), _kind(r), *dates, whole(r["households"]), rate, whole(r["redemptions"]), _effect(r)]


def coupons(db: Any) -> Markup:
    rows = db.execute("SELECT week, baskets, compared, ratio, revenue::DOUBLE FROM after_coupons ORDER BY week NULLS LAST").fetchall()
    most = max((ratio for *_, ratio, _ in rows if ratio is not None), default=1.0) or 1.0
    lines = []
    for week, count, compared, ratio, value in rows:
        name = "no coupon in four weeks" if week is None else "the week of the coupon" if week == 1 else f"week {week}"
        beside = NONE if ratio is None else percent(ratio, 0)
        lines.append((name, bar((ratio or 0.0) / most), beside, whole(compared), whole(count), dollars(value / count, 2)))
    found = {week: ratio for week, _, _, ratio, _ in rows if ratio is not None}
    lead = "What a basket is worth beside the household's usual one, by the time since it last redeemed a coupon."
    if 1 in found and None in found:
        lead += (
            f" In the week of the coupon it is {percent(found[1], 0)} of the usual basket, "
            f"without a coupon in four weeks {percent(found[None], 0)}."
        )
        if 2 in found and found[2] < min(found[1], found[None]):
            lead += f" In the week after it falls to {percent(found[2], 0)}: part of the gain may be what was bought ahead."
    head = ["since the coupon", "", "of the usual basket", "baskets compared", "baskets", "a basket"]
    note = (
        "Usual is the mean of the household's own baskets in the 90 days before, none of the later ones; compared are baskets with at "
        "least five such. Only the last coupon before a basket counts."
    )
    return section("coupons", "After a coupon", lead, table(head, lines, {2, 3, 4, 5}, "barred"), note=note)


def spells(db: Any) -> Markup:
    rows = db.execute(
        "SELECT least(n, 5), count(*), sum(revenue)::DOUBLE, count(*) FILTER (last_day <= ends - 28) FROM (SELECT count(*) AS n, "
        "sum(revenue) AS revenue, max(last_day) AS last_day FROM spells GROUP BY household_id), (SELECT max(last_day) AS ends FROM spells) "
        "GROUP BY 1 ORDER BY 1"
    ).fetchall()
    count, away = sum(r[1] for r in rows), sum(r[3] for r in rows)
    names = {1: "never", 2: "once", 3: "twice", 4: "three times", 5: "more often"}
    most = max(r[1] for r in rows)
    lines = [
        (names[n], bar(households / most), whole(households), percent(households / count), dollars(value / households), whole(gone))
        for n, households, value, gone in rows
    ]
    back = sum(r[1] for r in rows if r[0] > 1)
    lead = (
        f"{percent(back / count, 0)} of households stayed away for four weeks or longer and came back. "
        f"{percent(away / count, 0)} are away at the end of the data."
    )
    head = ["stayed away and came back", "", "households", "of households", "revenue each", "away at the end"]
    return section("spells", "Staying away", lead, table(head, lines, {2, 3, 4, 5}, "barred"))


def segments(db: Any) -> Markup:
    rows = db.execute("SELECT segment, households, baskets, revenue::DOUBLE FROM segments ORDER BY revenue DESC, segment").fetchall()
    count, money = sum(r[1] for r in rows), sum(r[3] for r in rows)
    lines = []
    for segment, households, bought, value in rows:
        name = element("span", segment.capitalize(), element("small", _SEGMENTS.get(segment)), class_="stacked")
        shares = join([bar(households / count, "bar one"), bar(value / money, "bar two")])
        figures = [whole(households), percent(households / count), percent(value / money), dollars(value / households)]
        lines.append((name, shares, *figures, f"{bought / households:.0f}"))
    first, households, _, value = rows[0]
    lead = f"{first.capitalize()} are {percent(households / count, 0)} of households and bring {percent(value / money, 0)} of the revenue."
    head = ["segment", "", "households", "of households", "of revenue", "revenue each", "baskets each"]
    marks = legend(("series1", "share of households"), ("series2", "share of revenue"))
    note = (
        "Scores from 1 to 5 by fifths of all households: recency (days since the last basket), frequency (baskets), monetary (revenue). "
        "Households with equal values get equal scores."
    )
    shown = table(head, lines, {2, 3, 4, 5, 6}, "barred segments")
    return section("segments", "Household segments", lead, marks, shown, _scores(db), note=note)


def _scores(db: Any) -> Markup:
    rows = db.execute("SELECT recency, frequency, count(*), avg(revenue)::DOUBLE FROM households GROUP BY 1, 2").fetchall()
    found = {(recency, frequency): (n, mean) for recency, frequency, n, mean in rows}
    most = max(n for n, _ in found.values())

    def cell(recency: int, frequency: int) -> Cell:
        n, mean = found.get((recency, frequency), (0, 0.0))
        tip = f"recency {recency}, frequency {frequency}|{whole(n)} households|{dollars(mean)} each"
        return Cell(n / most if n else None, tip, whole(n) if n else "")

    def draw(width: int) -> Markup:
        names = ["bought seldom", "2", "3", "4", "bought often"] if width == WIDE else ["seldom", "", "", "", "often"]
        ends = {5: "lately", 1: "long ago"}
        lines = [(ends.get(r, str(r)), [cell(r, f) for f in range(1, 6)]) for r in range(5, 0, -1)]
        return _charts.heat(lines, names, width, "Households by recency and frequency", labels=72, cell_height=34)

    return join([element("h3", "Households by how lately and how often they shopped"), responsive(draw)])
