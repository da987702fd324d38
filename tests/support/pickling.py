"""Proof that no record batch of a pipeline is ever pickled.

`pickled_edges` looks at the graph: it names every PCollection whose coder would pickle what it does not know.
`no_pickled_batches` looks at a run: while it is open, pickling a record batch fails.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import coders, registry

PICKLING = (coders.FastPrimitivesCoder, coders.PickleCoder, coders.CloudpickleCoder)
INSIDE_BEAM = (beam.CombineGlobally, beam.CombinePerKey, beam.Create)


def pickled_edges(p: beam.Pipeline) -> list[str]:
    """The PCollections of a pipeline whose elements, or parts of them, Beam would pickle; those within Beam's own steps left out."""
    visitor = _PickledEdges()
    p.visit(visitor)
    return visitor.found


class _PickledEdges(beam.pipeline.PipelineVisitor):
    def __init__(self):
        self.found: list[str] = []
        self.inside = 0

    def enter_composite_transform(self, node: Any) -> None:
        self.inside += isinstance(node.transform, INSIDE_BEAM)

    def leave_composite_transform(self, node: Any) -> None:
        self.inside -= isinstance(node.transform, INSIDE_BEAM)

    def visit_transform(self, node: Any) -> None:
        for output in node.outputs.values():
            coder = registry.get_coder(output.element_type or Any)
            if not self.inside and _pickles(coder):
                self.found.append(f"{node.full_label}: {coder}")


def _pickles(coder: Any) -> bool:
    if isinstance(coder, coders.NullableCoder):  # how Reshuffle carries a timestamp
        return False
    return isinstance(coder, PICKLING) or any(map(_pickles, coder._get_component_coders()))


@contextmanager
def no_pickled_batches() -> Iterator[None]:
    """Makes pickling a record batch or a table an error in this process, also for cloudpickle."""

    def refuse(batch: Any) -> Any:
        raise AssertionError(f"a {type(batch).__name__} of {batch.num_rows} rows was pickled")

    before = {kind: copyreg.dispatch_table.pop(kind, None) for kind in (pa.RecordBatch, pa.Table)}
    for kind in before:
        copyreg.pickle(kind, refuse)
    try:
        yield
    finally:
        for kind, reducer in before.items():
            del copyreg.dispatch_table[kind]
            if reducer is not None:
                copyreg.pickle(kind, reducer)
