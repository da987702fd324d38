"""Compressed text files: gzip, zstd and bzip2, read with any number of members, and told when one breaks off.

The libraries' own file objects either lose what they had read when a file breaks off (gzip) or do not notice it (zstandard).
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from typing import Any, BinaryIO

from tiebeam.errors import BadFileError, ConfigError, Problem

ENDINGS = {"none": "", "gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2"}

_FEED_BYTES = 1 << 16


class Decompressed:
    """Reads the content of a compressed stream; raises BadFileError where it is damaged or incomplete."""

    def __init__(self, raw: BinaryIO, kind: str, path: str):
        self.raw, self.kind, self.path = raw, kind, path
        self.member: Any = None
        self.fed = b""
        self.ready = memoryview(b"")

    def readinto(self, view: memoryview) -> int:
        while not self.ready:
            if not self._advance():
                return 0
        count = min(len(view), len(self.ready))
        view[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count

    def _advance(self) -> bool:
        self.fed = self.fed or self.raw.read(_FEED_BYTES)
        if self.member is None and self.kind == "gzip":
            self.fed = self.fed.lstrip(b"\0") or self.raw.read(_FEED_BYTES).lstrip(b"\0")  # gzip members may be padded
        if not self.fed:
            if self.member is not None:
                raise BadFileError(f"{self.path} breaks off: its {self.kind} data is incomplete")
            return False
        self.member = self.member or _member(self.kind)
        try:
            self.ready = memoryview(self.member.decompress(self.fed))
        except Exception as e:  # each library has an error of its own
            raise BadFileError(f"{self.path} is damaged: its {self.kind} data cannot be decompressed ({e})") from e
        self.fed = self.member.unused_data if self.member.eof else b""
        if self.member.eof:
            self.member = None
        return True


def _member(kind: str) -> Any:
    if kind == "gzip":
        return zlib.decompressobj(wbits=31)
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    return _zstandard().ZstdDecompressor().decompressobj()


def compressed(stream: BinaryIO, kind: str) -> Any:
    """A stream that compresses into another one, which stays open when this one is closed."""
    if kind == "none":
        return stream
    if kind == "gzip":
        return gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6, mtime=0)
    if kind == "bzip2":
        return bz2.BZ2File(stream, "wb")
    return _zstandard().ZstdCompressor().stream_writer(stream, closefd=False)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(Problem("zstd needs the package zstandard", fix="pip install zstandard")) from None
    return zstandard
