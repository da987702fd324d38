"""The events: JSON lines as Beam's Nexmark suite reads them, the same for the same number.

Ids, proportions (1 person : 3 auctions : 46 bids), hot keys, prices and lengths of auctions follow the generator of Beam's Java suite
(org.apache.beam.sdk.nexmark.sources.generator), at its 100 events a second.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

FIRST_ID, FIRST_CATEGORY, CATEGORIES = 1_000, 10, 5
ACTIVE_PEOPLE, IN_FLIGHT_AUCTIONS, LEAD = 1_000, 100, 10
HOT_SELLER, HOT_AUCTION, HOT_BIDDER = 4, 2, 4
MILLIS_PER_EVENT = 10
SCHEMA = (
    "id bigint, name text, emailAddress text, creditCard text, city text, state text, itemName text, description text, "
    "initialBid bigint, reserve bigint, expires bigint, seller bigint, category bigint, auction bigint, bidder bigint, price bigint, "
    "dateTime bigint, extra text"
)
"""The columns of all kinds, declared as Beam's own classes declare them."""
BASE_MILLIS = 1_436_918_400_000  # 2015-07-15, as there
STATES = ["AZ", "CA", "ID", "OR", "WA", "WY"]
CITIES = ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"]
FIRST = ["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"]
LAST = ["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"]

_CHUNK = 200_000
_EXTRA = {"person": 90, "auction": 260, "bid": 40}


def write(path: Path, events: int) -> Path:
    """Writes a file of so many events, unless it is there already."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        with draft.open("wb") as file:
            for first in range(0, events, _CHUNK):
                file.write(("\n".join(lines(first, min(_CHUNK, events - first))) + "\n").encode())
        draft.replace(path)
    return path


def lines(first: int, n: int) -> list[str]:
    """The events from a number on, in the order of their times."""
    number = np.arange(first, first + n)
    epoch, offset = number // 50, number % 50
    millis = BASE_MILLIS + number * MILLIS_PER_EVENT
    chance = np.random.default_rng(first)
    kinds = [(offset == 0, _people), ((offset > 0) & (offset < 4), _auctions), (offset >= 4, _bids)]
    parts = [(np.flatnonzero(mask), make(chance, epoch[mask], offset[mask], millis[mask])) for mask, make in kinds]
    order = np.argsort(np.concatenate([at for at, _ in parts]))
    told = [line for _, frame in parts if frame.height for line in frame.write_ndjson().splitlines()]
    return [told[i] for i in order]


def _people(chance: np.random.Generator, epoch: np.ndarray, _: np.ndarray, millis: np.ndarray) -> pl.DataFrame:
    n = len(epoch)
    first, last = _any(chance, FIRST, n), _any(chance, LAST, n)
    return pl.DataFrame({
        "id": FIRST_ID + epoch, "name": [f"{a} {b}" for a, b in zip(first, last, strict=True)],
        "emailAddress": [f"{b.lower()}@{a.lower()}.com" for a, b in zip(first, last, strict=True)],
        "creditCard": [f"{c:016}" for c in chance.integers(0, 10**16, n)],
        "city": _any(chance, CITIES, n), "state": _any(chance, STATES, n), "dateTime": millis, "extra": _text(chance, "person", n),
    })  # fmt: skip


def _auctions(chance: np.random.Generator, epoch: np.ndarray, offset: np.ndarray, millis: np.ndarray) -> pl.DataFrame:
    n = len(epoch)
    initial = _price(chance, n)
    horizon = IN_FLIGHT_AUCTIONS * 50 // 3 * MILLIS_PER_EVENT
    return pl.DataFrame({
        "id": FIRST_ID + epoch * 3 + offset - 1,
        "itemName": _text(chance, "auction", n, 20), "description": _text(chance, "auction", n, 100),
        "initialBid": initial, "reserve": initial + _price(chance, n), "dateTime": millis,
        "expires": millis + 1 + chance.integers(0, 2 * horizon, n),
        "seller": _person(chance, epoch, HOT_SELLER, 0), "category": FIRST_CATEGORY + chance.integers(0, CATEGORIES, n),
        "extra": _text(chance, "auction", n),
    })  # fmt: skip


def _bids(chance: np.random.Generator, epoch: np.ndarray, _: np.ndarray, millis: np.ndarray) -> pl.DataFrame:
    n = len(epoch)
    last = epoch * 3 + 2
    cold = np.maximum(last - IN_FLIGHT_AUCTIONS, 0)
    cold += (chance.random(n) * (last - cold + 1 + LEAD)).astype(np.int64)
    auction = np.where(chance.integers(0, HOT_AUCTION, n) > 0, last // 100 * 100, cold)
    return pl.DataFrame({
        "auction": FIRST_ID + auction, "bidder": _person(chance, epoch, HOT_BIDDER, 1), "price": _price(chance, n), "dateTime": millis,
        "extra": _text(chance, "bid", n),
    })  # fmt: skip


def _person(chance: np.random.Generator, last: np.ndarray, hot: int, which: int) -> np.ndarray:
    """A person that exists, or soon will: one in `hot` any of the active ones, else the hot one of the last hundred."""
    active = np.minimum(last, ACTIVE_PEOPLE)
    cold = last - active + (chance.random(len(last)) * (active + LEAD)).astype(np.int64)
    return FIRST_ID + np.where(chance.integers(0, hot, len(last)) > 0, last // 100 * 100 + which, cold)


def _price(chance: np.random.Generator, n: int) -> np.ndarray:
    return np.round(10 ** (chance.random(n) * 6) * 100).astype(np.int64)


def _any(chance: np.random.Generator, values: list[str], n: int) -> list[str]:
    return [values[i] for i in chance.integers(0, len(values), n)]


def _text(chance: np.random.Generator, kind: str, n: int, size: int = 0) -> list[str]:
    """Texts of letters: of a thousand different ones, each as long as asked for or as the filler of that kind of event."""
    letters = chance.integers(97, 123, (1_000, size or _EXTRA[kind])).astype(np.uint8)
    pool = [row.tobytes().decode() for row in letters]
    return [pool[i] for i in chance.integers(0, 1_000, n)]
