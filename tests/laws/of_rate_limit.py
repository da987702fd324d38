"""Cases of RateLimit: all rows go on, marked. The oracle counts the rows of each key and window one by one."""

from __future__ import annotations

from collections import Counter

from laws.cases import Case
from support.events import by_key, clicks
from tiebeam.rows import ROW_TIME
from tiebeam.transforms.rate_limit import RateLimit


def marked(batches, most, secs, *keys):
    told = []
    for group in by_key([row for batch in batches for row in batch.to_pylist()], *keys):
        seen: Counter[float] = Counter()
        for row in group:
            window = row[ROW_TIME].timestamp() // secs
            seen[window] += 1
            told.append({**row, "rate_limited": seen[window] > most})
    return told


SETTING = dict(per="4m", tick="30s", shards=3, over="mark")

CASES = [
    Case(
        "rate limit",
        lambda: RateLimit("user", rows=2, **SETTING),
        lambda c, n: [clicks(c, n, span=5 * 60_000_000)],
        lambda b: marked(b, 2, 240, "user"),
    ),
    Case(
        "rate limit of two keys",
        lambda: RateLimit(["kind", "device"], rows=1, **SETTING),
        lambda c, n: [clicks(c, n)],
        lambda b: marked(b, 1, 240, "kind", "device"),
    ),
    Case(
        "rate limit without keys",
        lambda: RateLimit((), rows=3, **SETTING),
        lambda c, n: [clicks(c, n)],
        lambda b: marked(b, 3, 240),
    ),
]
