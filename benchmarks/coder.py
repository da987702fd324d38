"""What compression between workers costs and gains: `python -m benchmarks.coder`, from the root of the repository.

Shuffles batches through FnApiRunner with each codec, on text-like events and on random numbers; prints processor seconds,
best of four, which unlike wall-clock seconds do not depend on what else the machine does.
"""

from __future__ import annotations

import builtins
import logging
import time

import apache_beam as beam
import numpy as np
import pyarrow as pa

from tiebeam import rows
from tiebeam.rows import RowBatch

ROWS = 65_536
BATCHES = 32
CODECS = (None, "lz4", "zstd")


def events() -> RowBatch:
    random = np.random.default_rng(1)
    seconds = np.sort(random.integers(0, 3_600_000_000, ROWS)) + 1_764_000_000_000_000
    return RowBatch.from_pydict(
        {
            "row_time": pa.array(seconds, pa.timestamp("us", tz="UTC")),
            "row_position": [f"in/events.jsonl:{i * 208}" for i in range(ROWS)],
            "user": [f"user-{i:06d}" for i in random.integers(0, 200_000, ROWS)],
            "category": random.choice(["book", "toy", "food", "garden"], ROWS),
            "url": [f"https://shop.example/{i}/item" for i in random.integers(0, 10_000, ROWS)],
            "amount": random.random(ROWS) * 100,
        }
    )


def numbers() -> RowBatch:
    random = np.random.default_rng(1)
    return RowBatch.from_pydict({name: random.random(ROWS * 4) for name in "abc"})


def shuffled(batch: RowBatch, codec: str | None) -> float:
    """The processor seconds of one job that shuffles a batch many times."""
    rows._LZ4 = pa.ipc.IpcWriteOptions(compression=codec)
    builtins.shuffled_batch = batch  # type: ignore[attr-defined]  # out of the pickle of the step

    def give(_: int) -> RowBatch:
        return builtins.shuffled_batch  # type: ignore[attr-defined]

    started = time.process_time()
    with beam.Pipeline(runner="FnApiRunner") as p:
        made = p | beam.Create(range(BATCHES)) | beam.Map(give).with_output_types(RowBatch)
        made | beam.Reshuffle() | beam.Map(lambda b: b.num_rows) | beam.CombineGlobally(sum)
    return time.process_time() - started


def main() -> None:
    logging.disable(logging.WARNING)
    for name, batch in (("events", events()), ("random numbers", numbers())):
        best = dict.fromkeys(CODECS, float("inf"))
        for _ in range(4):
            for codec in CODECS:
                best[codec] = min(best[codec], shuffled(batch, codec))
        told = ", ".join(f"{codec or 'none'} {secs:.2f} s" for codec, secs in best.items())
        print(f"shuffle of {BATCHES * batch.nbytes / 1e6:.0f} MB of {name}: {told}", flush=True)


if __name__ == "__main__":
    main()
