"""Text files cut into blocks of whole lines: what JSON lines and CSV share.

A part of a file owns the lines that start in it, so parts of any size give the same lines. A block holds about 16 MB (smaller ones
waste time, and for larger ones the C library maps fresh memory each time); memory stays flat whatever the length of a file or a line.

A format overrides `parse`: it gives rows with the lines they came from, and refuses single lines. Positions, event times and dead
letters with the original bytes are made here. Compressed files are one part; their positions count uncompressed bytes.
"""

from __future__ import annotations

import itertools
import posixpath
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.dead_letters import Letters, letters
from tiebeam.errors import BadFileError
from tiebeam.io._compression import Decompressed
from tiebeam.io._file_source import BLOCK_BYTES, PART_BYTES, FilePart, FileSource
from tiebeam.io._listing import COMPRESSED
from tiebeam.options import option
from tiebeam.rows import ROW_POSITION, ROW_TIME, RowBatch, with_column

NEWLINE = 10
BOM = b"\xef\xbb\xbf"
PARSED_AHEAD = 2
KEPT_BYTES = 65_536
"""How much is kept of a row longer than `max_row_bytes`."""

_SCAN = 1 << 18  # bytes looked at in one numpy call, so that its temporaries stay in the processor's cache


@dataclass
class Block:
    """Whole lines: their bytes, where each starts and where its line feed stands, and where the block stands in its file."""

    data: bytes
    starts: np.ndarray
    ends: np.ndarray
    path: str | None = None
    offset: int = 0
    names: pa.Array | None = None
    """The positions of the lines, when they are not offsets in a file."""
    controls: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Where control characters stand, line feeds left out."""
    first: bool = False
    """Whether its first line is that of the file."""

    @staticmethod
    def of(data: bytes, path: str | None = None, offset: int = 0, first: bool = False) -> Block:
        found = _controls(data)
        is_newline = np.frombuffer(data, np.uint8)[found] == NEWLINE
        newlines = found[is_newline]
        ends = newlines if data.endswith(b"\n") or not data else np.append(newlines, len(data))
        return Block(data, np.concatenate([[0], ends[:-1] + 1])[: len(ends)], ends, path, offset, None, found[~is_newline], first)

    @staticmethod
    def of_originals(originals: list[bytes], positions: list[str | None], path: str) -> Block:
        ends = np.cumsum([len(o) + 1 for o in originals]) - 1
        starts = np.concatenate([[0], ends[:-1] + 1])
        data = b"\n".join(originals) + b"\n"
        controls = _controls(data)
        controls = np.setdiff1d(controls, ends, assume_unique=True) if len(controls) > len(ends) else controls[:0]
        return Block(data, starts, ends, path, 0, pa.array(positions, pa.string()), controls)

    def line(self, index: int) -> bytes:
        """A line without its line end, `\\n` or `\\r\\n`."""
        return self.data[self.starts[index] : self.ends[index]].removesuffix(b"\r")

    def without(self, lines: np.ndarray) -> Block:
        keep = np.delete(np.arange(len(self.starts)), lines)
        names = self.names.take(pa.array(keep)) if self.names is not None else None
        first = self.first and len(keep) > 0 and keep[0] == 0
        block = Block(self.data, self.starts[keep], self.ends[keep], self.path, self.offset, names, first=first)
        block.controls = self.controls[block.lines_of(self.controls) >= 0]
        return block

    def lines_of(self, positions: np.ndarray) -> np.ndarray:
        """The line in which each byte stands; -1 where none does."""
        if not len(self.ends):
            return np.full(len(positions), -1)
        line = np.minimum(np.searchsorted(self.ends, positions), len(self.ends) - 1)
        return np.where((positions >= self.starts[line]) & (positions < self.ends[line]), line, -1)

    def lines_at(self, positions: np.ndarray) -> np.ndarray:
        """The lines in which some bytes stand."""
        if not len(positions):
            return np.empty(0, np.int64)
        lines = np.unique(self.lines_of(positions))
        return lines[lines >= 0]

    def only(self, lines: np.ndarray) -> bytes:
        """The bytes of some lines, in order, with their line ends; copied only where something lies between them."""
        if not len(lines):
            return b""
        starts, ends = self.starts[lines], self.ends[lines]
        breaks = np.flatnonzero(starts[1:] != ends[:-1] + 1)
        firsts, tails = np.append(starts[0], starts[breaks + 1]), np.append(ends[breaks], ends[-1]) + 1
        if len(firsts) == 1 and firsts[0] == 0 and tails[0] >= len(self.data):
            return self.data
        view = memoryview(self.data)
        joined = b"".join([view[a:b] for a, b in zip(firsts.tolist(), tails.tolist(), strict=True)])
        return joined if joined.endswith(b"\n") else joined + b"\n"

    def positions(self, lines: np.ndarray | None = None) -> pa.Array:
        if self.names is not None:
            return self.names if lines is None else self.names.take(pa.array(lines))
        starts = self.starts if lines is None else self.starts[lines]
        return pc.binary_join_element_wise(f"{self.path}:", pa.array(starts + self.offset).cast(pa.string()), "")

    @property  # last: the annotations above mean the built-in `bytes`
    def bytes(self) -> np.ndarray:
        return np.frombuffer(self.data, np.uint8)


@dataclass
class Parsed:
    """Rows, and the line of the block that each stands in; None when they are all lines in order."""

    rows: RowBatch
    lines: np.ndarray | None = None


@dataclass
class Refused:
    """Lines that are no rows, and why: a short stable word each, and a sentence for people."""

    lines: list[int]
    reasons: list[str]
    details: list[str]


@dataclass
class TooLong:
    """A line of which only the beginning was read."""

    offset: int
    length: int
    kept: bytes


def where_byte(view: np.ndarray, value: int) -> np.ndarray:
    """Where a byte occurs."""
    found = [np.flatnonzero(view[at : at + _SCAN] == value) + at for at in range(0, len(view), _SCAN)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _controls(data: bytes) -> np.ndarray:
    """Where control characters stand: line feeds, and what may be wrong, in one go."""
    view = np.frombuffer(data, np.uint8)
    found = [np.flatnonzero(view[at : at + _SCAN] < 32) + at for at in range(0, len(view), _SCAN)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


class LineSource(FileSource):
    """Reads text files line by line, in blocks; each format says how the lines of a block become rows."""

    original_format: ClassVar[str] = ""

    compression: str = option(
        "auto", help="How the files are compressed; auto goes by the ending of each", choices=("auto", "none", "gzip", "zstd", "bzip2")
    )
    max_row_bytes: int = option(16 << 20, help="A longer row is a dead letter that keeps its first 65,536 bytes", unit="bytes", low=1)

    def parse(self, block: Block) -> Iterable[Parsed | Refused]:
        """Parses every line of a block; a line in neither a `Parsed` nor a `Refused` is blank."""
        raise NotImplementedError

    def body(self, block: Block) -> Block:
        """The block without lines that are no rows, such as a header."""
        return block

    def parts(self, path: str, size: int) -> list[FilePart]:
        if not self.splittable(path):
            return [FilePart(path, 0, None, size)]
        cuts = [*range(0, size, PART_BYTES), size]
        return [FilePart(path, a, b, b - a) for a, b in itertools.pairwise(cuts)]

    def splittable(self, path: str) -> bool:
        return self.compression_of(path) == "none"

    def compression_of(self, path: str) -> str:
        return COMPRESSED.get(posixpath.splitext(path.lower())[1], "none") if self.compression == "auto" else self.compression

    def read_part(self, part: FilePart) -> Iterator[RowBatch | Letters]:
        """Parses ahead in threads, since the engines below leave the interpreter's lock; delivers in the order of the file."""
        pieces, broken = self.pieces(part), None
        with ThreadPoolExecutor(PARSED_AHEAD) as pool:
            ahead: deque[Future[list[RowBatch | Letters]]] = deque()
            while broken is None:
                try:
                    ahead.append(pool.submit(self._read_piece, next(pieces), part.path))
                except StopIteration:
                    break
                except Exception as e:
                    broken = e
                if len(ahead) > PARSED_AHEAD:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        if broken is not None:
            raise broken

    def _read_piece(self, piece: Block | TooLong, path: str) -> list[RowBatch | Letters]:
        if isinstance(piece, TooLong):
            return [self._too_long([piece.kept], [piece.length], [f"{path}:{piece.offset}"], path, self.label)]
        return list(self._rows_of(piece, self.label))

    def pieces(self, part: FilePart) -> Iterator[Block | TooLong]:
        """The lines that start in a part; raises BadFileError where a file breaks off, once the lines before are delivered."""
        kind = self.compression_of(part.path)
        with self.open(part.path) as raw:
            stream = raw if kind == "none" else Decompressed(raw, kind, part.path)
            yield from self.blocks(stream, part)

    def blocks(self, stream: Any, part: FilePart) -> Iterator[Block | TooLong]:
        """Cuts a stream into lines."""
        return line_blocks(stream, part, self.max_row_bytes)

    def decode(self, originals: list[bytes], positions: list[str | None], step: str) -> Iterable[RowBatch | Letters]:
        ready = self if self.is_prepared else self.prepared(self.files())
        by_path: dict[str, list[int]] = {}
        for number, position in enumerate(positions):
            by_path.setdefault((position or "").rpartition(":")[0], []).append(number)
        for path, chosen in by_path.items():
            block = Block.of_originals([originals[i] for i in chosen], [positions[i] for i in chosen], path)
            for item in ready._rows_of(block, step):
                yield from [item] if isinstance(item, Letters) else ready._dress(item, path, step)

    def _rows_of(self, block: Block, step: str) -> Iterator[RowBatch | Letters]:
        lengths = block.ends - block.starts
        if len(lengths) and lengths.max() > self.max_row_bytes:
            long = np.flatnonzero(lengths > self.max_row_bytes)
            kept = [block.data[block.starts[i] : min(block.ends[i], block.starts[i] + KEPT_BYTES)] for i in long]
            yield self._too_long(kept, lengths[long].tolist(), block.positions(long), block.path, step)
            block = block.without(long)
        block = self.body(block)
        if not len(block.starts):
            return
        for item in self.parse(block):
            if isinstance(item, Refused):
                yield self._refused(block, item, step)
            elif item.rows.num_rows:
                yield from self._finished(block, item, step)

    def _finished(self, block: Block, parsed: Parsed, step: str) -> Iterator[RowBatch | Letters]:
        """Adds event time and position; a row without an event time is refused here, where its bytes are at hand."""
        rows, lines = parsed.rows, parsed.lines
        if self.event_time is not None and self.event_time not in self._partitions:
            times, bad = self.times_of(rows)
            if bad is not None:
                at = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
                lines = np.arange(rows.num_rows) if lines is None else lines
                details = [self.time_trouble(value) for value in self._times_as_text(rows.take(pa.array(at)))]
                yield self._refused(block, Refused(lines[at].tolist(), ["bad_event_time"] * len(at), details), step)
                good = pc.invert(bad)
                rows, times, lines = rows.filter(good), times.filter(good), np.delete(lines, at)
            rows = with_column(rows, ROW_TIME, times)
        if rows.num_rows:
            yield with_column(rows, ROW_POSITION, block.positions(lines)) if self.positions else rows

    def _refused(self, block: Block, refused: Refused, step: str) -> Letters:
        return letters(
            step,
            refused.reasons,
            refused.details,
            [block.line(i) for i in refused.lines],
            self.original_format,
            source=block.path,
            positions=block.positions(np.asarray(refused.lines)),
        )

    def _too_long(self, kept: list[bytes], lengths: list[int], positions: Any, path: str | None, step: str) -> Letters:
        details = [f"{n:,} bytes, more than max_row_bytes ({self.max_row_bytes:,}); the first {KEPT_BYTES:,} are kept" for n in lengths]
        kept = [k.removesuffix(b"\r") if n <= KEPT_BYTES else k for k, n in zip(kept, lengths, strict=True)]
        return letters(step, "too_long", details, kept, self.original_format, source=path, positions=positions)


