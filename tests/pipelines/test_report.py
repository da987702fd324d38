"""The retail report: everything from outside is text in it, it needs no network, and it says what the tables say."""

import base64
import json
from html.parser import HTMLParser

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebeam.dead_letters import letters, letters_of_rows
from tiebeam.pipelines import _report
from tiebeam.pipelines._account import Outcome
from tiebeam.pipelines._figures import MINUS, change, dollars, percent, short_dollars, ticks, whole
from tiebeam.pipelines._html import Markup, element

HOSTILE = """</td></style><script>alert("bought")</script><img src=x onerror='alert(1)'>${body}&amp;"""
VOID = {"meta", "br", "img", "hr"}


class Page(HTMLParser):
    """Reads a page as a browser would, and notes what could run or reach out."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open, self.ids = [], [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids |= {value for name, value in attrs if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return "".join(self.text)


TABLES = """
CREATE TABLE days AS
    SELECT DATE '2017-01-01' + i::INTEGER AS day, (100 + i % 7)::DECIMAL(18,2) AS revenue, 10 AS baskets FROM range(60) r(i);
CREATE TABLE hours AS
    SELECT 1 + i % 7 AS weekday, i % 24 AS hour, 1.5::DECIMAL(18,2) AS revenue, i AS baskets FROM range(1, 100) r(i);
CREATE TABLE department_days AS
    SELECT hostile(i % 3) AS department, day, revenue, baskets FROM days, range(3) r(i);
CREATE TABLE department_weeks AS
    SELECT hostile(i % 3) AS department, DATE '2017-01-02' + (7 * w)::INTEGER AS week, 7 AS days, 10.5::DECIMAL(18,2) AS revenue,
           3 AS baskets, 10::DECIMAL(18,2) AS previous_revenue, (w - 3) / 10 AS change
    FROM range(3) r(i), range(7) s(w);
CREATE TABLE product_sales AS
    SELECT i AS product_id, hostile(i % 3) AS department, hostile('c') AS product_category, hostile('t') AS product_type,
           hostile('b') AS brand, hostile('s') AS package_size, (i + 1)::DECIMAL(18,2) AS revenue, 2 AS baskets, 1 AS households
    FROM range(9) r(i);
CREATE TABLE top_products AS SELECT *, 1 AS place FROM product_sales;
CREATE TABLE repeat_purchases AS
    SELECT hostile(0) AS department, i AS times, 10 AS pairs, 5::DECIMAL(18,2) AS revenue FROM range(1, 60) r(i);
CREATE TABLE basket_sizes AS SELECT i AS products, 10 AS baskets, 5::DECIMAL(18,2) AS revenue FROM range(1, 60) r(i);
CREATE TABLE campaigns AS
    SELECT i AS campaign_id, hostile('x') AS campaign_type, DATE '2017-01-20' AS start_date, DATE '2017-02-10' AS end_date,
           10 AS households, 4 AS products, 3 AS redemptions, 2 AS redeemers, 22 AS days, CASE WHEN i < 3 THEN i - 1.0 END AS uplift,
           CASE WHEN i < 3 THEN i - 1.5 END AS uplift_low, CASE WHEN i < 3 THEN i - 0.5 END AS uplift_high
    FROM range(4) r(i);
CREATE TABLE households AS
    SELECT i AS household_id, 1 + i % 5 AS recency, 1 + i % 4 AS frequency, 7::DECIMAL(18,2) AS revenue FROM range(20) r(i);
CREATE TABLE spells AS
    SELECT i % 13 AS household_id, 2 AS baskets, 5::DECIMAL(18,2) AS revenue, DATE '2017-01-01' + i::INTEGER AS last_day
    FROM range(60) r(i);
CREATE TABLE after_coupons AS
    SELECT nullif(i, 5) AS week, 10 AS baskets, 8 AS compared, CASE WHEN i != 3 THEN 1.5 - i / 10 END AS ratio, 5::DECIMAL(18,2) AS revenue
    FROM range(1, 6) r(i);
