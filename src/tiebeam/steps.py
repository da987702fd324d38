"""What every step over batches shares: it counts its rows, and it sorts rejected rows from good ones.

Counts and gauges go to Beam's metrics (namespace `tiebeam`, docs/metrics.md), which any runner reports, and to a tally
of this process, which a local run shows while it works.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics import Metrics

from tiebeam.dead_letters import REJECTED, Letters, route
from tiebeam.rows import RowBatch

NAMESPACE = "tiebeam"
BY_STEP = "tiebeam_step"
"""A second namespace, where a name says the step too: Flink runs several steps as one, and keeps one metric of each name."""
ROWS_IN, ROWS_OUT, ROWS_REJECTED, BYTES_IN = "rows_in", "rows_out", "rows_rejected", "bytes_in"

_lock = threading.Lock()
_tally: Counter[tuple[str, str]] = Counter()
_gauges: dict[tuple[str, str], int] = {}


def count(step: str, name: str, amount: int) -> None:
    """Adds to a step's metric; inside a bundle only."""
    if amount:
        Metrics.counter(NAMESPACE, name).inc(amount)
        Metrics.counter(BY_STEP, f"{name} {step}").inc(amount)
        with _lock:
            _tally[step, name] += amount


def tally() -> dict[tuple[str, str], int]:
    """What this process has counted so far, by (step, metric): live, and too high after a retry."""
    with _lock:
        return dict(_tally)


def gauge(step: str, name: str, value: int) -> None:
    """Sets what a step reads off now: how far it lags, how far its watermark is; inside a bundle only."""
    Metrics.gauge(NAMESPACE, name).set(value)
    with _lock:
        _gauges[step, name] = value


def gauges() -> dict[tuple[str, str], int]:
    """What the steps of this process have read off last."""
    with _lock:
        return dict(_gauges)


def reset_tally() -> None:
    with _lock:
        _tally.clear()
        _gauges.clear()


class BatchFn(beam.DoFn):
    """Base of our DoFns: override `apply`, yield row batches, and `Letters` for rows that must not go on."""

    def __init__(self, step: str):
        self.step = step

    def apply(self, element: Any, *side_inputs: Any) -> Iterable[RowBatch | Letters]:
        raise NotImplementedError

    def process(self, element, *side_inputs):  # Beam reads annotations as type hints, and knows none for `*`
        if isinstance(element, RowBatch):
            count(self.step, ROWS_IN, element.num_rows)
        yield from self.emit(self.apply(element, *side_inputs))

    def emit(self, results: Iterable[RowBatch | Letters] | None) -> Iterator[Any]:
        for result in results or ():
            if isinstance(result, Letters):
                count(self.step, ROWS_REJECTED, result.batch.num_rows)
                yield pvalue.TaggedOutput(REJECTED, result.batch)
            elif result.num_rows:
                count(self.step, ROWS_OUT, result.num_rows)
                yield result


def apply_batches(pcoll: Any, label: str, fn: BatchFn, *side_inputs: Any) -> Any:
    """Applies a `BatchFn` and returns its rows; its rejected rows are handed to the pipeline's dead letters."""
    return route(pcoll | label >> beam.ParDo(fn, *side_inputs).with_output_types(RowBatch).with_outputs(REJECTED, main="rows"))
