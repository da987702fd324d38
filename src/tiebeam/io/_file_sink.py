"""The writing half of every file format: a table is a folder of files, described by a manifest.

A format gives two things: `extension`, and an `Encoder` that writes batches of one schema to one stream. Everything else
is here: Hive partitions, rolling files at a size, checksums, column ranges, staging and (in `_publication`) publishing.

    <path>/k=v/<run>-00000.parquet    the rows
    <path>/_manifest/…                which files are the table: readers that follow it see whole runs only
    <path>/_staging/<run>/…           what a run has written so far; gone once it is published
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, ClassVar, cast

import pyarrow as pa

from tiebeam.connectors import Sink
from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, Problem
from tiebeam.io._folder import Folder, folder_at
from tiebeam.io._hive import Partition, by_partition
from tiebeam.io._manifest import committed_files, committed_runs
from tiebeam.io._publication import STAGED, discard, publish, published, retire, staging_of
from tiebeam.io._ranges import Ranges
from tiebeam.options import option
from tiebeam.rows import RowBatch, concat
from tiebeam.staging import Staged

MAX_OPEN_FILES = 64
MAX_HELD_BYTES = 256 << 20
GATHERED_BYTES = 4 << 20

_Key = tuple[str, pa.Schema]


class Encoder:
    """Writes batches of one schema in one format to one stream."""

    held_bytes: int = 0
    """The size of the rows taken that are not in the stream yet."""

    def write(self, batch: RowBatch) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Hands what is held to the stream, to free memory."""

    def close(self) -> None:
        """Hands everything to the stream, with what the format wants at its end. The stream stays open."""


class FileSink(Sink):
    """Writes rows as files of one format into the folder of a table; the base of every file sink."""

    modes: ClassVar[tuple[str, ...]] = ("append", "replace", "replace_partitions")
    takes_unbounded: ClassVar[bool] = True
    tells_runs: ClassVar[bool] = True
    extension: ClassVar[str]
    also_ours: ClassVar[tuple[str, ...]] = ()
    """Other extensions of the format: such files are part of a table that has no manifest yet."""

    path: str = option(help="Folder of the table", example="out/", place="folder")
    mode: str = option("append", help="Add to the table, replace it, or replace the partitions that get rows", choices=modes)
    partition_by: tuple[str, ...] = option(
        (), help="Columns whose values become Hive folders, and are left out of the files", example="day,shop"
    )
    target_file_bytes: int = option(256 << 20, help="Size at which a new file is begun", unit="bytes", low=1)

    def check(self) -> Iterable[Problem]:
        if not self.path.strip():
            yield Problem("no folder given", "path", "give the folder of the table")
        if self.mode == "replace_partitions" and not self.partition_by:
            yield Problem("replace_partitions without partitions", "mode", "set partition_by, or use mode=replace")
        if len(set(self.partition_by)) < len(self.partition_by):
            yield Problem("a column is named twice", "partition_by", "name each column once")

    def encoder(self, stream: BinaryIO, schema: pa.Schema) -> Encoder:
        """Opens an encoder; raises ConfigError naming the column when the format cannot hold the schema."""
        raise NotImplementedError

    def suffix(self) -> str:
        """The end of file names; override where compression is part of it."""
        return f".{self.extension}"

    def location(self) -> str:
        return self.path.rstrip("/") or "/"

    def ping(self) -> None:
        try:
            trouble = folder_at(self.path).trouble()
        except ValueError as e:
            trouble = str(e)
        if trouble:
            raise ConfigError(Problem(trouble, self.path, "choose a folder that this user can write to"))

    def writer(self, run_id: str) -> _FileWriter:
        return _FileWriter(self, run_id)

    def publish(self, run_id: str, staged: list[Staged]) -> bool:
        return publish(folder_at(self.path), run_id, self.mode, staged, self.suffix(), (self.extension, *self.also_ours))

    def is_published(self, run_id: str) -> bool:
        return run_id in committed_runs(self.path)

    def runs(self, prefix: str) -> list[str]:
        return [run_id for run_id in published(folder_at(self.path)) if run_id.startswith(prefix)]

    def discard(self, run_id: str) -> None:
        with contextlib.suppress(Exception):
            discard(folder_at(self.path), run_id)

    def files(self) -> list[str]:
        """Paths of the files of the table, none when it was never written."""
        return committed_files(self.path) or []

    def retire(self, run_id: str, files: list[str]) -> None:
        """Takes files out of the table, in one step under the name of a run, and removes them; idempotent."""
        retire(folder_at(self.path), run_id, files)


