"""The coder of row batches with LZ4, zstd and without compression: batches through one GroupByKey on the local runner.

This decides what `tiebeam.rows.RowBatchCoder` does: docs/decisions/0003-row-batch-coder.md.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute
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
REPEATS = 15


class Plain(RowBatchCoder):
    """Not compressed. Without Arrow's threads: handing a buffer to one costs more than compressing it."""

    codec: str | None = None

    def encode(self, value: RowBatch) -> bytes:
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=self.codec, use_threads=False)
        with pa.ipc.new_stream(sink, value.schema, options=options) as stream:
            stream.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> RowBatch:
        return pa.ipc.open_stream(pa.py_buffer(encoded), options=pa.ipc.IpcReadOptions(use_threads=False)).read_next_batch()


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


def noise(batch: RowBatch) -> RowBatch:
    """The worst for a codec: random identifiers and random numbers, nothing in common."""
    random = np.random.default_rng(batch.num_rows)
    text = np.frombuffer(b"0123456789abcdef", np.uint8)[random.integers(0, 16, 32 * batch.num_rows)]
    offsets = np.arange(0, len(text) + 1, 32, dtype=np.int32)
    ids = pa.StringArray.from_buffers(batch.num_rows, pa.py_buffer(offsets), pa.py_buffer(text))
    values = {f"value_{i}": pa.array(random.random(batch.num_rows)) for i in range(4)}
    return RowBatch.from_pydict({"id": ids, **values})


SHAPES = {f.__name__: f for f in (whole, numbers, noise)}


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
    """Prints what one batch costs by codec, then what a shuffle costs."""
    path = comparing.events_file(min(max(sizes), MOST))
    alone = [_alone(shape, codec, SHAPES[shape](read(str(path), 0))) for shape in SHAPES for codec in CODERS]
    header = ["", "MB encoded", "encode ms", "decode ms"]
    show(f"One batch of {MAX_BATCH_ROWS:,} rows", header, alone, "coder_batch" if save else None)
    rows = []
    for shape, mode in itertools.product(SHAPES, MODES):
        costs = {}
        for codec in CODERS:
            say(f"coder: {shape}, {mode}, {codec}")
            costs[codec] = measure(python("benchmarks.coder", codec, mode, shape, path), times)
        for codec, cost in costs.items():
            seconds = [f"{figure:.2f}" for figure in (cost.secs, cost.secs / costs["none"].secs, cost.cpu_secs)]
            rows.append([f"{shape}, {mode}, {codec}", *seconds, f"{cost.peak_mb:.0f}"])
    title = f"Batches through one GroupByKey, {path.stat().st_size // events.LINE_BYTES:,} events"
    show(title, ["", "seconds", "of none's", "CPU seconds", "peak MB"], rows, "coder" if save else None)


def _alone(shape: str, codec: str, batch: RowBatch) -> list[str]:
    coder = CODERS[codec]()
    encoded = coder.encode(batch)
    encode = min(_cpu_secs(lambda: coder.encode(batch)) for _ in range(REPEATS))
    decode = min(_cpu_secs(lambda: pa.compute.count(coder.decode(encoded).column(0))) for _ in range(REPEATS))
    return [f"{shape}, {codec}", f"{len(encoded) / 1e6:.1f}", f"{encode * 1e3:.1f}", f"{decode * 1e3:.1f}"]


def _cpu_secs(work: Callable[[], object]) -> float:
    """Processor time of all threads: Arrow compresses with several."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


if __name__ == "__main__":
    # not as __main__: workers must be able to import the coder
    importlib.import_module("benchmarks.coder").shuffle(*sys.argv[1:])
