"""Dead letters: rows that a step or a sink refused, kept whole so that they can be replayed.

One schema for every step and sink. `original` holds the bytes as the source delivered them (`original_format` says
which: `json`, `csv`, …), or, once a row was typed, the row itself as an Arrow IPC stream (`arrow`).

A step hands its rejected rows to `route`. What then happens to them is decided once per pipeline: a `Delivery`
(tiebeam.delivery) or a sink downstream claims them and writes them to a store. If nobody does, the first one
stops the pipeline with `NowhereToGoError`: dead letters are never dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa

from tiebeam.errors import NowhereToGoError
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch

REJECTED = "rejected"

_DIGESTS = 1 << 62  # Beam's integers have 64 bits, signed

SCHEMA = pa.schema(
    [
        ("step", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("original", pa.binary()),
        ("original_format", pa.string()),
        ("source", pa.string()),
        (ROW_POSITION, pa.string()),
        ("attempt", pa.int32()),
        (ROW_TIME, pa.timestamp("us", tz="UTC")),
        ("failed_at", pa.timestamp("us", tz="UTC")),
        ("pipeline", pa.string()),
        ("pipeline_version", pa.string()),
        ("run_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Letters:
    """Rows that must not go on: a batch of `SCHEMA`, told apart from good rows by this wrapper."""

    batch: RowBatch


def letters(
    step: str,
    reasons: str | Sequence[str],
    details: Sequence[str],
    originals: Sequence[bytes],
    original_format: str,
    *,
    source: str | None = None,
    positions: Sequence[str | None] | None = None,
    times: Any = None,
) -> Letters:
    """Makes dead letters of rows that were never parsed, one per original.

    `reasons` are short stable words (`malformed`, `too_long`), one for all or one each; `details` are for people.
    """
    n = len(originals)

    def same(value: Any) -> list[Any]:
        return [value] * n

    return Letters(
        RowBatch.from_arrays(
            [
                pa.array(same(step), pa.string()),
                pa.array(same(reasons) if isinstance(reasons, str) else reasons, pa.string()),
                pa.array(details, pa.string()),
                pa.array(originals, pa.binary()),
                pa.array(same(original_format), pa.string()),
                pa.array(same(source), pa.string()),
                pa.array(positions if positions is not None else same(None), pa.string()),
                pa.array(same(1), pa.int32()),
                pa.array(times if times is not None else same(None), SCHEMA.field(ROW_TIME).type),
                pa.array(same(datetime.now(UTC)), SCHEMA.field("failed_at").type),
                pa.nulls(n, pa.string()),
                pa.nulls(n, pa.string()),
                pa.nulls(n, pa.string()),
            ],
            schema=SCHEMA,
        )
    )


def letters_of_rows(step: str, rows: RowBatch, reasons: str | Sequence[str], details: Sequence[str]) -> Letters:
    """Makes dead letters of typed rows, one per row of `rows`; each original is that row as an Arrow IPC stream."""
    originals = []
    for i in range(rows.num_rows):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_batch(rows.slice(i, 1))
        originals.append(sink.getvalue().to_pybytes())
    names = rows.schema.names
    return letters(
        step,
        reasons,
        details,
        originals,
        "arrow",
        positions=rows.column(ROW_POSITION) if ROW_POSITION in names else None,
        times=rows.column(ROW_TIME) if ROW_TIME in names else None,
    )


class _StopUnlessClaimedFn(beam.DoFn):
    """Stops the pipeline at the first dead letter, unless something has claimed this output at construction."""

    def __init__(self):
        self.claimed = False

    def process(self, batch):
        if not self.claimed and batch.num_rows:
            first = batch.slice(0, 1).to_pylist()[0]
            raise NowhereToGoError(
                f"step {first['step']!r} rejected {batch.num_rows} row(s), the first as {first['reason']!r}: "
                f"{first['detail']} (at {first['row_position']}). Nothing in this pipeline keeps dead letters: write "
                "its rows with a tiebeam sink, or build it inside `with Delivery(p, dead_letters='rejected/')`."
            )


@dataclass(eq=False)
class _Unclaimed:
    letters: beam.PCollection
    guard: _StopUnlessClaimedFn


def _waiting(pipeline: beam.Pipeline) -> list[_Unclaimed]:
    # On the pipeline itself: a weak dictionary would never let go, as its values lead back to its keys.
    return vars(pipeline).setdefault("_tiebeam_dead_letters", [])


def route(outputs: Any) -> beam.PCollection:
    """Takes the outputs of a step (`rows` and `rejected`), keeps the rejected for whoever claims them, returns the rows."""
    guarded = _guard(outputs)
    _waiting(guarded.letters.pipeline).append(guarded)
    return outputs.rows


def route_nowhere(outputs: Any) -> beam.PCollection:
    """Takes the outputs of a step behind which nothing can keep dead letters: its first one stops the pipeline."""
    _guard(outputs)
    return outputs.rows


def _guard(outputs: Any) -> _Unclaimed:
    rejected = outputs[REJECTED]
    rejected.element_type = RowBatch
    guard = _StopUnlessClaimedFn()
    step = rejected.producer.parent.full_label.rsplit("/", 1)[-1]
    rejected | f"{step}: dead letters have a place" >> beam.ParDo(guard).with_output_types(int)
    return _Unclaimed(rejected, guard)


def claim(pipeline: beam.Pipeline, upstream_of: beam.PCollection | None = None) -> list[beam.PCollection]:
    """Takes over the dead letters nobody has claimed yet: of the whole pipeline, or of the steps upstream of a PCollection."""
    waiting = _waiting(pipeline)
    reach = None if upstream_of is None else _producers(upstream_of)
    taken = [u for u in waiting if reach is None or u.letters.producer in reach]
    for u in taken:
        waiting.remove(u)
        u.guard.claimed = True
    return [u.letters for u in taken]


def unclaimed(pipeline: beam.Pipeline) -> list[beam.PCollection]:
    """The dead letters of a pipeline that nobody has claimed yet."""
    return [u.letters for u in _waiting(pipeline)]


def _producers(pcoll: beam.PCollection) -> set[Any]:
    seen: set[Any] = set()
    front = [pcoll.producer]
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.parent is not None and node.parent.outputs:  # finished, so it counts as a whole; not so what is still being built
            front.append(node.parent)
        front.extend(node.parts)
        inputs = list(node.inputs) + [side.pvalue for side in node.side_inputs]
        front.extend(i.producer for i in inputs if isinstance(i, beam.PCollection))
    return seen


def digest(letters: RowBatch) -> int:
    """A number for the letters as a set: what they are, not when they failed."""
    columns = [letters.column(name).to_pylist() for name in ("step", "reason", ROW_POSITION, "original")]
    sums = (hashlib.blake2b(repr(letter).encode(), digest_size=8).digest() for letter in zip(*columns, strict=True))
    return sum(int.from_bytes(s, "big") for s in sums) % _DIGESTS


class NameFn(beam.CombineFn):
    """Adds up digests, in any order, and names the publication."""

    def __init__(self, run_id: str):
        self.run_id = run_id

    def create_accumulator(self) -> int:
        return 0

    def add_input(self, total: int, digest: int) -> int:
        return (total + digest) % _DIGESTS

    def merge_accumulators(self, totals: Iterable[int]) -> int:
        return sum(totals) % _DIGESTS

    def extract_output(self, total: int) -> str:
        return f"{self.run_id}-{total:016x}"