class _FileWriter:
    """Gathers rows per partition and schema, and writes each gathering to the file of its partition.

    So a bundle that touches a thousand partitions writes a thousand files and not one per partition and batch. Files stay open
    until they are full; the least recently used is closed when there are too many.
    """

    def __init__(self, sink: FileSink, run_id: str):
        self.sink = sink
        self.folder = folder_at(sink.path)
        self.staging = staging_of(run_id)
        self.schemas: set[pa.Schema] = set()
        self.gathered: dict[_Key, _Gathering] = {}
        self.open: OrderedDict[_Key, _StagedFile] = OrderedDict()
        self.names: list[str] = []
        self.done: list[Staged] = []

    def write(self, batch: RowBatch) -> list[Letters]:
        good = [(Partition("", {}), batch)]
        refused: list[Letters] = []
        if self.sink.partition_by:
            good, refused = by_partition(batch, self.sink.partition_by, self.sink.label)
        for partition, rows in good:
            key = (partition.folder, rows.schema)
            if rows.schema not in self.schemas:
                self.sink.encoder(io.BytesIO(), rows.schema)  # a schema that the format cannot hold is refused at once
                self.schemas.add(rows.schema)
            gathering = self.gathered.setdefault(key, _Gathering(partition))
            gathering.add(rows)
            if gathering.bytes >= min(GATHERED_BYTES, self.sink.target_file_bytes):
                self._hand_over(key)
        self._bound_memory()
        return refused

    def _bound_memory(self) -> None:
        while self.held_bytes() > MAX_HELD_BYTES:
            largest = max(self.gathered, key=lambda key: self.gathered[key].bytes, default=None)
            fullest = max(self.open.values(), key=lambda file: file.encoder.held_bytes, default=None)
            if largest and (not fullest or self.gathered[largest].bytes >= fullest.encoder.held_bytes):
                self._hand_over(largest)
            elif fullest:
                with fullest.named():
                    fullest.encoder.flush()

    def held_bytes(self) -> int:
        """The size of the rows that are in no file yet."""
        return sum(g.bytes for g in self.gathered.values()) + sum(file.encoder.held_bytes for file in self.open.values())

    def _hand_over(self, key: _Key) -> None:
        gathering = self.gathered.pop(key)
        file = self.open.get(key) or self._begin(key, gathering.partition)
        self.open.move_to_end(key)
        with file.named():
            file.write(concat(gathering.batches))
        if file.size >= self.sink.target_file_bytes:
            self._end(key)

    def close(self) -> list[Staged]:
        try:
            for key in list(self.gathered):
                self._hand_over(key)
                if key in self.open:
                    self._end(key)
            while self.open:
                self._end(next(iter(self.open)))
            self.folder.sync(self.names)
        except BaseException:
            self.abort()
            raise
        return self.done

    def abort(self) -> None:
        for file in self.open.values():
            with contextlib.suppress(Exception):
                file.stream.discard()
        self.open.clear()
        self.gathered.clear()
        with contextlib.suppress(Exception):
            self.folder.remove(self.names)

    def _begin(self, key: _Key, partition: Partition) -> _StagedFile:
        if len(self.open) >= MAX_OPEN_FILES:
            self._end(next(iter(self.open)))
        handle = f"{len(self.names):05}-{uuid.uuid4().hex}"  # files are numbered in this order
        name = f"{self.staging}/{handle}{STAGED}"
        self.names.append(name)
        self.open[key] = _StagedFile(handle, self.folder, name, self.sink, partition, key[1])
        return self.open[key]

    def _end(self, key: _Key) -> None:
        file = self.open[key]
        with file.named():
            self.done.append(file.end())
        del self.open[key]


class _Gathering:
    """Rows of one partition and schema that wait to be written together."""

    def __init__(self, partition: Partition):
        self.partition = partition
        self.batches: list[RowBatch] = []
        self.bytes = 0

    def add(self, rows: RowBatch) -> None:
        self.batches.append(rows)
        self.bytes += rows.nbytes


class _StagedFile:
    """One file being written, and what the manifest will say of it."""

    def __init__(self, handle: str, folder: Folder, name: str, sink: FileSink, partition: Partition, schema: pa.Schema):
        self.handle = handle
        self.folder = folder
        self.path = folder.path(name)
        self.partition = partition
        self.schema = schema
        self.rows = 0
        self.ranges = Ranges()
        with self.named():
            self.stream = _SummedStream(folder.open(name))
        try:
            self.encoder = sink.encoder(cast(BinaryIO, self.stream), schema)
        except BaseException:
            self.stream.discard()
            raise

    @property
    def size(self) -> int:
        return self.stream.written + self.encoder.held_bytes

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Names the file in an error of the file system, which does not: a full disk, a quota."""
        try:
            yield
        except OSError as e:
            if e.errno is None or e.filename is not None:
                raise
            raise OSError(e.errno, e.strerror, self.path) from e

    def write(self, batch: RowBatch) -> None:
        self.encoder.write(batch)
        self.rows += batch.num_rows
        self.ranges.add(batch)

    def end(self) -> Staged:
        self.encoder.close()
        self.folder.seal(self.stream.raw)
        low, high = self.ranges.result()
        facts = {
            "folder": self.partition.folder,
            "sha256": self.stream.sum.hexdigest(),
            "columns": {field.name: str(field.type) for field in self.schema},
            "min": low,
            "max": high,
            "partition": self.partition.values,
        }
        return Staged(self.handle, self.rows, self.stream.written, facts)


class _SummedStream(io.RawIOBase):
    """Passes bytes on, and knows how many there were and their SHA-256. Closing it leaves the file below open."""

    def __init__(self, raw: BinaryIO):
        self.raw = raw
        self.written = 0
        self.sum = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.raw.write(view)
        self.sum.update(view)
        self.written += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.written

    def discard(self) -> None:
        """Gives the file up: what an encoder still writes while it is taken down goes nowhere."""
        raw, self.raw = self.raw, io.BytesIO()
        getattr(raw, "terminate", raw.close)()
