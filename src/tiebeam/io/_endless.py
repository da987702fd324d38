"""Sources that never end: what a connector has to say of its system, and the one adapter to Beam's unbounded sources.

A connector (Kafka, Pub/Sub, MQTT) writes an `EndlessSource` and a `PartitionReader`. Everything else is here: the watermark, the
checkpoint, the reuse of readers, and what runners need. Beam marks `apache_beam.io.unbounded_source` (2.76) as experimental, so
nothing else imports it.
"""

from __future__ import annotations

import json
import math
import struct
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import Coder
from apache_beam.io.unbounded_source import CheckpointMark, ReadFromUnboundedSource, UnboundedReader, UnboundedSource
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.rows import RESERVED, ROW_TIME, RowBatch, RowBatchCoder, timestamp_of
from tiebeam.runners import DRAIN, lossy, unsafe_on_flink, without_streams
from tiebeam.steps import BatchFn, apply_batches, gauge

BATCHES_PER_BUNDLE = 16
SECS_PER_BUNDLE = 1.0
IDLE_SECS = 60.0
READ_ON_SECS = 0.01
MILLI = 1_000
WATERMARK, LAG = "watermark", "lag "

_BATCHES = RowBatchCoder()


class Piece(NamedTuple):
    """What was read of one partition, rows and dead letters, and the position behind it: any JSON value."""

    partition: str
    position: Any
    results: tuple[RowBatch | Letters, ...]

    @property
    def rows(self) -> Iterator[RowBatch]:
        return (result for result in self.results if isinstance(result, RowBatch))


class Progress(Enum):
    """How far a partition is read. `CAUGHT_UP` only when it is known that there is nothing more now; while connecting it is `BEHIND`."""

    BEHIND = "behind"
    CAUGHT_UP = "caught up"
    FINISHED = "finished"


class PartitionReader(ABC):
    """Reads some partitions of a source. One thread at a time uses it, but for `commit`."""

    @abstractmethod
    def seek(self, positions: dict[str, Any]) -> None:
        """Reads on behind these positions; None is the start of a partition. Called first, and whenever a checkpoint is resumed."""

    @abstractmethod
    def poll(self, order: Sequence[str]) -> Piece | None:
        """Gives what is there of one of these partitions, the first that has any; at most 65,536 rows and 8 MB.

        Waits a moment at most, and only for what is known to be on its way.
        """

    @abstractmethod
    def progress(self, partition: str) -> Progress:
        """How far the partition is read, without waiting."""

    def appeared(self) -> Sequence[str]:
        """Names the partitions that there are by now; it may take a while, and is asked for every now and then."""
        return ()

    def lag(self, partition: str) -> int | None:
        """How many rows there are that were not read yet, as far as is known."""
        return None

    def now(self) -> int:
        """The time in microseconds by the clock that event times are compared with."""
        return time.time_ns() // 1_000

    def commit(self, positions: dict[str, Any]) -> None:  # noqa: B027 - most systems need not be told
        """Tells the system what was taken in. Advice only: may never come, or twice, from any thread, and after `close`."""

    def close(self) -> None:  # noqa: B027 - not every reader holds something
        """Lets go of connections."""


class EndlessSource(ABC):
    """Says what there is to read: a frozen dataclass, equal by its fields, in a module that workers can import."""

    disorder: int = 0
    """How much earlier than the latest row so far a row of the same partition may be, in microseconds of event time."""
    lag: int = 0
    """How much earlier than now a row may be when it arrives, in microseconds: an idle partition is taken to be as far as that."""
    bounded: bool = False
    """Whether every partition has a declared end; it is then read as a bounded input."""

    @abstractmethod
    def partitions(self) -> Sequence[str]:
        """The partitions there are; called on a worker, once."""

    def number(self, partition: str) -> int:
        """A number that deals partitions evenly to readers: the same in every process and release."""
        return zlib.crc32(partition.encode())

    @abstractmethod
    def reader(self, partitions: Sequence[str]) -> PartitionReader:
        """A reader of these partitions."""

    def read_all(self, partitions: Sequence[str] | None = None, secs: float = math.inf) -> Iterator[RowBatch | Letters]:
        """What there is of partitions up to their declared ends, here and now; TransientError when that takes longer than `secs`."""
        names = list(self.partitions() if partitions is None else partitions)
        reader = self.reader(names)
        try:
            reader.seek(dict.fromkeys(names))
            until = time.monotonic() + secs
            while names := [name for name in names if reader.progress(name) is not Progress.FINISHED]:
                if (piece := reader.poll(names)) is not None:
                    yield from piece.results
                elif time.monotonic() > until:
                    raise TransientError(f"{', '.join(names)} could not be read to the end within {secs:g} s")
                else:
                    time.sleep(READ_ON_SECS)
        finally:
            reader.close()


