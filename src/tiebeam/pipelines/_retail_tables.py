"""The tables of `retail` whose computation needs whole tables: ranks, neighbours in time, comparisons.

Each is a plain function over Polars frames of rows that were aggregated before, some thousand to some ten thousand.
"""

from __future__ import annotations

import polars as pl

DESCRIBED = ("product_category", "product_type", "brand", "package_size")
COMPARED_DAYS = 14
"""A campaign is measured only when at least so many of its days are in the data."""


def weeks(days: pl.DataFrame) -> pl.DataFrame:
    """Revenue and baskets per department and week, from those per day, each with its change on the week before.

    A basket is bought on one day, so baskets of days add up to baskets of weeks. Weeks begin on Monday; one that the
    data covers only in part is compared with nothing.
    """
    first, last = days["day"].min(), days["day"].max()
    week = pl.col("day").dt.truncate("1w")
    whole = pl.min_horizontal(pl.col("week") + pl.duration(days=6), pl.lit(last)) - pl.max_horizontal("week", pl.lit(first))
    sized = (
        days.group_by("department", week=week)
        .agg(pl.col("revenue").sum(), pl.col("baskets").sum())
        .with_columns(days=(whole.dt.total_days() + 1).cast(pl.Int8))
    )
    before = sized.select("department", pl.col("week") + pl.duration(days=7), previous_revenue="revenue", previous_days="days")
    comparable = (pl.col("days") == 7) & (pl.col("previous_days") == 7) & (pl.col("previous_revenue") > 0)
    change = pl.col("revenue").cast(pl.Float64) / pl.col("previous_revenue").cast(pl.Float64) - 1
    return (
        sized.join(before, on=["department", "week"], how="left")
        .with_columns(change=pl.when(comparable).then(change))
        .select("department", "week", "days", "revenue", "baskets", "previous_revenue", "change")
        .sort("department", "week")
    )


def best_sellers(sold: pl.DataFrame, most: int) -> pl.DataFrame:
    """The products with the most revenue per department; of equal ones the smaller number stands first."""
    ordered = sold.sort("department", "revenue", "product_id", descending=[False, True, False])
    place = (pl.int_range(pl.len()).over("department") + 1).cast(pl.Int32).alias("place")
    best = ordered.with_columns(place).filter(pl.col("place") <= most)
    return best.select("department", "place", "product_id", *DESCRIBED, "revenue", "baskets")