CREATE TABLE segments AS SELECT hostile('s') AS segment, 20 AS households, 40 AS baskets, 140::DECIMAL(18,2) AS revenue;
"""


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    """A small warehouse in which every name is hostile."""
    path = tmp_path_factory.mktemp("report") / "w.duckdb"
    with duckdb.connect(str(path)) as db:
        db.execute("CREATE MACRO hostile(n) AS '" + HOSTILE.replace("'", "''") + "' || n")
        db.execute(TABLES)
    return path


COUNTS = {f"Step {HOSTILE}": {"rows_in": 7}}
OUTCOME = Outcome("retail", f"run {HOSTILE}", HOSTILE, seconds=2.0, read=1_012, accepted=1_000, rejected=12, counts=COUNTS)
PLACES = [("output", HOSTILE)]


def rejected():
    typed = letters_of_rows("Conform", pa.RecordBatch.from_pylist([{"name": HOSTILE, "row_position": "a:7"}]), "range", [HOSTILE])
    raw = letters("Read", "malformed", [HOSTILE], [HOSTILE.encode() + b"\xff\xfe"], "json", positions=[f"in/{HOSTILE}.jsonl:12"])
    return [row for found in (typed, raw) for row in found.batch.to_pylist()]


def render(warehouse, rows=(), outcome=OUTCOME):
    with duckdb.connect(str(warehouse), read_only=True) as db:
        return _report.render(db, list(rows), outcome, PLACES)


def test_text_from_outside_stays_text(warehouse):
    page = Page(render(warehouse, rejected()))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not page.open
    assert page.words.count('<script>alert("bought")</script>') > 20
    assert "${body}" in page.words


def test_the_page_reaches_for_nothing_outside(warehouse):
    text = render(warehouse, rejected())
    page = Page(text)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src", "action", "xlink:href"))
    assert "@import" not in text and "url(" not in text and "fetch(" not in text


def test_every_section_is_there_and_reached_from_the_navigation(warehouse):
    page = Page(render(warehouse, rejected()))
    sections = {"revenue", "hours", "departments", "weeks", "products", "baskets", "repeats", "campaigns", "coupons", "spells"}
    sections |= {"segments", "rejected", "run"}
    assert sections <= page.ids
    assert {f"#{key}" for key in sections} <= {value for name, value in page.attributes if name == "href"}


def test_the_account_says_whether_every_row_is_accounted_for(warehouse):
    whole_account = Page(render(warehouse)).words
    assert "1,012 rows read = 1,000 accepted + 12 rejected" in whole_account and "Every row is accounted for." in whole_account
    short = Page(render(warehouse, outcome=Outcome("retail", "r", "FnApiRunner", read=10, accepted=8, rejected=1))).words
    assert "10 rows read ≠ 8 accepted + 1 rejected" in short and "do not reconcile" in short


def test_a_rejected_row_is_shown_with_its_reason_place_and_original(warehouse):
    words = Page(render(warehouse, rejected())).words
    assert "2 of 1,012 rows were refused by 2 steps" in words
    assert "malformed" in words and ".jsonl:12" in words and "a:7" in words
    assert "\\xff\\xfe" in words, "bytes that are no text are shown as such"


def test_a_run_without_rejected_rows_says_so(warehouse):
    assert "No row was rejected." in Page(render(warehouse)).words


def test_letters_are_those_of_the_run_in_order_of_position(tmp_path):
    def line(run, position):
        return json.dumps({"run_id": run, "row_position": position, "original": base64.b64encode(b"\xff").decode()}) + "\n"

    (tmp_path / "b.jsonl").write_text(line("mine", "in/a.jsonl:5") + line("other", "in/a.jsonl:1"))
    (tmp_path / "a.jsonl").write_text(line("mine", "in/a.jsonl:10"))
    found = _report.letters(str(tmp_path), "mine")
    assert [row["row_position"] for row in found] == ["in/a.jsonl:5", "in/a.jsonl:10"]
    assert found[0]["original"] == b"\xff"


def test_writing_replaces_the_page_in_one_step(warehouse, tmp_path):
    path = tmp_path / "deep/er/report.html"
    assert _report.write(path, warehouse, [], OUTCOME) == path
    _report.write(path, warehouse, rejected(), OUTCOME)
    assert [f.name for f in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))))
def test_any_text_comes_back_from_markup_as_it_was(words):
    page = Page(element("p", words, element("i", words), data_tip=words))
    assert page.words == words + words
    assert page.attributes == [("data-tip", words)]
    assert page.tags == ["p", "i"]


def test_markup_is_not_escaped_again():
    assert element("p", [Markup("<b>"), "<b>", None, 3]) == "<p><b>&lt;b&gt;3</p>"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 9))
def test_ticks_span_what_they_measure(low, span, about):
    marks = ticks(low, low + span, about)
    assert marks[0] <= low + 1e-9 * abs(low) and marks[-1] >= (low + span) - 1e-9 * abs(low + span)
    assert marks == sorted(set(marks)) and len(marks) <= about + 3


def test_figures_as_people_read_them():
    assert whole(-1234567) == f"{MINUS}1,234,567"
    assert dollars(-1234.5, 2) == f"{MINUS}$1,234.50"
    assert short_dollars(4_596_039) == "$4.60\N{NARROW NO-BREAK SPACE}M" and short_dollars(52) == "$52"
    assert percent(0.1234) == "12.3\N{NARROW NO-BREAK SPACE}%" and percent(None) == "\N{EN DASH}"
    assert change(-0.05) == f"{MINUS}5.0\N{NARROW NO-BREAK SPACE}%" and change(0.05).startswith("+")
