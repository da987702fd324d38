"""Runs the `build` of a pipeline over the same rows, as a bounded input and as one that never ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from support import matrix
from support.streams import dealt
from tiebeam import dead_letters
from tiebeam.io._endless import ReadEndless
from tiebeam.rows import RowBatch


class Given(beam.PTransform):
    """A source of rows, dealt to skewed partitions where it is endless."""

    def __init__(self, batches: list[RowBatch], endless: bool):
        super().__init__()
        self.batches = batches
        self.endless = endless

    def sample(self, rows: int) -> RowBatch:
        return self.batches[0].slice(0, rows)

    def expand(self, begin: Any) -> beam.PCollection:
        if self.endless:
            return begin | ReadEndless(dealt(self.batches, disorder=20_000_000, seed=3), poll_secs=0.01)
        return begin | beam.Create(self.batches).with_output_types(RowBatch)


class Collect(beam.PTransform):
    """A sink that keeps what it gets."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def expand(self, rows: beam.PCollection) -> None:
        matrix.save(rows, self.path, "rows")


def run(build: Callable[[Any, Any], None], batches: list[RowBatch], flags: list[str], endless: bool, sinks: list[str], **options: Any):
    """The rows that each sink gets, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        places = {sink: Path(folder, sink) for sink in sinks}
        with beam.Pipeline(options=PipelineOptions([*flags, "--allow_unsafe_triggers"])) as p:
            made = {sink: Collect(path) for sink, path in places.items()}
            build(p, SimpleNamespace(source=Given(batches, endless), late=None, from_=None, to=None, **made, **options))
            letters = dead_letters.claim(p)
            for i, rejected in enumerate(letters):
                matrix.save(rejected, Path(folder, f"letters{i}"), f"letters {i}")
        assert not [row for i in range(len(letters)) for row in matrix.saved(Path(folder, f"letters{i}"))]
        return {sink: matrix.saved(path) for sink, path in places.items()}
