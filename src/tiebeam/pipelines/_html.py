"""HTML and SVG that cannot be injected into: text is escaped unless it was made here.

element("td", name, class_="right")     name is escaped, whatever it holds
element("tr", element("td", "a"), …)    what `element` made is not escaped again
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

_VOID = {"br", "hr", "meta", "img"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """Makes an element of text, Markup or iterables of them; None is nothing. `_` in attribute names is `-`, and falls off at the end."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Puts children side by side, escaping those that are text."""
    return Markup("".join(_text(child) for child in children))


def _text(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(child)
    if isinstance(child, Iterable):
        return join(child)
    return html.escape(str(child))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
