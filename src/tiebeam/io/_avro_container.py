"""Avro object container files: a header, then blocks of records, each ended by the file's sync marker.

Format: https://avro.apache.org/docs/1.12.0/specification/#object-container-files. Only the container is read and written here; what
the records in a block mean is decided elsewhere, so that whole blocks can go to a columnar decoder.
"""

from __future__ import annotations

import bz2
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from tiebeam.errors import BadFileError

MAGIC = b"Obj\x01"
SYNC_BYTES = 16
MAX_BLOCK_BYTES = 2**31
_SEARCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Header:
    """The beginning of a file: its schema as JSON, its codec and sync marker, other metadata, and where the first block starts."""

    schema: Any
    codec: str
    sync: bytes
    metadata: dict[str, bytes]
    length: int

    @property
    def searchable(self) -> bool:
        """Whether the sync marker is random enough that records do not hold it by chance; some writers always use the same."""
        return len(set(self.sync)) > 8


@dataclass(frozen=True)
class Block:
    """Some records of a file: where the block starts, how many they are, and their bytes, not compressed."""

    offset: int
    rows: int
    data: bytes


def read_header(stream: BinaryIO, path: str) -> Header:
    """Reads the header at the start of a stream; raises BadFileError when it is none."""
    try:
        if stream.read(4) != MAGIC:
            raise ValueError("it does not begin as one")
        metadata = dict(_read_map(stream))
        schema, codec = json.loads(metadata["avro.schema"]), metadata.get("avro.codec", b"null").decode()
        if codec not in _CODECS:
            raise ValueError(f"its codec {codec!r} is unknown")
        return Header(schema, codec, _exactly(stream, SYNC_BYTES), metadata, stream.tell())
    except (ValueError, KeyError, EOFError) as e:
        raise BadFileError(f"{path} is not an Avro file: {e}") from e


def header_bytes(schema: Any, codec: str, sync: bytes, metadata: dict[str, bytes] | None = None) -> bytes:
    entries = {"avro.schema": json.dumps(schema).encode(), "avro.codec": codec.encode(), **(metadata or {})}
    pairs = b"".join(_counted(key.encode()) + _counted(value) for key, value in entries.items())
    return MAGIC + number(len(entries)) + pairs + number(0) + sync


def block_bytes(rows: int, data: bytes, codec: str, sync: bytes) -> bytes:
    return number(rows) + _counted(_CODECS[codec][0](data)) + sync


def read_blocks(stream: BinaryIO, header: Header, path: str, start: int, stop: int | None) -> Iterator[Block]:
    """Reads the blocks that start in a range of bytes; raises BadFileError where the file is damaged."""
    offset = _first_block(stream, header, start)
    stream.seek(offset)
    while stop is None or offset < stop:
        try:
            rows = _read_number(stream, at_end=0)
            if not rows and stream.tell() == offset:
                return
            size = _read_number(stream)
            if rows < 0 or not 0 <= size <= MAX_BLOCK_BYTES:
                raise ValueError("a block of impossible size")
            data = _exactly(stream, size)
            if _exactly(stream, SYNC_BYTES) != header.sync:
                raise ValueError("no sync marker behind the block")
            block = Block(offset, rows, _CODECS[header.codec][1](data))
        except (ValueError, EOFError, OSError, zlib.error, lzma.LZMAError) as e:
            if isinstance(e, OSError) and e.errno is not None:
                raise
            raise BadFileError(f"{path} is damaged in the block at byte {offset}: {e}") from e
        yield block
        offset = stream.tell()


def plain_file(schema: Any, blocks: list[Block]) -> io.BytesIO:
    """A file in memory that holds some blocks, not compressed."""
    sync = bytes(SYNC_BYTES)
    return io.BytesIO(header_bytes(schema, "null", sync) + b"".join(block_bytes(b.rows, b.data, "null", sync) for b in blocks))


def number(value: int) -> bytes:
    """A long, zigzag and variable in length."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _first_block(stream: BinaryIO, header: Header, start: int) -> int:
    if start <= header.length:
        return header.length
    position, tail = start - SYNC_BYTES, b""
    stream.seek(position)
    while chunk := stream.read(_SEARCH_BYTES):
        window = tail + chunk
        if (found := window.find(header.sync)) >= 0:
            return position - len(tail) + found + SYNC_BYTES
        position, tail = position + len(chunk), window[-SYNC_BYTES + 1 :]
    return position


def _counted(data: bytes) -> bytes:
    return number(len(data)) + data


def _read_number(stream: BinaryIO, at_end: int | None = None) -> int:
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    if shift or at_end is None:
        raise EOFError("it ends in the middle")
    return at_end


def _read_map(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    while count := _read_number(stream):
        if count < 0:
            count = -count
            _read_number(stream)
        for _ in range(count):
            yield _exactly(stream, _read_number(stream)).decode(), _exactly(stream, _read_number(stream))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    if not 0 <= size <= MAX_BLOCK_BYTES:
        raise ValueError("a part of impossible size")
    parts = []
    while size:
        part = stream.read(min(size, _SEARCH_BYTES))  # a damaged size must not cost its memory
        if not part:
            raise EOFError("it ends in the middle")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(3, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def _snappy(data: bytes) -> bytes:
    return pa.compress(data, "snappy", asbytes=True) + zlib.crc32(data).to_bytes(4, "big")


def _unsnappy(data: bytes) -> bytes:
    size, body = 0, data[:-4]
    for i, byte in enumerate(body[:5]):
        size |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            break
    plain = pa.decompress(body, size, "snappy", asbytes=True)
    if zlib.crc32(plain).to_bytes(4, "big") != data[-4:]:
        raise ValueError("the checksum of the block is wrong")
    return plain


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.compress(data, 3)


def _unzstd(data: bytes) -> bytes:
    import zstandard

    try:
        reader = zstandard.ZstdDecompressor().decompressobj()
        plain = reader.decompress(data)
    except zstandard.ZstdError as e:
        raise ValueError(str(e)) from e
    if not reader.eof:
        raise EOFError("compressed data end in the middle")
    return plain


_CODECS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "null": (lambda data: data, lambda data: data),
    "deflate": (_deflate, lambda data: zlib.decompress(data, -15)),
    "snappy": (_snappy, _unsnappy),
    "zstandard": (_zstd, _unzstd),
    "bzip2": (bz2.compress, bz2.decompress),
    "xz": (lzma.compress, lzma.decompress),
}