class ReadEndless(beam.PTransform):
    """Reads a source that never ends; one that declares an end is read as a bounded input.

    Out: the row batches of its partitions, each row once.
    Errors: ConfigError where the runner cannot run streams, or would lose rows.
    Delivery: exactly once into the job; the position lies in the runner's checkpoint, never in the outside system.
    Time: event time is `row_time`. The watermark is that of the slowest partition: its latest row less the declared disorder,
    but never ahead of now; when it is known to hold nothing more, at least now less the declared lag.
    """

    def __init__(self, source: EndlessSource, *, poll_secs: float = 1.0, step: str | None = None, counted: bool = True):
        super().__init__()
        self.source = source
        self.poll_secs = poll_secs
        self.step = step
        self.counted = counted
        """Whether what is read are rows already; what becomes rows in a later step is counted there."""

    def expand(self, pbegin: Any) -> beam.PCollection:
        if self.source.bounded:
            partitions = pbegin | "Source" >> beam.Create([self.source]) | "Partitions" >> beam.FlatMap(_partitions).with_output_types(str)
            to_end = _ReadToEndFn(self.step or self.label, self.source, self.counted)
            return apply_batches(partitions | "Spread" >> beam.Reshuffle(), "Read", to_end)
        runner = type(pbegin.pipeline.runner).__name__
        DRAIN.clear()
        if problems := list(self._problems(runner, pbegin.pipeline.options)):
            raise ConfigError(*problems)
        adapted = _Adapted(self.source, whole=runner == "PrismRunner", step=self.step or self.label)
        read = ReadFromUnboundedSource(adapted, self.poll_secs, BATCHES_PER_BUNDLE, SECS_PER_BUNDLE)
        return apply_batches(pbegin | "Read" >> read, "Unpack", _UnpackFn(self.step or self.label, self.counted))

    def _problems(self, runner: str, options: Any) -> Iterator[Problem]:
        yield from lossy(runner, options.get_all_options())
        yield from without_streams(runner)
        if runner == "FlinkRunner":
            yield from unsafe_on_flink(options.get_all_options(drop_default=True, retain_unknown_options=True))
        if runner in ("FlinkRunner", "PortableRunner") and self.poll_secs < 1:
            yield Problem(f"{self.poll_secs} s is less than one second", "poll_secs", "Flink cuts it to whole seconds: use 1 or more")


def _partitions(source: EndlessSource) -> list[str]:
    if found := list(source.partitions()):
        return found
    raise ConfigError(Problem("the source has no partitions", type(source).__name__))


class _Results(NamedTuple):
    """What a poll gave, as one element: its position is one, so it may not be parted."""

    results: tuple[RowBatch | Letters, ...]


class _ResultsCoder(Coder):
    """Writes each batch with its length, and whether it holds dead letters, in front."""

    def encode(self, value: _Results) -> bytes:
        parts = []
        for result in value.results:
            refused = isinstance(result, Letters)
            encoded = _BATCHES.encode(result.batch if isinstance(result, Letters) else result)
            parts += [struct.pack("<?q", refused, len(encoded)), encoded]
        return b"".join(parts)

    def decode(self, encoded: bytes) -> _Results:
        results: list[RowBatch | Letters] = []
        at = 0
        while at < len(encoded):
            refused, size = struct.unpack_from("<?q", encoded, at)
            batch = _BATCHES.decode(encoded[at + 9 : at + 9 + size])
            results.append(Letters(batch) if refused else batch)
            at += 9 + size
        return _Results(tuple(results))

    def is_deterministic(self) -> bool:
        return False


class _ResultFn(BatchFn):
    """Gives rows their event times; what are no rows yet is not counted."""

    def __init__(self, step: str, counted: bool):
        super().__init__(step)
        self.counted = counted

    def emit(self, results: Any) -> Iterator[Any]:
        return _timed(super().emit(results) if self.counted else results)


class _UnpackFn(_ResultFn):
    """Rows and dead letters, out of what a poll gave."""

    def apply(self, element: _Results) -> Iterator[RowBatch | Letters]:
        yield from element.results


def _timed(outputs: Iterable[Any]) -> Iterator[Any]:
    return (TimestampedValue(rows, timestamp_of(rows)) if isinstance(rows, RowBatch) else rows for rows in outputs)


