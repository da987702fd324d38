"""Spilling: rows are grouped by shard without being kept in memory, on the one runner that would keep them.

FnApiRunner holds in memory all that goes through a GroupByKey. So there, rows that are many are written to files, and what goes
through the GroupByKey are references to them. A shard that is large is parted further by the hash of its keys, and given on
part by part: rows with equal keys stay together. Other runners spill by themselves. Why it is built so: docs/decisions/0006-spilling.md.
"""

from __future__ import annotations

import shutil
import uuid
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import apache_beam as beam
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from tiebeam.rows import RowBatch, RowBatchCoder
from tiebeam.transforms._fold import fact, mark, tables_of
from tiebeam.transforms._shards import split

GATHERED_BYTES = 32 << 20
"""How much waits in memory to be written at once."""
PART_BYTES = 16 << 20
"""How much of a shard is given on at once, unless one key has more."""
MOST_PARTS = 64

_CODER = RowBatchCoder()
_REFERENCES = "references"
_BITS = 1 << 48


class GroupByShard(beam.PTransform):
    """Groups marked rows by their shard; each group is a shard, or a part of one that has all the rows of its keys.

    In: a tuple of PCollections of `(shard, rows)`, bounded, in the global window; rows are marked with a name in `keys`.
    Out: `(shard, iterable of marked rows)`.
    State: on FnApiRunner files in the pipeline's temporary folder, which Beam removes when the run is over, also when it fails.
    """

    def __init__(self, keys: Mapping[str, tuple[str, ...]], shards: int):
        super().__init__()
        self.keys = keys
        self.shards = shards

    def expand(self, sharded: tuple[beam.PCollection, ...]) -> beam.PCollection:
        pipeline = sharded[0].pipeline
        if type(pipeline.runner).__name__ != "FnApiRunner":
            return _grouped(sharded)
        folder = str(Path(pipeline.local_tempdir, "tiebeam-spill"))
        weakref.finalize(pipeline, shutil.rmtree, folder, ignore_errors=True)  # Beam removes nothing in notebooks
        gather = beam.ParDo(_GatherFn(folder, GATHERED_BYTES)).with_output_types(tuple[int, RowBatch])
        part = beam.ParDo(_PartFn(self.keys, self.shards, folder, GATHERED_BYTES, PART_BYTES))
        gathered = tuple(rows | f"Gather {i}" >> gather for i, rows in enumerate(sharded))  # a Flatten would keep them in memory too
        return _grouped(gathered) | "Part" >> part.with_output_types(tuple[int, Iterable[RowBatch]])


def _grouped(sharded: tuple[beam.PCollection, ...]) -> beam.PCollection:
    together = sharded[0] if len(sharded) == 1 else sharded | "Together" >> beam.Flatten()
    return together | beam.GroupByKey()


class _GatherFn(beam.DoFn):
    """Gathers the rows of a bundle by shard, in a file when they are many. Each attempt at a bundle has a file of its own."""

    def __init__(self, folder: str, most: int):
        self.folder = folder
        self.most = most

    def start_bundle(self) -> None:
        self._parts = Parts(self.folder, self.most)

    def process(self, element: tuple[int, RowBatch]) -> None:
        self._parts.add(*element)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for shard, pieces in self._parts.close():
            for piece in pieces:
                yield WindowedValue((shard, piece), MIN_TIMESTAMP, (GlobalWindow(),))


class _PartFn(beam.DoFn):
    """Gives on a shard in parts that are small, each with all the rows of its keys."""

    def __init__(self, keys: Mapping[str, tuple[str, ...]], shards: int, folder: str, most: int, part_bytes: int):
        self.keys = keys
        self.shards = shards
        self.folder = folder
        self.most = most
        self.part_bytes = part_bytes

    def process(self, element: tuple[int, Iterable[RowBatch]]) -> Iterator[tuple[int, Iterable[RowBatch]]]:
        shard, pieces = element
        for part in self._parted(Part(list(pieces)), self.shards):
            yield shard, part

    def _parted(self, whole: Part, taken: int) -> Iterator[Part]:
        """Parts by what the hash says beyond the `taken` parts that it told apart already."""
        if whole.nbytes <= self.part_bytes or taken > _BITS:
            yield whole
            return
        number = min(MOST_PARTS, 2 * whole.nbytes // self.part_bytes + 1)
        parts = Parts(self.folder, self.most)
        try:
            for rows in whole:
                for place, some in split(rows, self.keys[fact(rows, "name")], number, taken):
                    parts.add(place, some)
            for _, pieces in parts.close():
                part = Part(pieces)
                if 2 * part.nbytes > whole.nbytes:  # the rows of one key, or nearly
                    yield part
                else:
                    yield from self._parted(part, taken * number)
        finally:
            parts.remove()


class Part:
    """Marked rows, and references to such in files, which are read whenever they are asked for."""

    def __init__(self, pieces: list[RowBatch]):
        self.pieces = pieces
        self.nbytes = sum(pc.sum(p.column("bytes")).as_py() if _refers(p) else p.nbytes for p in pieces)

    def __iter__(self) -> Iterator[RowBatch]:
        for piece in self.pieces:
            if _refers(piece):
                yield from _read(piece)
            else:
                yield piece


def _refers(piece: RowBatch) -> bool:
    return fact(piece, "name") == _REFERENCES


def _read(references: RowBatch) -> Iterator[RowBatch]:
    with Path(fact(references, "path")).open("rb") as file:
        for start, size in zip(references["start"].to_pylist(), references["size"].to_pylist(), strict=True):
            file.seek(start)
            yield _CODER.decode(file.read(size))


class Parts:
    """Marked rows by the number of their part. They wait until they are many; then they are written behind one another to a file."""

    def __init__(self, folder: str, most: int):
        self.path = Path(folder, uuid.uuid4().hex)
        self.most = most
        self._waiting: dict[int, list[RowBatch]] = defaultdict(list)
        self._waiting_bytes = 0
        self._written: dict[int, list[dict[str, int]]] = defaultdict(list)

    def add(self, part: int, rows: RowBatch) -> None:
        self._waiting[part].append(rows)
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes > self.most:
            self._write()

    def close(self) -> Iterator[tuple[int, list[RowBatch]]]:
        """The parts that have rows: the rows themselves while they are few, and references when they are many."""
        if not self._written:
            for part in list(self._waiting):
                yield part, list(_joined(self._waiting.pop(part)))
            return
        self._write()
        for part, written in self._written.items():
            yield part, [mark(RowBatch.from_pylist(written), name=_REFERENCES, path=str(self.path))]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            while self._waiting:
                part, waiting = self._waiting.popitem()
                for rows in _joined(waiting):
                    encoded = _CODER.encode(rows)
                    self._written[part].append({"start": file.tell(), "size": file.write(encoded), "bytes": rows.nbytes})
        self._waiting_bytes = 0

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _joined(pieces: list[RowBatch]) -> Iterator[RowBatch]:
    for name, rows in tables_of(pieces).items():
        yield mark(rows, name=name)