def line_blocks(stream: Any, part: FilePart, longest: int) -> Iterator[Block | TooLong]:
    """Reads the lines that start in a part of a stream; a line longer than `longest` is passed over in small steps."""
    position = _first_line(stream, part)
    buffer, filled, wanted = bytearray(BLOCK_BYTES), 0, 0
    stop = part.stop
    while position is not None and (stop is None or position < stop):
        owned = len(buffer) if stop is None else stop - position
        wanted = min(len(buffer), max(wanted, owned + KEPT_BYTES))
        filled, ended, trouble = fill(stream, buffer, filled, wanted)
        if position == 0 and (mark := skip_mark(buffer, filled)):
            position, filled, owned = mark, filled - mark, max(owned - mark, 1)
            stop = stop and max(stop, mark + 1)  # the line behind the mark starts, for its owner, where the mark does
        last = owned <= filled and buffer.find(b"\n", owned - 1, filled)
        if ended and trouble is None and (owned > filled or last < 0):
            cut = filled
        else:
            cut = last + 1 if owned <= filled and last >= 0 else buffer.rfind(b"\n", 0, filled) + 1
        if cut:
            yield Block.of(bytes(memoryview(buffer)[:cut]), part.path, position, first=part.start == 0 and position in (0, len(BOM)))
            buffer[: filled - cut] = buffer[cut:filled]
            position, filled, wanted = position + cut, filled - cut, 0
        elif trouble is None and not ended and filled > longest:
            position, filled = yield from pass_over(stream, buffer, filled, position)
        elif trouble is None and not ended:
            wanted = 2 * filled
            if wanted > len(buffer):
                buffer.extend(bytes(len(buffer)))
        if trouble is not None:
            raise trouble
        if ended:
            return


