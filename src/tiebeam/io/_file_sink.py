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
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa

from tiebeam.connectors import Sink, Staged
from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, Problem
from tiebeam.io._folder import Folder, folder_at
from tiebeam.io._hive import Partition, by_partition
from tiebeam.io._manifest import committed_files
from tiebeam.io._publication import STAGED, discard, publish, retire, staging_of
from tiebeam.io._ranges import Ranges
from tiebeam.options import option
from tiebeam.rows import RowBatch

MAX_OPEN_FILES = 64
MAX_HELD_BYTES = 256 << 20


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
    extension: ClassVar[str]
    also_ours: ClassVar[tuple[str, ...]] = ()
    """Other extensions of the format: such files are part of a table that has no manifest yet."""

    path: str = option(help="Folder of the table", example="out/")
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
    """Keeps a file open per partition and schema, the least recently used closed first when there are too many."""

    def __init__(self, sink: FileSink, run_id: str):
        self.sink = sink
        self.folder = folder_at(sink.path)
        self.staging = staging_of(run_id)
        self.open: OrderedDict[tuple[str, pa.Schema], _StagedFile] = OrderedDict()
        self.names: list[str] = []
        self.done: list[Staged] = []

    def write(self, batch: RowBatch) -> list[Letters]:
        good, refused = [(Partition("", {}), batch)], []
        if self.sink.partition_by:
            good, refused = by_partition(batch, self.sink.partition_by, self.sink.label)
        for partition, rows in good:
            key = (partition.folder, rows.schema)
            file = self.open.get(key) or self._begin(key, partition)
            self.open.move_to_end(key)
            with file.named():
                file.write(rows)
            if file.size >= self.sink.target_file_bytes:
                self._end(key)
        while sum(file.encoder.held_bytes for file in self.open.values()) > MAX_HELD_BYTES:
            fullest = max(self.open.values(), key=lambda file: file.encoder.held_bytes)
            with fullest.named():
                fullest.encoder.flush()
        return refused

    def close(self) -> list[Staged]:
        try:
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
        with contextlib.suppress(Exception):
            self.folder.remove(self.names)

    def _begin(self, key: tuple[str, pa.Schema], partition: Partition) -> _StagedFile:
        if len(self.open) >= MAX_OPEN_FILES:
            self._end(next(iter(self.open)))
        handle = uuid.uuid4().hex
        name = f"{self.staging}/{handle}{STAGED}"
        self.names.append(name)
        self.open[key] = _StagedFile(handle, self.folder, name, self.sink, partition, key[1])
        return self.open[key]

    def _end(self, key: tuple[str, pa.Schema]) -> None:
        file = self.open[key]
        with file.named():
            self.done.append(file.end())
        del self.open[key]


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
            self.encoder = sink.encoder(self.stream, schema)
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
        raw.close()
