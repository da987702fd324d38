"""Parts of a report page: sections, tables, bars, legends. Text in them is escaped by `_html.element`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from tiebeam.pipelines._html import Markup, element


def section(key: str, title: str, lead: Any, *content: Any, note: Any = None) -> Markup:
    return element(
        "section",
        element("h2", title),
        element("p", lead, class_="lead"),
        *content,
        element("p", note, class_="note") if note else None,
        id=key,
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[int] = (), class_: str | None = None) -> Markup:
    def cells(kind: str, values: Sequence[Any]) -> list[Markup]:
        return [element(kind, v, class_="right" if i in right else None) for i, v in enumerate(values)]

    body = [element("tr", cells("td", row)) for row in rows]
    whole_table = element("table", element("thead", element("tr", cells("th", head))), element("tbody", body), class_=class_)
    return element("div", whole_table, class_="scroll")


def bar(share: float, class_: str = "bar") -> Markup:
    return element("span", element("i", style=f"width:{100 * max(0.0, min(1.0, share)):.1f}%"), class_=class_)


def legend(*entries: tuple[str, str]) -> Markup:
    return element("p", (element("span", element("i", class_=kind), words) for kind, words in entries), class_="legend")
