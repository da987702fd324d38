"""`sessions`: sessions and funnel equal SQL, bounded or endless, and what is wrong is said before anything moves."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pytest

from support import both
from support.events import clicks
from support.matrix import FNAPI
from tiebeam import cli
from tiebeam.pipelines import sessions

PAGES = ("home", "list", "cart", "paid")
FROM = ("--source=jsonl", "--source_path=in/*.jsonl", "--source_event_time=ts")
TO = ("--sink=parquet", "--sink_path=out/")
FUNNEL = ("--event=page", "--funnel=home,cart,paid", "--funnel_sink=parquet", "--funnel_sink_path=funnel/", "--funnel_within=1h")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    chance = np.random.default_rng(8)
    minutes = np.cumsum(chance.integers(0, 25, 400))
    rows = [
        {"ts": f"2026-01-{1 + m // 1440:02}T{m // 60 % 24:02}:{m % 60:02}:{i % 60:02}Z", "user": [None, "ann", "bob"][chance.integers(3)],
         "page": PAGES[chance.integers(4)]}
        for i, m in enumerate(minutes.tolist())
    ]  # fmt: skip
    (tmp_path / "in/rows.jsonl").write_text("\n".join([*map(json.dumps, rows), '{"ts": "2026-01-01T0']) + "\n")
    return tmp_path


def run(*flags: str) -> int:
    return cli.main(["run", "sessions", *FROM, *flags])


CLICKS = """
    CREATE TABLE clicks AS SELECT ts::TIMESTAMP AS ts, user, page
    FROM read_json('in/rows.jsonl', ignore_errors=true) WHERE page IS NOT NULL
"""
TOLD = "SELECT user, epoch(session_start), epoch(session_end), session_rows, first_event, last_event FROM 'out/*.parquet' ORDER BY ALL"


def test_sessions_and_funnel_equal_sql(folder, capsys):
    assert run(*TO, *FUNNEL) == 0
    assert "401 read = 400 accepted + 1 rejected" in capsys.readouterr().out
    with duckdb.connect() as con:
        con.execute(CLICKS)
        begun = "SELECT *, coalesce(ts - lag(ts) OVER (PARTITION BY user ORDER BY ts) >= INTERVAL 30 MINUTES, true) AS first FROM clicks"
        numbered = f"SELECT *, sum(first::INT) OVER (PARTITION BY user ORDER BY ts) AS nth FROM ({begun})"
        expected = con.sql(
            f"SELECT user, epoch(min(ts)), epoch(max(ts)), count(*), arg_min(page, ts), arg_max(page, ts) FROM ({numbered}) "
            "GROUP BY user, nth ORDER BY ALL"
        ).fetchall()
        assert con.sql(TOLD).fetchall() == expected
        funnel = con.sql("SELECT epoch(window_start), steps_reached, furthest_step, starts FROM 'funnel/*.parquet' ORDER BY ALL").fetchall()
        until = "b.user IS NOT DISTINCT FROM a.user AND b.ts > {} AND b.ts < a.ts + INTERVAL 1 HOUR"
        expected = con.sql(f"""
            WITH carts AS (
                SELECT user, ts, (SELECT min(b.ts) FROM clicks b WHERE b.page = 'cart' AND {until.format("a.ts")}) AS cart
                FROM clicks a WHERE page = 'home'
            ),
            steps AS (
                SELECT *, (SELECT min(b.ts) FROM clicks b WHERE b.page = 'paid' AND {until.format("a.cart")}) AS paid FROM carts a
            )
            SELECT epoch(date_trunc('day', ts + INTERVAL 1 HOUR - INTERVAL 1 MICROSECOND)) AS day,
                   1 + (cart IS NOT NULL)::INT + (paid IS NOT NULL)::INT AS reached, ['home', 'cart', 'paid'][reached], count(*)
            FROM steps GROUP BY ALL ORDER BY ALL
        """).fetchall()
        assert funnel == expected


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--gap=soon",), "not a length of time"),
        (("--user=usr",), "no column 'usr'"),
        (("--event=pgae",), "no column 'pgae'"),
        (FUNNEL[1:], "add --event"),
        (FUNNEL[:2], "a place to go"),
        (("--event=page", "--funnel=home", *FUNNEL[2:]), "1 steps"),
    ],
)
def test_what_is_wrong_is_said_before_anything_moves(folder, capsys, flags, said):
    assert run(*TO, *flags) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_rows_need_an_event_time(folder, capsys):
    assert cli.main(["run", "sessions", "--source=jsonl", "--source_path=in/*.jsonl", *TO]) == 2
    assert "row_time" in capsys.readouterr().err


def test_an_endless_source_gives_the_same(prism):
    batches = [clicks(np.random.default_rng(4), 300)]
    options = dict(user=("user",), gap="2m", longest="10m", event="kind", funnel=("view", "cart", "buy"), funnel_within="5m")
    bounded = both.run(sessions.build, batches, FNAPI, False, ["sink", "funnel_sink"], **options)
    endless = both.run(sessions.build, batches, prism.flags(), True, ["sink", "funnel_sink"], **options)
    assert endless == bounded
    assert all(bounded.values())
