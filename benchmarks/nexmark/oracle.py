"""The queries in SQL, for DuckDB, over the same events: what `queries` must give, to the row."""

from __future__ import annotations

from typing import Any

VIEWS = """
CREATE VIEW people AS SELECT * FROM events WHERE name IS NOT NULL;
CREATE VIEW auctions AS SELECT * FROM events WHERE itemName IS NOT NULL;
CREATE VIEW bids AS SELECT * FROM events WHERE bidder IS NOT NULL;
CREATE VIEW winners AS
    SELECT a.id, a.seller, a.category, a.expires, b.bidder, b.price
    FROM auctions a JOIN bids b ON b.auction = a.id
    WHERE b.price >= a.reserve AND b.dateTime < a.expires AND b.dateTime BETWEEN a.dateTime - 60000 AND a.dateTime + 60000
    QUALIFY row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.dateTime, b.bidder) = 1;
CREATE VIEW counted AS
    SELECT w * 5 AS start, auction, count(*) AS num
    FROM bids, LATERAL (SELECT unnest([dateTime // 5000 - 1, dateTime // 5000]) AS w) GROUP BY ALL;
"""

SQL = {
    0: "SELECT * EXCLUDE dateTime FROM events",
    1: "SELECT auction, bidder, price * 0.89::DOUBLE AS price, extra FROM bids",
    2: "SELECT auction AS auction_id, price FROM bids WHERE auction % 123 = 0",
    3: """
        SELECT p.name, p.city, p.state, a.id AS auction_id FROM auctions a JOIN people p ON a.seller = p.id
        WHERE p.state IN ('OR', 'ID', 'CA') AND a.category = 10
    """,
    4: """
        SELECT w * 5 AS start, category, avg(price) AS price FROM winners,
        LATERAL (SELECT unnest([(expires * 1000 - 1) // 5000000 - 1, (expires * 1000 - 1) // 5000000]) AS w) GROUP BY ALL
    """,
    5: "SELECT start, auction AS auction_id, num FROM counted QUALIFY num = max(num) OVER (PARTITION BY start)",
    6: """
        SELECT seller, avg(price) OVER (PARTITION BY seller ORDER BY expires, id ROWS BETWEEN 9 PRECEDING AND CURRENT ROW) AS price
        FROM winners
    """,
    7: "SELECT auction, bidder, price FROM bids QUALIFY price = max(price) OVER (PARTITION BY dateTime // 10000)",
    8: """
        SELECT p.id, p.name, a.reserve FROM people p JOIN auctions a ON a.seller = p.id AND a.dateTime // 10000 = p.dateTime // 10000
    """,
    9: "SELECT id AS auction, bidder, price FROM winners",
    10: """
        SELECT * EXCLUDE dateTime, dateTime // 10000 * 10 AS start, row_number() OVER w AS rank
        FROM events WINDOW w AS (PARTITION BY dateTime // 10000 ORDER BY dateTime)
    """,
    11: """
        WITH begun AS (
            SELECT bidder, dateTime, (dateTime - lag(dateTime, 1, -1000000) OVER w >= 10000)::INT AS begins FROM bids
            WINDOW w AS (PARTITION BY bidder ORDER BY dateTime)
        ),
        numbered AS (SELECT bidder, sum(begins) OVER (PARTITION BY bidder ORDER BY dateTime) AS session FROM begun)
        SELECT bidder AS bidder_id, count(*) AS bid_count FROM numbered GROUP BY bidder, session
    """,
    12: "SELECT bidder AS bidder_id, count(*) AS bid_count FROM bids GROUP BY bidder, dateTime // 10000",
}


def answer(events: Any, query: int) -> list[dict[str, Any]]:
    """The rows of a query over a table of events; `start` is that of a window, in seconds."""
    import duckdb

    with duckdb.connect() as con:
        con.register("events", events)
        con.execute(VIEWS)
        found = con.sql(SQL[query])
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
