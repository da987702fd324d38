"""Cases of Detect. The oracle walks from each start along the rows of its key, one by one, as the definition does."""

from __future__ import annotations

from datetime import timedelta

from laws.cases import Case
from support.events import by_key, clicks
from tiebeam.rows import ROW_TIME
from tiebeam.transforms.detect import Detect, Step

WITHIN = timedelta(minutes=4)
BUYS = [Step("viewed", "kind = 'view'"), Step("bought", "kind = 'buy'")]
FUNNEL = [Step("viewed", "kind = 'view'"), Step("put", "kind = 'cart'"), Step("bought", "kind = 'buy'")]
RISES = [Step("one", "amount > 0"), Step("two", "amount > 1"), Step("three", "amount > 0")]


def kind(word):
    return lambda row: row["kind"] == word


def more(least):
    return lambda row: row["amount"] is not None and row["amount"] > least


def walked(start, behind, fits, ends):
    """The rows that the steps take, fewer where the sequence ends before."""
    taken = [start]
    for row in behind:
        if row[ROW_TIME] - start[ROW_TIME] >= WITHIN or ends(row) or len(taken) == len(fits):
            break
        if fits[len(taken)](row):
            taken.append(row)
    return taken


def detected(batches, steps, keys=("user",), keep=(), ends=lambda row: False, furthest=False):
    found = []
    for group in by_key([row for batch in batches for row in batch.to_pylist()], *keys):
        for i, start in enumerate(group):
            if not next(iter(steps.values()))(start) or ends(start):
                continue
            taken = walked(start, group[i + 1 :], list(steps.values()), ends)
            if len(taken) < len(steps) and not furthest:
                continue
            row = {key: start[key] for key in keys}
            for nth, name in enumerate(steps):
                at = taken[nth] if nth < len(taken) else {}
                row |= {f"{name}_time": at.get(ROW_TIME)} | {f"{name}_{column}": at.get(column) for column in keep}
            if furthest:
                row |= {"steps_reached": len(taken), ROW_TIME: start[ROW_TIME] + WITHIN - timedelta(microseconds=1)}
            else:
                row[ROW_TIME] = taken[-1][ROW_TIME]
            found.append(row)
    return found


def rows(chance, n):
    return [clicks(chance, n)]


SETTING = dict(within="4m", tick="30s", shards=3)
ORACLE_OF_BUYS = dict(viewed=kind("view"), bought=kind("buy"))
ORACLE_OF_FUNNEL = dict(viewed=kind("view"), put=kind("cart"), bought=kind("buy"))
ORACLE_OF_RISES = dict(one=more(0), two=more(1), three=more(0))

CASES = [
    Case("matches", lambda: Detect("user", BUYS, **SETTING), rows, lambda b: detected(b, ORACLE_OF_BUYS)),
    Case(
        "matches, ruled out",
        lambda: Detect("user", FUNNEL, without="kind = 'leave'", keep=["device", "amount"], **SETTING),
        rows,
        lambda b: detected(b, ORACLE_OF_FUNNEL, keep=["device", "amount"], ends=kind("leave")),
    ),
    Case(
        "matches of rows that fit several steps",
        lambda: Detect(["user", "device"], RISES, without="price > 1e9", **SETTING),
        rows,
        lambda b: detected(b, ORACLE_OF_RISES, keys=("user", "device"), ends=lambda row: row["price"] > 1e9),
    ),
    Case(
        "furthest steps",
        lambda: Detect("user", FUNNEL, emit="furthest", **SETTING),
        rows,
        lambda b: detected(b, ORACLE_OF_FUNNEL, furthest=True),
    ),
    Case(
        "furthest steps, ruled out",
        lambda: Detect("user", FUNNEL, without="kind = 'leave'", emit="furthest", keep="amount", **SETTING),
        rows,
        lambda b: detected(b, ORACLE_OF_FUNNEL, keep=["amount"], ends=kind("leave"), furthest=True),
    ),
]
