"""Applies a transform to batches and hands back its rows and its dead letters."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import apache_beam as beam
from hypothesis import strategies as st

from tiebeam import dead_letters
from tiebeam.rows import RowBatch

_collected: dict[str, list[dict[str, Any]]] = {}


def applied(batches: list[RowBatch], transform: beam.PTransform) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows that come out, and the dead letters, as dicts; within this process."""
    _collected.clear()
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create(batches) | transform
        for i, letters in enumerate(dead_letters.claim(p)):
            _ = letters | f"Collect letters {i}" >> beam.Map(_collect, "letters")
        _ = rows | "Collect rows" >> beam.Map(_collect, "rows")
    return _collected.get("rows", []), _collected.get("letters", [])


def _collect(batch: RowBatch, into: str) -> None:
    assert batch.num_rows, "an empty batch"
    _collected.setdefault(into, []).extend(batch.to_pylist())


def cuts_of(batch: RowBatch, data: Any) -> list[RowBatch]:
    """Cuts a batch at places that hypothesis draws."""
    places = data.draw(st.sets(st.integers(1, max(1, batch.num_rows - 1)), max_size=4))
    bounds = sorted({0, batch.num_rows, *(p for p in places if p < batch.num_rows)})
    return [batch.slice(a, b - a) for a, b in pairwise(bounds)]
