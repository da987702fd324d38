"""The queries on record batches. Each takes the events, people, auctions and bids mixed, with `row_time`, and gives its rows.

They say what Beam's own say (apache_beam.testing.benchmarks.nexmark.queries), with windows of 10 s, sliding by 5 s. Where those depend on
the moment at which something arrives (6, 12), event time takes its place.
"""

from __future__ import annotations

from collections.abc import Callable

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.rows import ROW_TIME, RowBatch, RowBatchCoder, with_column
from tiebeam.transforms.aggregate import Aggregate, Count, Max, Mean, Sliding
from tiebeam.transforms.derive import Derive
from tiebeam.transforms.filter import Filter
from tiebeam.transforms.frames import MapBatches
from tiebeam.transforms.join import Join
from tiebeam.transforms.sessionize import Sessionize
from tiebeam.transforms.top import Top
from tiebeam.transforms.trail import Past, Trail

Rows = beam.PCollection
WINDOW, PERIOD = "10s", "5s"
MOST = 100_000  # events of a log file
CODER = RowBatchCoder()
PERSON = ("id", "name", "emailAddress", "creditCard", "city", "state")
AUCTION = ("id", "itemName", "description", "initialBid", "reserve", "expires", "seller", "category")
BID = ("auction", "bidder", "price")
EVERY = tuple(dict.fromkeys([*PERSON, *AUCTION, *BID, "extra"]))
TELLS = {"person": "name", "auction": "itemName", "bid": "bidder"}
"""The column that only events of a kind have."""


def only(kind: str, *columns: str) -> beam.PTransform:
    """The events of a kind, some of their columns."""

    def chosen(batch: RowBatch) -> RowBatch:
        named = [c for c in (*columns, ROW_TIME, "row_position") if c in batch.schema.names]
        return batch.filter(pc.is_valid(batch[TELLS[kind]])).select(named)

    return f"Only {kind}s" >> MapBatches(chosen, frame="arrow")


def told(**columns: str) -> beam.PTransform:
    """The columns of the result, by their new names."""

    def chosen(batch: RowBatch) -> RowBatch:
        return RowBatch.from_pydict({new: batch[old] for new, old in columns.items()})

    return "Told" >> MapBatches(chosen, frame="arrow")


def pass_through(events: Rows) -> Rows:
    return events | "There and back" >> MapBatches(lambda batch: CODER.decode(CODER.encode(batch)), frame="arrow")


def in_euros(events: Rows) -> Rows:
    return events | only("bid", *BID, "extra") | Derive(price="price * 0.89::DOUBLE")


def some_auctions(events: Rows) -> Rows:
    return events | only("bid", *BID) | Filter("auction % 123 = 0") | told(auction_id="auction", price="price")


def local_items(events: Rows) -> Rows:
    auctions = events | only("auction", "id", "seller", "category") | "Of a category" >> Filter("category = 10")
    people = events | only("person", "id", "name", "city", "state") | "Of some states" >> Filter("state IN ('OR', 'ID', 'CA')")
    joined = {"left": auctions, "right": people} | Join({"seller": "id"}, between=("-1d", "10m"))
    return joined | told(name="name", city="city", state="state", auction_id="id")


def winners(events: Rows) -> Rows:
    """Of each auction its highest bid, the earliest of equal ones, above the reserve and in time; `row_time` is when it closes."""
    auctions = events | only("auction", "id", "reserve", "expires", "seller", "category")
    bids = events | only("bid", *BID)
    valid = Filter("price >= reserve AND epoch_ms(row_time_right) < expires")
    offers = {"left": auctions, "right": bids} | Join({"id": "auction"}, between=("-1m", "1m")) | "In time" >> valid
    best = offers | Top(1, order_by=("price", "row_time_right asc", "bidder asc"), by="id", window=WINDOW)
    return best | "When it closes" >> MapBatches(closing, frame="arrow")


def closing(batch: RowBatch) -> RowBatch:
    time = pc.subtract(pc.multiply(batch["expires"], 1000), 1).cast(pa.timestamp("us", tz="UTC"))
    return with_column(batch, ROW_TIME, time).drop_columns(["window_start"])


def price_of_categories(events: Rows) -> Rows:
    return winners(events) | Aggregate("category", window=Sliding(WINDOW, PERIOD), price=Mean("price"))


def hot_items(events: Rows) -> Rows:
    counts = events | only("bid", *BID) | "Bids" >> Aggregate("auction", window=Sliding(WINDOW, PERIOD), num=Count())
    most = counts | "Most" >> Aggregate(window=PERIOD, num=Max("num"))  # each window ends within one period
    hot = {"left": counts, "right": most} | Join("num", between=(0, 0), right_columns=pa.schema([("num", pa.int64())]))
    return hot | told(window_start="window_start", auction_id="auction", num="num")


def prices_of_sellers(events: Rows) -> Rows:
    last = winners(events) | Trail("seller", mean=Past("30d", Mean("price"), itself=True, rows=10))
    return last | told(seller="seller", price="mean")


def highest_bids(events: Rows) -> Rows:
    bids = events | only("bid", *BID)
    highest = bids | "Highest" >> Aggregate(window=WINDOW, price=Max("price"))
    named = pa.schema([("price", pa.int64())])
    joined = {"left": bids, "right": highest} | Join("price", between=(0, 9.999999), right_columns=named)
    return joined | told(auction="auction", bidder="bidder", price="price")


def new_users(events: Rows) -> Rows:
    window = Derive(window="epoch_us(row_time) // 10000000")
    people = events | only("person", "id", "name") | "Window of people" >> window
    auctions = events | only("auction", "seller", "reserve") | "Window of auctions" >> window
    joined = {"left": people, "right": auctions} | Join({"id": "seller", "window": "window"}, between=("-10s", "10s"))
    return joined | told(id="id", name="name", reserve="reserve")


def winning_bids(events: Rows) -> Rows:
    return winners(events) | told(auction="id", bidder="bidder", price="price")


def log_of_events(events: Rows) -> Rows:
    """All events, whole, window by window in the order of their times: what its files would hold."""
    return events | Top(MOST, order_by=f"{ROW_TIME} asc", window=WINDOW)


def sessions_of_bidders(events: Rows) -> Rows:
    return events | only("bid", "bidder") | Sessionize("bidder", gap=WINDOW) | told(bidder_id="bidder", bid_count="session_rows")


def bids_of_bidders(events: Rows) -> Rows:
    return events | only("bid", "bidder") | Aggregate("bidder", window=WINDOW, n=Count()) | told(bidder_id="bidder", bid_count="n")


QUERIES: dict[int, Callable[[Rows], Rows]] = dict(enumerate([
    pass_through, in_euros, some_auctions, local_items, price_of_categories, hot_items, prices_of_sellers, highest_bids, new_users,
    winning_bids, log_of_events, sessions_of_bidders, bids_of_bidders,
]))  # fmt: skip

_WINNERS = ("id", "itemName", "reserve", "expires", "seller", "category", *BID)
READS: dict[int, tuple[str, ...]] = {
    0: EVERY, 1: (*BID, "extra"), 2: BID, 3: ("id", "name", "city", "state", "itemName", "seller", "category"), 4: _WINNERS, 5: BID,
    6: _WINNERS, 7: BID, 8: ("id", "name", "itemName", "seller", "reserve"), 9: _WINNERS, 10: EVERY, 11: ("bidder",), 12: ("bidder",),
}  # fmt: skip
"""The columns that each query reads."""
