"""`rollup`: what it computes equals SQL, bounded or endless, and what is wrong is said before anything moves."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pytest

from support import both
from support.events import clicks
from support.matrix import FNAPI
from tiebeam import cli
from tiebeam.errors import ConfigError
from tiebeam.pipelines import _declared, rollup
from tiebeam.transforms.aggregate import Calendar, Count, Fixed, Sessions, Sliding, Sum

ROWS = [
    {"ts": f"2026-01-01T{i // 60 % 24:02}:{i % 60:02}:00Z", "shop": [None, "a", "b"][i % 3], "amount": i / 4, "status": f"s{i}"}
    for i in range(500)
]
BAD = ['{"ts": "2026-01-01T00:00:00Z", "shop": "a", "amount": ', '{"ts": "soon", "shop": "a", "amount": 1.0, "status": "x"}']
FROM = ("--source=jsonl", "--source_path=in/*.jsonl", "--source_event_time=ts")
TO = ("--sink=parquet", "--sink_path=out/")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    lines = [json.dumps(row) for row in ROWS]
    lines[100:100] = BAD
    (tmp_path / "in/rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(*flags: str) -> int:
    return cli.main(["run", "rollup", *FROM, *flags])


def test_it_equals_sql_and_bad_rows_are_kept(folder, capsys):
    aggregates = "--aggregates=total=sum(amount),n=count(),last=last(status)"
    assert run(*TO, "--by=shop", "--window=1h", "--where=amount >= 1", aggregates) == 0
    assert "2 rejected" in capsys.readouterr().out
    with duckdb.connect() as con:
        ours = con.sql("SELECT epoch(window_start), shop, total, n, last FROM 'out/*.parquet' ORDER BY ALL").fetchall()
        con.execute("CREATE TABLE rows AS SELECT * FROM read_json('in/rows.jsonl', ignore_errors=true) WHERE starts_with(ts::TEXT, '2')")
        theirs = con.sql(
            "SELECT epoch(date_trunc('hour', ts::TIMESTAMP)), shop, sum(amount), count(*), arg_max(status, ts) FROM rows "
            "WHERE amount >= 1 GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert len(ours) > 20
    assert ours == theirs


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--aggregates=total=summ(amount)",), "did you mean sum"),
        (("--aggregates=total",), "is no aggregate"),
        (("--aggregates=total=sum()",), "names no column"),
        (("--aggregates=n=count(),n=count()",), "named twice"),
        (("--aggregates=total=sum(amuont)",), "no column 'amuont'"),
        (("--aggregates=total=sum(status)",), "needs numbers"),
        (("--aggregates=n=count()", "--window=1 fortnight"), "not a length of time"),
        (("--aggregates=n=count()", "--window=day Mars/Base"), "no time zone"),
        (("--aggregates=n=count()", "--by=shpo"), "no column 'shpo'"),
        ((), "--aggregates"),
    ],
)
def test_what_is_wrong_is_said_before_anything_moves(folder, capsys, flags, said):
    assert run(*TO, *flags) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_all_that_is_wrong_with_aggregates_is_said_at_once():
    with pytest.raises(ConfigError, match=r"(?s)'x'.*'summ'.*names no column"):
        _declared.reducers(["x", "a=summ(b)", "c=max()"], "--aggregates")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (None, None),
        ("1h", Fixed("1h")),
        ("1h every 10m", Sliding("1h", "10m")),
        ("session 30m", Sessions("30m")),
        ("week", Calendar("week", "UTC")),
        ("day Europe/Berlin", Calendar("day", "Europe/Berlin")),
    ],
)
def test_windows_are_read(text, meant):
    assert _declared.window(text) == meant


def test_aggregates_are_read():
    assert _declared.reducers(["n = count()", "total=sum( amount )"], "") == {"n": Count(), "total": Sum("amount")}


def test_no_rows_give_no_rows(folder):
    (folder / "in/rows.jsonl").write_text("")
    assert run("--sink=jsonl", "--sink_path=out/", "--by=shop", "--aggregates=n=count()") == 0


@pytest.mark.parametrize("window", ["1m", "3m every 1m", "session 2m", "month"])
def test_an_endless_source_gives_the_same(prism, window):
    batches = [clicks(np.random.default_rng(4), 300)]
    options = dict(by=("user",), window=window, aggregates=("n=count()", "total=sum(amount)"), where="amount > -4", lateness="0s")
    bounded = both.run(rollup.build, batches, FNAPI, False, ["sink"], **options)
    endless = both.run(rollup.build, batches, prism.flags(), True, ["sink"], **options)
    assert endless == bounded
    assert bounded["sink"]