class _ReadToEndFn(_ResultFn):
    """Reads one partition to its declared end."""

    def __init__(self, step: str, source: EndlessSource, counted: bool):
        super().__init__(step, counted)
        self.source = source

    def apply(self, partition: str) -> Iterator[RowBatch | Letters]:
        yield from self.source.read_all([partition])


@dataclass(frozen=True)
class _Place:
    """Where the reading of a partition stands: its position, and its latest event time so far, which no reader could say again."""

    position: Any = None
    latest: int | None = None


class _Mark(CheckpointMark):
    """The places of all partitions of a restriction, and the reader to tell once they are safe; that one is not part of its bytes."""

    def __init__(self, places: dict[str, _Place], reader: PartitionReader | None = None):
        self.places = places
        self.reader = reader

    def finalize_checkpoint(self) -> None:
        if self.reader is not None:
            self.reader.commit({name: place.position for name, place in self.places.items()})


class _MarkCoder(Coder):
    """Writes a mark as JSON with a version, so that a later release reads what an older one left."""

    VERSION: ClassVar = 1

    def encode(self, mark: _Mark) -> bytes:
        places = {name: [place.position, place.latest] for name, place in mark.places.items()}
        return json.dumps({"version": self.VERSION, "partitions": places}, sort_keys=True, separators=(",", ":")).encode()

    def decode(self, encoded: bytes) -> _Mark:
        told = json.loads(encoded)
        if told["version"] != self.VERSION:
            found = f"the checkpoint is of version {told['version']}, and only {self.VERSION} can be read"
            raise ConfigError(Problem(found, "checkpoint", "resume with the release that wrote it"))
        return _Mark({name: _Place(*place) for name, place in told["partitions"].items()})

    def is_deterministic(self) -> bool:
        return True


@dataclass(frozen=True)
class _Adapted(UnboundedSource):
    """A source as Beam sees it: all partitions, or a share of them.

    `whole` keeps the partitions in one restriction. Prism takes the watermark of the last bundle for that of all of them, and
    drops rows of the slower one (tests/runners/test_losses.py); as of Beam 2.77.
    """

    source: EndlessSource
    whole: bool
    step: str = ""
    share: int = 0
    shares: int = 0

    def split(self, desired_num_splits: int, options: Any = None) -> list[_Adapted]:
        if self.whole or self.shares:
            return [self]
        shares = min(len(_partitions(self.source)), max(1, desired_num_splits))
        return [replace(self, share=share, shares=shares) for share in range(shares)]

    def create_reader(self, options: Any, checkpoint_mark: Any) -> _Reader:
        if checkpoint_mark is not None:
            return _Reader(self.source, dict(checkpoint_mark.places), self.owns, self.step)
        return _Reader(self.source, {name: _Place() for name in _partitions(self.source) if self.owns(name)}, self.owns, self.step)

    def owns(self, name: str) -> bool:
        """Whether a partition is read here: by a stable hash, so that one found later has its owner too."""
        return not self.shares or self.source.number(name) % self.shares == self.share

    def get_checkpoint_mark_coder(self) -> Coder:
        return _MarkCoder()

    def default_output_coder(self) -> Coder:
        return _ResultsCoder()


