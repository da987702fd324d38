"""Starts the service that a connector under test is put through on."""

from __future__ import annotations

import pytest

from contract import targets


@pytest.fixture(autouse=True)
def running(request):
    if "bigquery" in request.node.name and "bigquery" not in targets.EMULATORS:
        targets.EMULATORS["bigquery"] = request.getfixturevalue("bigquery")
