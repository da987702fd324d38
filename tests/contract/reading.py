"""Reads a place back through the connector's own source."""

from __future__ import annotations

import tempfile
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from contract import targets
from support.shelf import WriteToShelf, shelf_table
from tiebeam.connectors import Source
from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError


def read(source: Source) -> pa.Table | None:
    """All rows of a source; None when there are none, an error when it rejects any."""
    with tempfile.TemporaryDirectory() as folder:
        p = beam.Pipeline(runner="FnApiRunner")
        with Delivery(p, WriteToShelf(f"{folder}/rejected")):
            p | source | WriteToShelf(f"{folder}/rows")
        p.run().wait_until_finish()
        rejected = shelf_table(f"{folder}/rejected")
        assert rejected is None, rejected.to_pylist()
        return shelf_table(f"{folder}/rows")


def ns_of(name: str, folder: Path) -> list[int]:
    """The keys of the visible rows of a place, none when it does not exist yet; by a sample of all rows, which is quicker than a run."""
    source = targets.source(name, folder)
    try:
        source.ping()
    except ConfigError:
        return []
    rows = source.sample(1_000_000)
    return sorted(int(n) for n in rows.column("n").to_pylist()) if rows is not None else []
