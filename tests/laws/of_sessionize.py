"""Cases of Sessionize. The oracle walks along the rows of each key, one by one, as the definition does."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa

from laws.cases import Case
from support.events import TIME, by_key, clicks
from tiebeam.rows import ROW_TIME
from tiebeam.transforms._shards import ids_of
from tiebeam.transforms.aggregate import ApproxDistinct, Count, First, Last, Max, Sum
from tiebeam.transforms.sessionize import Sessionize

GAP = timedelta(minutes=2)


def sessions_of(batches, keys, longest=None):
    rows = [row for batch in batches for row in batch.to_pylist()]
    found = []
    for group in by_key(rows, *keys):
        for row in group:
            here = found[-1] if found and found[-1][0] in group and row is not group[0] else None
            if here and row[ROW_TIME] - here[-1][ROW_TIME] < GAP and not (longest and row[ROW_TIME] - here[0][ROW_TIME] >= longest):
                here.append(row)
            else:
                found.append([row])
    return found


def name_of(session, keys):
    values = [pa.array([session[0][key]], pa.string()) for key in keys]
    return ids_of([*values, pa.array([session[0][ROW_TIME]], TIME)])[0].as_py()


def told(batches, keys=("user",), longest=None, **more):
    expected = []
    for session in sessions_of(batches, keys, longest):
        start, last = session[0][ROW_TIME], session[-1][ROW_TIME]
        over = min(last + GAP, start + longest) if longest else last + GAP
        expected.append({
            **{key: session[0][key] for key in keys},
            "session_id": name_of(session, keys), "session_start": start, "session_end": last, "session_rows": len(session),
            **{name: compute(session) for name, compute in more.items()},
            "row_time": over - timedelta(microseconds=1),
        })  # fmt: skip
    return expected


def tagged(batches, keys=("user",), longest=None):
    return [
        {**row, "session_id": name_of(session, keys), "session_start": session[0][ROW_TIME], "session_row": i + 1}
        for session in sessions_of(batches, keys, longest)
        for i, row in enumerate(session)
    ]


def amounts(session):
    return [row["amount"] for row in session if row["amount"] is not None]


def reduced(batches):
    return told(
        batches,
        total=lambda s: sum(amounts(s)) if amounts(s) else None,
        first=lambda s: s[0]["kind"],
        last=lambda s: s[-1]["kind"],
        most=lambda s: max(row["price"] for row in s),
        kinds=lambda s: len({row["kind"] for row in s}),
        seen=lambda s: len(amounts(s)),
    )


def short(chance, n):
    return [clicks(chance, n, span=3 * 60_000_000)]


REDUCERS = dict(
    total=Sum("amount"), first=First("kind"), last=Last("kind"), most=Max("price"), kinds=ApproxDistinct("kind"), seen=Count("amount")
)
SETTING = dict(gap="2m", tick="30s", shards=3)
LONGEST = timedelta(minutes=5)

CASES = [
    Case("sessions", lambda: Sessionize("user", **SETTING), lambda c, n: [clicks(c, n)], told),
    Case("sessions, cut", lambda: Sessionize("user", longest="5m", **SETTING), short, lambda b: told(b, longest=LONGEST)),
    Case("sessions, reduced", lambda: Sessionize("user", **SETTING, **REDUCERS), lambda c, n: [clicks(c, n)], reduced),
    Case(
        "sessions of two keys",
        lambda: Sessionize(["user", "device"], **SETTING),
        lambda c, n: [clicks(c, n)],
        lambda b: told(b, ("user", "device")),
    ),
    Case("rows of sessions", lambda: Sessionize("user", emit="rows", **SETTING), lambda c, n: [clicks(c, n)], tagged),
    Case(
        "rows of sessions, cut",
        lambda: Sessionize("user", longest="5m", emit="rows", **SETTING),
        short,
        lambda b: tagged(b, longest=LONGEST),
    ),
]
