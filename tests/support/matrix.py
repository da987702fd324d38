"""The runner matrix: the same transform over the same rows, in batch and as a stream, on every runner there is.

Each way takes a transform (or a function that applies one) and row batches, a list or several by input name, and gives the
rows that come out and the rows that were rejected, each as dicts in an order of their own.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from support.streams import dealt
from tiebeam import dead_letters
from tiebeam.io._endless import ReadEndless
from tiebeam.rows import ROW_TIME, RowBatch, RowBatchCoder, timestamp_of
from tiebeam.transforms._fold import fact, mark

Rows = list[dict[str, Any]]
Inputs = list[RowBatch] | dict[str, list[RowBatch]]
Apply = beam.PTransform | Callable[[Any], Any]

CODER = RowBatchCoder()
FNAPI = ["--runner=FnApiRunner"]


class Outcome(NamedTuple):
    """The rows of a job, and its dead letters with those rows that left by the output `late`; dicts, in an order of their own."""

    rows: Rows
    letters: Rows


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


def save(rows: beam.PCollection, path: Path, label: str) -> None:
    """Writes the rows of a job to a file; `saved` reads it."""
    keyed = rows | f"Key {label}" >> beam.Map(lambda batch: (0, batch)).with_output_types(tuple[int, RowBatch])
    grouped = keyed | f"All {label}" >> beam.WindowInto(GlobalWindows()) | f"Group {label}" >> beam.GroupByKey()
    _ = grouped | f"Save {label}" >> beam.ParDo(_SaveFn(str(path)))


def saved(path: Path) -> Rows:
    """The rows in a file, none where there is no file."""
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


@dataclass(frozen=True)
class Trial:
    """A transform, or a function that applies one, and its inputs: a list of batches, or several by input name."""

    apply: Apply
    inputs: Inputs

    @property
    def named(self) -> dict[str, list[RowBatch]]:
        return self.inputs if isinstance(self.inputs, dict) else {"": self.inputs}

    def begun(self, given: dict[str, beam.PCollection]) -> Any:
        """What the transform is applied to."""
        return given if isinstance(self.inputs, dict) else given[""]


Begin = Callable[[beam.Pipeline, dict[str, Trial]], dict[str, dict[str, beam.PCollection]]]


def run(trials: dict[str, Trial], begin: Begin, flags: list[str]) -> dict[str, Outcome]:
    """Runs several trials in one job; gives the outcome of each."""
    with tempfile.TemporaryDirectory() as folder:
        letters: dict[str, list[Path]] = {}
        with beam.Pipeline(options=PipelineOptions([*flags, "--allow_unsafe_triggers"])) as p:  # all streams end here
            given = begin(p, trials)
            for name, trial in trials.items():
                letters[name] = _built(p, name, trial, given[name], Path(folder))
        return {
            name: Outcome(saved(Path(folder, name, "rows")), canonical([row for path in paths for row in saved(path)]))
            for name, paths in letters.items()
        }


def _built(p: beam.Pipeline, name: str, trial: Trial, given: dict[str, beam.PCollection], folder: Path) -> list[Path]:
    """Builds the branch of a trial; gives the places of its dead letters and late rows."""
    (folder / name).mkdir(parents=True)
    inputs, apply = trial.begun(given), trial.apply
    out = inputs | f"Apply {name}" >> apply if isinstance(apply, beam.PTransform) else apply(inputs)
    rows, late = out if isinstance(out, tuple) else (out, None)
    save(rows, folder / name / "rows", f"rows {name}")
    refused = [*dead_letters.claim(p), *([late] if late is not None else [])]
    paths = [folder / name / f"letters{i}" for i in range(len(refused))]
    for i, (letters, path) in enumerate(zip(refused, paths, strict=True)):
        save(letters, path, f"letters {i} {name}")
    return paths


def in_batch(apply: Apply, inputs: Inputs, *flags: str) -> Outcome:
    """As a bounded input, on FnApiRunner unless the flags say otherwise."""
    return run({"trial": Trial(apply, inputs)}, bounded, list(flags) or FNAPI)["trial"]


def in_ticks(apply: Apply, inputs: Inputs, flags: list[str], *, disorder: int = 0, seed: int = 0) -> Outcome:
    """As a stream by TestStream: rows come in order of time but for `disorder` microseconds, in pieces of random sizes."""
    return run({"trial": Trial(apply, inputs)}, streamed(disorder, seed), flags)["trial"]


def bounded(p: beam.Pipeline, trials: dict[str, Trial]) -> dict[str, dict[str, beam.PCollection]]:
    """The rows as bounded inputs."""

    def created(batches: list[RowBatch], label: str) -> beam.PCollection:
        return p | label >> beam.Create(batches, reshuffle=False).with_output_types(RowBatch)

    return {name: {n: created(rows, f"Create {name} {n}") for n, rows in trial.named.items()} for name, trial in trials.items()}


def streamed(disorder: int, seed: int) -> Begin:
    """The rows of all inputs as one TestStream, parted behind it: Prism loses rows of one with several outputs."""

    def begin(p: beam.Pipeline, trials: dict[str, Trial]) -> dict[str, dict[str, beam.PCollection]]:
        marked = {f"{name}/{n}": rows for name, trial in trials.items() for n, rows in trial.named.items()}
        stream = test_stream.TestStream(coder=CODER)
        for whose, batch, watermark in arrivals(marked, disorder, seed):
            stream = stream.add_elements([TimestampedValue(mark(batch, whose=whose), timestamp_of(batch))])
            stream = stream.advance_watermark_to(watermark) if watermark is not None else stream
        every = p | "Stream" >> stream.advance_watermark_to_infinity()
        return {name: {n: every | f"Part {name} {n}" >> _part(f"{name}/{n}") for n in trial.named} for name, trial in trials.items()}

    return begin


def endless(disorder: int, seed: int, poll_secs: float = 0.01) -> Begin:
    """The rows of each input dealt to three skewed partitions of a source that never ends."""

    def begin(p: beam.Pipeline, trials: dict[str, Trial]) -> dict[str, dict[str, beam.PCollection]]:
        def read(name: str, n: str, rows: list[RowBatch]) -> beam.PCollection:
            return p | f"Read {name} {n}" >> ReadEndless(dealt(rows, disorder=disorder, seed=seed), poll_secs=poll_secs)

        return {name: {n: read(name, n, rows) for n, rows in trial.named.items()} for name, trial in trials.items()}

    return begin


def _part(whose: str) -> beam.PTransform:
    def mine(batch: RowBatch) -> list[RowBatch]:
        return [batch.replace_schema_metadata()] if fact(batch, "whose") == whose else []

    return beam.FlatMap(mine).with_output_types(RowBatch)


def scripted(*events: RowBatch | float) -> Begin:
    """A stream told event by event: row batches, and moments (in seconds) that the watermark reaches; the same for every trial."""

    def begin(p: beam.Pipeline, trials: dict[str, Trial]) -> dict[str, dict[str, beam.PCollection]]:
        stream = test_stream.TestStream(coder=CODER)
        for event in events:
            if isinstance(event, RowBatch):
                stream = stream.add_elements([TimestampedValue(event, timestamp_of(event))])
            else:
                stream = stream.advance_watermark_to(event)
        rows = p | "Stream" >> stream.advance_watermark_to_infinity()
        rows.element_type = RowBatch
        return {name: {"": rows} for name in trials}

    return begin


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