class _Reader(UnboundedReader):
    """Reads the partitions of one restriction, that with the earliest event time first."""

    def __init__(self, source: EndlessSource, places: dict[str, _Place], owns: Callable[[str], bool], step: str):
        self.source = source
        self.places = places
        self.owns = owns
        self.step = step
        self._told = 0.0
        self._reader: PartitionReader | None = None
        self._piece: Piece | None = None
        self._watermark = MIN_TIMESTAMP

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        if self._reader is None:
            self._reader = POOL.take(self.source, self._positions())
        reader = self._reader
        if new := [name for name in reader.appeared() if name not in self.places and self.owns(name)]:
            self.places.update((name, _Place()) for name in new)
            reader.seek(self._positions())
        unfinished = [name for name in self.places if _progress(reader, name) is not Progress.FINISHED]
        self._piece = reader.poll(sorted(unfinished, key=self._urgency)) if unfinished else None
        if self._piece is not None:
            name, position, _ = self._piece
            latest = [self.places[name].latest, *(_latest(rows) for rows in self._piece.rows)]
            self.places[name] = _Place(position, max((moment for moment in latest if moment is not None), default=None))
        self._watermark = max(self._watermark, self._reached(reader))
        self._tell(reader)
        return self._piece is not None

    def _tell(self, reader: PartitionReader) -> None:
        """Shows how far reading is, twice a second."""
        if time.monotonic() < self._told + 0.5:
            return
        self._told = time.monotonic()
        gauge(self.step, WATERMARK, self._watermark.micros // MILLI)
        for name in self.places:
            if (lag := reader.lag(name)) is not None:
                gauge(self.step, f"{LAG}{name}", lag)

    def get_current(self) -> _Results:
        assert self._piece is not None
        return _Results(self._piece.results)

    def get_current_timestamp(self) -> Timestamp:
        assert self._piece is not None
        return min((timestamp_of(rows) for rows in self._piece.rows), default=self._watermark)

    def get_watermark(self) -> Timestamp:
        return self._watermark

    def get_checkpoint_mark(self) -> _Mark:
        """Also lends the reader to whoever resumes from here: Beam asks for a mark when a bundle is over."""
        mark = _Mark(dict(self.places), self._reader)
        if self._reader is not None and self._watermark < MAX_TIMESTAMP:
            POOL.give(self.source, self._positions(), self._reader)
            self._reader = None
        return mark

    def close(self) -> None:
        if self._reader is not None:  # in the middle of a bundle: nobody knows where it stands
            self._reader.close()
            self._reader = None

    def _positions(self) -> dict[str, Any]:
        return {name: place.position for name, place in self.places.items()}

    def _urgency(self, name: str) -> tuple[bool, int]:
        latest = self.places[name].latest
        return latest is not None, latest or 0

    def _reached(self, reader: PartitionReader) -> Timestamp:
        """What no later row is expected to be earlier than, less a millisecond: a row at the watermark itself must not be late."""
        now = reader.now()  # before asking how far the partitions are: what comes in between is not counted as read
        bounds = [
            self._bound(self.places[name].latest, progress, now)
            for name in self.places
            if (progress := _progress(reader, name)) is not Progress.FINISHED
        ]
        if not self.places and not DRAIN.is_set():  # nothing is read here yet, but may be
            bounds = [now - self.source.lag]
        if not bounds:
            return self._watermark if self._piece is not None else MAX_TIMESTAMP
        if None in bounds:
            return MIN_TIMESTAMP
        earliest = min(bound for bound in bounds if bound is not None)
        return max(MIN_TIMESTAMP, Timestamp(micros=(earliest // MILLI - 1) * MILLI))

    def _bound(self, latest: int | None, progress: Progress, now: int) -> int | None:
        """Never ahead of now: one row of a clock that runs ahead must not make all that follow late."""
        seen = None if latest is None else min(latest - self.source.disorder, now)
        return _later(seen, now - self.source.lag) if progress is Progress.CAUGHT_UP else seen


def _progress(reader: PartitionReader, partition: str) -> Progress:
    """How far a partition is read; while the job is drained, its present end is the end."""
    progress = reader.progress(partition)
    return Progress.FINISHED if progress is Progress.CAUGHT_UP and DRAIN.is_set() else progress


def _latest(rows: RowBatch) -> int | None:
    if ROW_TIME not in rows.schema.names:
        return None
    return pc.max(rows.column(ROW_TIME).cast(RESERVED[ROW_TIME]).cast(pa.int64())).as_py()


def _later(one: int | None, other: int | None) -> int | None:
    return max((moment for moment in (one, other) if moment is not None), default=None)


class _Idle(NamedTuple):
    source: EndlessSource
    positions: dict[str, Any]
    reader: PartitionReader
    since: float


class _Pool:
    """Readers of this process that no bundle uses. Any DoFn may resume a restriction, and connecting anew is slow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Idle] = []

    def take(self, source: EndlessSource, positions: dict[str, Any]) -> PartitionReader:
        """A reader that stands at these positions, or a new one: one that stands elsewhere may be of a bundle that was given up."""
        with self._lock:
            found = next((idle for idle in self._idle if idle.source == source and idle.positions == positions), None)
            if found is not None:
                self._idle = [idle for idle in self._idle if idle is not found]
                return found.reader
        reader = source.reader(list(positions))
        try:
            reader.seek(positions)
        except BaseException:
            reader.close()
            raise
        return reader

    def give(self, source: EndlessSource, positions: dict[str, Any], reader: PartitionReader) -> None:
        """Keeps a reader for the next bundle, and closes those that none has wanted for a minute."""
        now = time.monotonic()
        with self._lock:
            stale = [idle for idle in self._idle if idle.since < now - IDLE_SECS]
            self._idle = [idle for idle in self._idle if idle.since >= now - IDLE_SECS]
            self._idle.append(_Idle(source, positions, reader, now))
        for idle in stale:
            idle.reader.close()


POOL = _Pool()
