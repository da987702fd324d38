"""Places that only one machine can see, where the machines of a job share no disk: found before anything moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tiebeam.errors import Problem
from tiebeam.options import declared


def beyond_reach(options: Any, connectors: Mapping[str, Any]) -> Iterator[Problem]:
    """Says which paths of a job would be looked for on the disk of each worker."""
    yield from _of(options, "")
    for role, connector in connectors.items():
        yield from _of(connector, f"{role}_")


def _of(declaring: Any, prefix: str) -> Iterator[Problem]:
    for o in declared(type(declaring)):
        value = None if o.role else getattr(declaring, o.attribute)
        if value is None:
            continue
        if o.place == "local":
            yield Problem(
                f"{value} is on the disk of one machine, and the workers share none", f"--{prefix}{o.name}", "use another connector"
            )
        elif o.place in ("files", "folder") and "://" not in value:
            yield Problem(
                f"{value} is a path of one machine, and the workers share no disk",
                f"--{prefix}{o.name}",
                f"gs://BUCKET/{value.lstrip('/')}",
            )
