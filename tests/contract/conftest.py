"""The service of a place, for the tests that use the place."""

from __future__ import annotations

import pytest

from contract import targets


@pytest.fixture(autouse=True)
def _service_of_the_place(request):
    names = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    for place in (targets.target(name) for name in names if name in targets.VARIANTS):
        request.getfixturevalue(place.fixture).bucket("contract")
    if "bigquery" in names and "bigquery" not in targets.EMULATORS:
        targets.EMULATORS["bigquery"] = request.getfixturevalue("bigquery")
