"""The coder of row batches with LZ4, zstd and without compression: batches through one GroupByKey on the local runner.

This decides what `tiebeam.rows.RowBatchCoder` does: docs/decisions/0003-row-batch-coder.md.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.json
from apache_beam import coders
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from benchmarks import comparing, events
from benchmarks.measuring import measure, python, say, show
from tiebeam.rows import MAX_BATCH_ROWS, RowBatch, RowBatchCoder, one_batch

MODES = ("in_memory", "multi_processing")
MOST = 2_000_000
BLOCK_BYTES = MAX_BATCH_ROWS * events.LINE_BYTES
SHARDS = 16


class Plain(RowBatchCoder):
    """Not compressed."""

    codec: str | None = None

    def encode(self, value: RowBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema, options=pa.ipc.IpcWriteOptions(compression=self.codec)) as stream:
            stream.write_batch(value)
        return sink.getvalue().to_pybytes()


class Lz4(Plain):
    codec = "lz4"


class Zstd(Plain):
    codec = "zstd"


CODERS = {"none": Plain, "lz4": Lz4, "zstd": Zstd}


def whole(batch: RowBatch) -> RowBatch:
    return batch


def numbers(batch: RowBatch) -> RowBatch:
    """What a shuffle of partial aggregates looks like: keys and numbers, little text."""
    return batch.select(["id", "amount", "category", "kind"])


SHAPES = {f.__name__: f for f in (whole, numbers)}


class _ReadFn(beam.DoFn):
    """Makes a batch of a block of the file, so that what is shuffled is the product of a step, as in a job."""

    def __init__(self, path: str, shape: str):
        self.path = path
        self.shape = shape

    def process(self, block):
        yield block % SHARDS, SHAPES[self.shape](read(self.path, block))


def read(path: str, block: int) -> RowBatch:
    with Path(path).open("rb") as file:
        file.seek(block * BLOCK_BYTES)
        return one_batch(pyarrow.json.read_json(pa.BufferReader(file.read(BLOCK_BYTES))))


def shuffle(codec: str, mode: str, shape: str, path: str) -> None:
    """Groups the batches of a file by shard, and counts the rows that come out."""
    coders.registry.register_coder(RowBatch, CODERS[codec])
    size = Path(path).stat().st_size
    options = PipelineOptions(["--direct_num_workers=2", f"--direct_running_mode={mode}"])
    with beam.Pipeline(runner="FnApiRunner", options=options) as p:
        blocks = p | beam.Create(list(range(-(-size // BLOCK_BYTES)))) | beam.Reshuffle()
        keyed = blocks | beam.ParDo(_ReadFn(path, shape)).with_output_types(tuple[int, RowBatch])
        rows = keyed | beam.GroupByKey() | beam.Map(lambda group: sum(batch.num_rows for batch in group[1]))
        assert_that(rows | beam.CombineGlobally(sum), equal_to([size // events.LINE_BYTES]))


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints seconds by shape, mode and codec."""
    path = comparing.events_file(min(max(sizes), MOST))
    rows = []
    for shape in SHAPES:
        sizes_mb = {codec: len(kind().encode(SHAPES[shape](read(str(path), 0)))) / 1e6 for codec, kind in CODERS.items()}
        for mode in MODES:
            base = 0.0
            for codec in CODERS:
                say(f"coder: {shape}, {mode}, {codec}")
                cost = measure(python("benchmarks.coder", codec, mode, shape, path), times)
                base = base or cost.secs
                seconds = [f"{figure:.2f}" for figure in (cost.secs, cost.secs / base, cost.cpu_secs)]
                rows.append([f"{shape}, {mode}, {codec}", *seconds, f"{sizes_mb[codec]:.1f}", f"{cost.peak_mb:.0f}"])
    title = f"Batches through one GroupByKey, {path.stat().st_size // events.LINE_BYTES:,} events"
    show(title, ["", "seconds", "of none's", "CPU seconds", "MB a batch", "peak MB"], rows, "coder" if save else None)


if __name__ == "__main__":
    # not as __main__: workers must be able to import the coder
    importlib.import_module("benchmarks.coder").shuffle(*sys.argv[1:])
