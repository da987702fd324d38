"""`--from` and `--to`: a run moves the rows of its own interval, and each row belongs to exactly one of several that adjoin."""

from __future__ import annotations

import json
from itertools import pairwise

import duckdb
import pytest

from tiebeam import cli


@pytest.fixture
def hours(tmp_path):
    """Twelve rows, one each five minutes from ten to eleven, and one without a time."""
    lines = [{"n": n, "at": f"2026-01-01T10:{5 * n:02}:00Z"} for n in range(12)] + [{"n": 12, "at": None}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        "--source=jsonl",
        f"--source_path={tmp_path}/in.jsonl",
        "--source_event_time=at",
        "--sink=parquet",
        f"--sink_path={tmp_path}/out",
    ]


def test_intervals_that_adjoin_hold_each_row_once(hours, tmp_path, capsys):
    bounds = ["2026-01-01T10:00:00Z", "2026-01-01T10:20:00+00:00", "2026-01-01T11:35:00+01:00", "2026-01-01T11:00:00Z"]
    for start, end in pairwise(bounds):
        assert cli.main(["run", "ingest", *hours, f"--from={start}", f"--to={end}", "--json"]) == 0
        account = json.loads(capsys.readouterr().out)
        assert account["read"] == 13 == account["accepted"] + account["rejected"] + account["left_out"]
    assert duckdb.sql(f"SELECT n FROM '{tmp_path}/out/*.parquet' ORDER BY n").fetchall() == [(n,) for n in range(12)]


def test_one_bound_is_enough_a_row_without_a_time_is_rejected_and_the_account_says_what_was_left_out(hours, tmp_path, capsys):
    assert cli.main(["run", "ingest", *hours, "--from=2026-01-01T10:50:00Z"]) == 0
    assert "13 read = 2 accepted + 1 rejected + 10 left out" in capsys.readouterr().out


def test_a_rollup_of_an_interval(hours, tmp_path, capsys):
    flags = ["--aggregates=n=count()", "--from=2026-01-01T10:10:00Z", "--to=2026-01-01T10:20:00Z"]
    assert cli.main(["run", "rollup", *hours, *flags]) == 0
    assert duckdb.sql(f"SELECT n FROM '{tmp_path}/out/*.parquet'").fetchall() == [(2,)]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--from=yesterday"], "--from: is no time with a zone"),
        (["--to=2026-01-01T10:00:00"], "--to: is no time with a zone"),
        (["--from=2026-01-01T10:00:00Z", "--to=2026-01-01T11:00:00+01:00"], "holds no moment"),
        (["--frm=2026-01-01T10:00:00Z"], "did you mean --from?"),
    ],
)
def test_what_is_no_interval_is_refused(hours, capsys, flags, told):
    assert cli.main(["run", "ingest", *hours, *flags]) == 2
    assert told in capsys.readouterr().err


def test_rows_without_an_event_time_are_in_no_interval(hours, capsys):
    flags = [flag for flag in hours if "event_time" not in flag]
    assert cli.main(["run", "ingest", *flags, "--from=2026-01-01T10:00:00Z"]) == 2
    assert "--source_event_time=COLUMN" in capsys.readouterr().err