def _first_line(stream: Any, part: FilePart) -> int | None:
    """Moves to the first line that starts in a part; None when none does."""
    if not part.start:
        return 0
    position = part.start - 1
    stream.seek(position)
    while part.stop is None or position < part.stop:
        chunk = stream.read(KEPT_BYTES)
        if not chunk:
            return None
        if (at := chunk.find(b"\n")) >= 0:
            stream.seek(position + at + 1)
            return position + at + 1
        position += len(chunk)
    return None


def skip_mark(buffer: bytearray, filled: int) -> int:
    """Removes a byte order mark from the beginning of a file, and returns its length."""
    if not buffer.startswith(BOM, 0, filled):
        return 0
    buffer[: filled - len(BOM)] = buffer[len(BOM) : filled]
    return len(BOM)


def fill(stream: Any, buffer: bytearray, filled: int, wanted: int) -> tuple[int, bool, BadFileError | None]:
    """Reads until the buffer holds what is wanted; says whether the stream ended, and what is wrong with it."""
    with memoryview(buffer) as view:
        while filled < wanted:
            try:
                count = stream.readinto(view[filled:wanted])
            except BadFileError as e:
                return filled, True, e
            if not count:
                return filled, True, None
            filled += count
    return filled, False, None


def pass_over(stream: Any, buffer: bytearray, filled: int, position: int) -> Generator[TooLong, None, tuple[int, int]]:
    """Reads to the end of a line without keeping it; leaves what follows in the buffer, and returns where that stands."""
    kept, length = buffer[: min(filled, KEPT_BYTES)], filled
    while True:
        filled, ended, trouble = fill(stream, buffer, 0, BLOCK_BYTES)
        if trouble is not None:
            raise trouble
        at = buffer.find(b"\n", 0, filled)
        passed = at if at >= 0 else filled
        kept += buffer[: min(passed, KEPT_BYTES - len(kept))]
        length += passed
        if at >= 0 or ended:
            yield TooLong(position, length, bytes(kept))
            rest = buffer[at + 1 : filled] if at >= 0 else b""
            buffer[: len(rest)] = rest
            return position + length + 1, len(rest)
