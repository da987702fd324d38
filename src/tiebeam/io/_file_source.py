"""The reading half that every file connector shares: which files, in which parts, in parallel, and what becomes of trouble.

A format is a subclass with three hooks:

    extensions = (".jsonl", ".ndjson")      which files count in a folder
    def parts(self, path, size): …          how a file can be cut; one whole part by default
    def read_part(self, part): …            row batches of a part, and `Letters` for its bad rows; raises BadFileError

`read_part` delivers `row_position` when `positions` is set, reads the columns in `self.wanted` (all when None) and passes over names it
does not find. Everything else is done here: partition columns, `row_time`, projection, files that cannot be read.
Parts travel as JSON text, so that nothing here is ever pickled between workers.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import zoneinfo
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import TimestampedValue

from tiebeam import gcs
from tiebeam.connectors import Source
from tiebeam.dead_letters import Letters, letters, letters_of_rows
from tiebeam.errors import BadFileError, ConfigError, Problem, TransientError
from tiebeam.io._event_time import UNIX, event_times
from tiebeam.io._hive import partition_of
from tiebeam.io._listing import FoundFile, find_files, local_path, partition_types
from tiebeam.options import option
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, concat, cut, timestamp_of, with_column
from tiebeam.steps import BYTES_IN, BatchFn, apply_batches, count

BLOCK_BYTES = 16 << 20
PART_BYTES = 64 << 20


@dataclass(frozen=True)
class FilePart:
    """A piece of a file that is read alone; the format decides what `start` and `stop` count. `size` is in bytes."""

    path: str
    start: int = 0
    stop: int | None = None
    size: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> FilePart:
        return FilePart(**json.loads(text))


class FileSource(Source):
    """Reads files as row batches; each format says how one part of one file is read."""

    extensions: ClassVar[tuple[str, ...]] = ()
    formats: ClassVar[tuple[str, ...]] = ("arrow",)

    path: str = option(help="A file, a folder with everything below it, or a glob", example="in/*.jsonl", place="files")
    event_time: str | None = option(None, help="The column that holds when each row happened; it becomes row_time", example="created_at")
    event_time_format: str = option(
        "iso", help="How event_time is written: iso, unix_secs, unix_millis, unix_micros or a strptime format", example="%d/%m/%Y %H:%M:%S"
    )
    event_time_zone: str = option("UTC", help="The zone of event times that name none", example="Europe/Paris")
    columns: tuple[str, ...] | None = option(None, help="Read only these columns", example="id,amount")
    positions: bool = option(True, help="Deliver where each row stands in its file, as row_position")
    on_bad_file: str = option(
        "fail", help="What a file that cannot be read does: stop the run, or become a dead letter", choices=("fail", "dead_letter")
    )

    # ---- hooks of a format

    def parts(self, path: str, size: int) -> list[FilePart]:
        """Cuts a file into pieces that can be read alone and in any order."""
        return [FilePart(path, 0, None, size)]

    def read_part(self, part: FilePart) -> Iterator[RowBatch | Letters]:
        """Reads one part; raises BadFileError where the file as a whole cannot be read on."""
        raise NotImplementedError

    def prepared(self, found: list[FoundFile]) -> Self:
        """A copy that holds what every worker must agree on, found out once when the graph is built."""
        prepared = copy.copy(self)
        prepared._partitions = partition_types(f.path for f in found)
        prepared.is_prepared = True
        return prepared

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The columns to parse, None for all; names not in the file are to be passed over."""
        if self.columns is None or self.event_time is None or self.event_time in self.columns:
            return self.columns
        return (*self.columns, self.event_time)

    # ---- what a Source does

    def __post_init__(self):
        super().__post_init__()
        self._partitions: dict[str, pa.DataType] = {}
        self.is_prepared = False

    def check(self) -> Iterable[Problem | tuple[str, str, str]]:
        if self.event_time_format not in ("iso", *UNIX) and "%" not in self.event_time_format:
            yield "is no format of a time", "event_time_format", f"one of iso, {', '.join(UNIX)}, or a strptime format such as %d/%m/%Y"
        try:
            zoneinfo.ZoneInfo(self.event_time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            yield f"there is no time zone {self.event_time_zone!r}", "event_time_zone", "a name of the IANA database, such as Europe/Paris"

    def files(self) -> list[FoundFile]:
        return find_files(self.path, self.extensions)

    def ping(self) -> None:
        self.files()

    def fingerprint(self) -> str | None:
        found = [[f.path, f.size, f.modified] for f in self.files()]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def read(self, begin: Any) -> beam.PCollection:
        found = self.files()
        source = self.prepared(found)
        source._check_columns(found)
        whole = [FilePart(f.path, 0, None, f.size).to_json() for f in found]
        parts = (
            begin
            | "Files" >> beam.Create(whole, reshuffle=len(whole) > 1).with_output_types(str)
            | "Split" >> beam.ParDo(_SplitFn(source)).with_output_types(str)
            | "Spread" >> beam.Reshuffle().with_output_types(str)
        )
        return apply_batches(parts, "Read", _ReadFn(self.label, source))

    def sample(self, rows: int) -> RowBatch | None:
        found = self.files()
        return self.prepared(found)._first_rows(found, rows)

    def decode(self, originals: list[bytes], positions: list[str | None], step: str) -> Iterable[RowBatch | Letters]:
        """Reads rows again that were typed when they were refused (`arrow`)."""
        for original, position in zip(originals, positions, strict=True):
            path = (position or "").rpartition(":")[0]
            yield from self._dress(pa.ipc.open_stream(original).read_next_batch(), path, step)

    # ---- what formats and the steps below use

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading as it lies there, compressed or not."""
        if local := local_path(path):
            return Path(local).open("rb", buffering=0)
        if gcs.is_gcs(path):
            return gcs.open_for_reading(path)
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)

    def deliver(self, part: FilePart, step: str) -> Iterator[RowBatch | Letters]:
        """Reads a part as the pipeline sees it, with the columns that do not stand in the file."""
        try:
            try:
                for item in self.read_part(part):
                    yield from [item] if isinstance(item, Letters) else self._dress(item, part.path, step)
            except (FileNotFoundError, PermissionError) as e:
                raise BadFileError(f"{part.path} cannot be opened: {e.strerror or e}") from e
            except (OSError, BeamIOError) as e:
                raise TransientError(f"{part.path} cannot be read now: {e}") from e
        except BadFileError as e:
            if self.on_bad_file == "fail":
                raise
            yield letters(step, "bad_file", [str(e)], [b""], "file", source=part.path, positions=[part.path])

    def _dress(self, batch: RowBatch, path: str, step: str) -> Iterator[RowBatch | Letters]:
        given = partition_of(path) if self._partitions else {}
        for name, kind in self._partitions.items():
            if self.wanted is None or name in self.wanted:
                value = given.get(name)
                scalar = pa.scalar(int(value) if value is not None and kind == pa.int64() else value, kind)
                batch = with_column(batch, name, pa.repeat(scalar, batch.num_rows))
        if self.event_time is not None and ROW_TIME not in batch.schema.names:
            times, bad = self.times_of(batch)
            batch = with_column(batch, ROW_TIME, times)
            if bad is not None:
                refused = batch.filter(bad).drop_columns([ROW_TIME])
                details = [self.time_trouble(value) for value in self._times_as_text(refused)]
                yield letters_of_rows(step, refused, "bad_event_time", details)
                batch = batch.filter(pc.invert(bad))
        if batch.num_rows:
            yield from cut(self._in_order(batch))

    def times_of(self, batch: RowBatch) -> tuple[pa.Array, pa.Array | None]:
        """The event times of a batch, and a mask of the rows that have none; None in its place when all have one."""
        if self.event_time not in batch.schema.names:
            return pa.nulls(batch.num_rows, pa.timestamp("us", tz="UTC")), pa.repeat(True, batch.num_rows)
        times = event_times(batch.column(self.event_time), self.event_time_format, self.event_time_zone)
        return times, times.is_null() if times.null_count else None

    def time_trouble(self, value: Any) -> str:
        """Says what is wrong with an event time, for people."""
        if value is None:
            return f"{self.event_time} is absent"
        return f"{self.event_time} is {str(value)[:100]!r}, which cannot be read as {self.event_time_format}"

    def _times_as_text(self, batch: RowBatch) -> list[Any]:
        return batch.column(self.event_time).to_pylist() if self.event_time in batch.schema.names else [None] * batch.num_rows

    def _in_order(self, batch: RowBatch) -> RowBatch:
        """Columns as declared, or as they came; then row_time and row_position."""
        names = batch.schema.names
        reserved = [n for n in (ROW_TIME, ROW_POSITION) if n in names]
        kept = [n for n in (self.columns if self.columns is not None else names) if n in names and n not in reserved]
        return batch.select([*kept, *reserved])

    def _first_rows(self, found: list[FoundFile], rows: int) -> RowBatch | None:
        taken: list[RowBatch] = []
        for part in (p for f in found for p in self.parts(f.path, f.size)):
            try:
                for item in self.deliver(part, self.label):
                    if isinstance(item, RowBatch):
                        taken.append(item.slice(0, rows - sum(t.num_rows for t in taken)))
                    if sum(t.num_rows for t in taken) >= rows:
                        return concat(taken)
            except BadFileError as e:
                raise ConfigError(Problem(str(e), self.path, "mend or remove the file, or set on_bad_file to dead_letter")) from e
        return concat(taken) if taken else None

    def _check_columns(self, found: list[FoundFile]) -> None:
        """Refuses names of columns that no row of a sample has, while nothing has moved."""
        declared = [("columns", c) for c in self.columns or ()] + ([("event_time", self.event_time)] if self.event_time else [])
        if not declared:
            return
        plain = copy.copy(self)
        plain.columns = plain.event_time = None
        sample = plain._first_rows(found, 1000)
        names = sample.schema.names if sample is not None else [name for _, name in declared]
        problems = []
        for where, name in declared:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the first rows have {', '.join(names)}"
                problems.append(Problem(f"there is no column {name!r} in {self.path}", where, hint))
        if problems:
            raise ConfigError(*problems)


class _SplitFn(beam.DoFn):
    """Cuts a file into parts; one that cannot be cut stays whole, and reading it says why."""

    def __init__(self, source: FileSource):
        self.source = source

    def process(self, element: str):
        whole = FilePart.from_json(element)
        try:
            parts = self.source.parts(whole.path, whole.size)
        except (BadFileError, OSError):
            parts = [whole]
        for part in parts:
            yield part.to_json()


class _ReadFn(BatchFn):
    """Reads parts; batches with event times are stamped with their earliest."""

    def __init__(self, step: str, source: FileSource):
        super().__init__(step)
        self.source = source

    def apply(self, element: str) -> Iterator[RowBatch | Letters]:
        part = FilePart.from_json(element)
        yield from self.source.deliver(part, self.step)
        count(self.step, BYTES_IN, part.size)

    def process(self, element):
        for result in super().process(element):
            timed = self.source.event_time is not None and isinstance(result, RowBatch)
            yield TimestampedValue(result, timestamp_of(result)) if timed else result