def scored(seen: pl.DataFrame, demographics: pl.DataFrame | None) -> pl.DataFrame:
    """Households with their scores by fifths in recency, frequency and monetary value, and the segment that follows."""
    recency = (pl.col("last_day").max() - pl.col("last_day")).dt.total_days().cast(pl.Int32)

    def score(expr: pl.Expr, descending: bool) -> pl.Expr:
        return (5 - (expr.rank("min", descending=descending).cast(pl.Int64) - 1) * 5 // pl.len().cast(pl.Int64)).cast(pl.Int8)

    scores = seen.with_columns(recency_days=recency).with_columns(
        recency=score(pl.col("recency_days"), False), frequency=score(pl.col("baskets"), True), monetary=score(pl.col("revenue"), True)
    )
    facts = ["household_id", "last_day", "recency_days", "baskets", "revenue", "recency", "frequency", "monetary", "segment"]
    known = scores.with_columns(segment=_segment()).select(facts)
    about = ["age", "income", "household_size"]
    if demographics is None:
        return known.with_columns(pl.lit(None, pl.String).alias(name) for name in about).sort("household_id")
    return known.join(demographics.select("household_id", *about), on="household_id", how="left").sort("household_id")


def _segment() -> pl.Expr:
    r, f, m = pl.col("recency"), pl.col("frequency"), pl.col("monetary")
    return (
        pl.when((r >= 4) & (f >= 4) & (m >= 4)).then(pl.lit("champions"))
        .when((r >= 3) & (f >= 3) & (m >= 3)).then(pl.lit("loyal"))
        .when((r <= 2) & (f + m >= 7)).then(pl.lit("slipping away"))
        .when((r >= 3) & (m >= 4)).then(pl.lit("big baskets"))
        .when((r >= 3) & (f >= 3)).then(pl.lit("small baskets"))
        .when(r >= 3).then(pl.lit("occasional"))
        .when(f + m >= 4).then(pl.lit("cooling"))
        .otherwise(pl.lit("dormant"))
    )  # fmt: skip


def covered(coupons: pl.DataFrame, campaigns: pl.DataFrame) -> pl.DataFrame:
    """The products that each campaign has coupons for, with the days to look at: its own, and as many before it."""
    length = pl.col("end_date") - pl.col("start_date") + pl.duration(days=1)
    spans = campaigns.select("campaign_id", "start_date", "end_date", before_start=pl.col("start_date") - length)
    return coupons.select("campaign_id", "product_id").unique().join(spans, on="campaign_id").sort("campaign_id", "product_id")


def effects(
    campaigns: pl.DataFrame,
    spent: pl.DataFrame | None,
    households: pl.DataFrame,
    targets: pl.DataFrame,
    coupons: pl.DataFrame,
    redeemed: pl.DataFrame,
) -> pl.DataFrame:
    """What each campaign reached, and how its recipients' spending changed beside that of all others.

    The effect is a difference of differences, in money per household and week on the products covered: recipients
    during the campaign less before it, less the same of households that did not receive it, with its 95 % interval
    (1.96 standard errors of a difference of two means).
    """
    counted = (
        campaigns.join(_counts(targets, households=pl.col("household_id").n_unique()), on="campaign_id", how="left")
        .join(_counts(coupons, products=pl.col("product_id").n_unique()), on="campaign_id", how="left")
        .join(_counts(redeemed, redemptions=pl.len(), redeemers=pl.col("household_id").n_unique()), on="campaign_id", how="left")
        .with_columns(pl.col("households", "products", "redemptions", "redeemers").fill_null(0).cast(pl.Int64))
    )
    spans = _spans(campaigns, households["first_day"].min(), households["last_day"].max())
    compared = _compared(spans.filter("measured"), spent, households.select("household_id"), targets)
    return (
        counted.join(spans.select("campaign_id", "days"), on="campaign_id")
        .join(compared, on="campaign_id", how="left")
        .select(
            "campaign_id", "campaign_type", "start_date", "end_date", "households", "products", "redemptions", "redeemers", "days",
            "before", "during", "others_before", "others_during", "uplift",
            uplift_low=pl.col("uplift") - 1.96 * pl.col("error"), uplift_high=pl.col("uplift") + 1.96 * pl.col("error"),
        )
        .sort("campaign_id")
    )  # fmt: skip


def _counts(table: pl.DataFrame, **counts: pl.Expr) -> pl.DataFrame:
    return table.group_by("campaign_id").agg(**counts)


def _spans(campaigns: pl.DataFrame, first: object, last: object) -> pl.DataFrame:
    length = (pl.col("end_date") - pl.col("start_date")).dt.total_days() + 1
    inside = (pl.min_horizontal("end_date", pl.lit(last)) - pl.col("start_date")).dt.total_days() + 1
    return campaigns.select("campaign_id", "start_date", length=length, days=pl.max_horizontal(inside, 0).cast(pl.Int32)).with_columns(
        measured=(pl.col("days") >= COMPARED_DAYS) & (pl.col("start_date") - pl.duration(days=pl.col("length")) >= pl.lit(first))
    )


def _compared(spans: pl.DataFrame, spent: pl.DataFrame | None, households: pl.DataFrame, targets: pl.DataFrame) -> pl.DataFrame:
    keys = ["campaign_id", "household_id"]
    each = spans.join(households, how="cross").join(targets.select(keys).unique().with_columns(targeted=pl.lit(True)), on=keys, how="left")
    nothing = pl.DataFrame(schema={**dict.fromkeys(keys, pl.Int64), "before": pl.Float64, "during": pl.Float64})
    each = each.join(nothing if spent is None else spent, on=keys, how="left")
    per_week = each.with_columns(
        pl.col("targeted").fill_null(False),
        before=pl.col("before").cast(pl.Float64).fill_null(0.0) * 7 / pl.col("length"),
        during=pl.col("during").cast(pl.Float64).fill_null(0.0) * 7 / pl.col("days"),
    ).sort(keys)
    ours, change = pl.col("targeted"), pl.col("during") - pl.col("before")
    return per_week.group_by("campaign_id", maintain_order=True).agg(
        before=pl.col("before").filter(ours).mean(),
        during=pl.col("during").filter(ours).mean(),
        others_before=pl.col("before").filter(~ours).mean(),
        others_during=pl.col("during").filter(~ours).mean(),
        uplift=change.filter(ours).mean() - change.filter(~ours).mean(),
        error=(change.filter(ours).var() / ours.sum() + change.filter(~ours).var() / (~ours).sum()).sqrt(),
    )
