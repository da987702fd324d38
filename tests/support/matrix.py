"""The runner matrix: the same transform over the same rows, in batch and as a stream, on every runner there is.

Each way takes a transform (or a function that applies one) and row batches, a list or several by input name, and gives the
rows that come out and the rows that were rejected, each as dicts in an order of their own.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from tiebeam import dead_letters
from tiebeam.rows import ROW_TIME, RowBatch, RowBatchCoder, timestamp_of

Rows = list[dict[str, Any]]
Inputs = list[RowBatch] | dict[str, list[RowBatch]]
Apply = beam.PTransform | Callable[[Any], Any]

CODER = RowBatchCoder()


class _SaveFn(beam.DoFn):
    """Writes all batches of a job to one file, over whatever an earlier try left."""

    def __init__(self, path: str):
        self.path = path

    def process(self, keyed):
        draft = Path(self.path).with_suffix(".draft")
        with draft.open("wb") as file:
            for batch in keyed[1]:
                encoded = CODER.encode(batch)
                file.write(len(encoded).to_bytes(8, "big") + encoded)
        draft.replace(self.path)


def _save(rows: beam.PCollection, path: Path, label: str) -> None:
    keyed = rows | f"Key {label}" >> beam.Map(lambda batch: (0, batch)).with_output_types(tuple[int, RowBatch])
    grouped = keyed | f"All {label}" >> beam.WindowInto(GlobalWindows()) | f"Group {label}" >> beam.GroupByKey()
    _ = grouped | f"Save {label}" >> beam.ParDo(_SaveFn(str(path)))


def _saved(path: Path) -> Rows:
    rows: Rows = []
    content = path.read_bytes() if path.exists() else b""
    while content:
        size = int.from_bytes(content[:8], "big")
        batch, content = CODER.decode(content[8 : 8 + size]), content[8 + size :]
        assert batch.num_rows, "an empty batch"
        rows += batch.to_pylist()
    return canonical(rows)


def canonical(rows: Rows) -> Rows:
    """Rows in an order of their own, to be compared as a bag."""
    return sorted(rows, key=repr)


def run(begin: Callable[[beam.Pipeline], Any], apply: Apply, flags: list[str]) -> tuple[Rows, Rows]:
    """Runs a job; gives its rows, and its dead letters with those rows that left by the output `late`."""
    with tempfile.TemporaryDirectory() as folder:
        with beam.Pipeline(options=PipelineOptions([*flags, "--allow_unsafe_triggers"])) as p:  # streams end here
            inputs = begin(p)
            out = inputs | "Apply" >> apply if isinstance(apply, beam.PTransform) else apply(inputs)
            rows, late = out if isinstance(out, tuple) else (out, None)
            _save(rows, Path(folder, "rows"), "rows")
            refused = [*dead_letters.claim(p), *([late] if late is not None else [])]
            for i, letters in enumerate(refused):
                _save(letters, Path(folder, f"letters{i}"), f"letters {i}")
        letters = [row for i in range(len(refused)) for row in _saved(Path(folder, f"letters{i}"))]
        return _saved(Path(folder, "rows")), letters


def in_batch(apply: Apply, inputs: Inputs, *flags: str) -> tuple[Rows, Rows]:
    """As a bounded input, on FnApiRunner unless the flags say otherwise."""

    def begin(p: beam.Pipeline) -> Any:
        def created(batches: list[RowBatch], label: str) -> beam.PCollection:
            return p | label >> beam.Create(batches, reshuffle=False).with_output_types(RowBatch)

        if isinstance(inputs, dict):
            return {name: created(batches, f"Create {name}") for name, batches in inputs.items()}
        return created(inputs, "Create")

    return run(begin, apply, list(flags) or ["--runner=FnApiRunner"])


def in_ticks(apply: Apply, inputs: Inputs, flags: list[str], *, disorder: int = 0, seed: int = 0) -> tuple[Rows, Rows]:
    """As a stream on Prism, by TestStream: rows come in order of time but for `disorder` microseconds, in pieces of random sizes."""
    named = inputs if isinstance(inputs, dict) else {"": inputs}

    def begin(p: beam.Pipeline) -> Any:
        stream = TestStream(coder=CODER, output_tags=set(named) if "" not in named else None)
        for name, batch, watermark in arrivals(named, disorder, seed):
            stamped = [TimestampedValue(batch, timestamp_of(batch))]
            stream = stream.add_elements(stamped, tag=name or None)
            if watermark is not None:
                for tag in [n or None for n in named]:
                    stream = stream.advance_watermark_to(watermark, tag=tag)
        for tag in [n or None for n in named]:
            stream = stream.advance_watermark_to_infinity(tag=tag)
        out = p | "Stream" >> stream
        for pcoll in [out] if "" in named else out.values():
            pcoll.element_type = RowBatch
        return out

    return run(begin, apply, flags)


def arrivals(named: dict[str, list[RowBatch]], disorder: int, seed: int) -> list[tuple[str, RowBatch, Timestamp | None]]:
    """Pieces of the rows, and the watermark behind each: one millisecond below what is still to come."""
    chance = random.Random(seed)
    pieces = []
    for name, batches in named.items():
        for batch in batches:
            times = batch.column(ROW_TIME).cast(pa.int64()).fill_null(0).to_numpy()
            noise = np.random.default_rng(chance.randrange(1 << 30)).integers(0, disorder + 1, len(times))
            order = np.argsort(times + noise, kind="stable")
            start = 0
            while start < len(order):
                size = chance.randint(1, max(1, len(order) // 3))
                taken = order[start : start + size]
                pieces.append((int((times + noise)[taken].min()), name, batch.take(pa.array(taken)), int(times[taken].min())))
                start += size
    pieces.sort(key=lambda piece: piece[0])
    to_come = np.minimum.accumulate([piece[3] for piece in pieces][::-1])[::-1] if pieces else []
    found: list[tuple[str, RowBatch, Timestamp | None]] = []
    reached = None
    for i, (_, name, batch, _) in enumerate(pieces):
        watermark = None
        if i + 1 < len(pieces) and (bound := (int(to_come[i + 1]) // 1000 - 1) * 1000) > (reached if reached is not None else -(1 << 62)):
            reached, watermark = bound, Timestamp(micros=bound)
        found.append((name, batch, watermark))
    return found
