"""The two phases of a sink: what `tiebeam.delivery` asks of one.

A `Writer` makes rows durable but invisible and hands out `Staged` pieces; `publish` makes pieces visible, all together,
and is idempotent: the runner may call it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from tiebeam.dead_letters import Letters
from tiebeam.rows import RowBatch


@dataclass(frozen=True)
class Staged:
    """A durable, invisible piece of output. `handle` is unique; `facts` is whatever the sink's `publish` needs (JSON values)."""

    handle: str
    rows: int
    bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    SCHEMA: ClassVar[pa.Schema] = pa.schema([("handle", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64()), ("facts", pa.string())])

    @staticmethod
    def pack(pieces: Iterable[Staged]) -> RowBatch:
        return RowBatch.from_pylist(
            [dict(handle=s.handle, rows=s.rows, bytes=s.bytes, facts=json.dumps(s.facts)) for s in pieces], schema=Staged.SCHEMA
        )

    @staticmethod
    def unpack(batches: Iterable[RowBatch]) -> list[Staged]:
        rows = [row for batch in batches for row in batch.to_pylist()]
        return sorted((Staged(**{**row, "facts": json.loads(row["facts"])}) for row in rows), key=lambda s: s.handle)


class Writer(Protocol):
    """Stages the rows of one bundle."""

    def write(self, batch: RowBatch) -> Iterable[Letters]:
        """Stages a batch; returns dead letters for the rows that this sink cannot take."""

    def close(self) -> list[Staged]:
        """Makes everything written durable and returns the pieces; none when nothing was written."""

    def abort(self) -> None:
        """Removes what was written; never raises."""


class TwoPhase(Protocol):
    """What a sink does, whatever it writes to; `tiebeam.connectors.Sink` says what each method promises."""

    mode: str
    commit_secs: int
    commit_rows: int
    writers: int

    def ping(self) -> None: ...
    def location(self) -> str: ...
    def writer(self, run_id: str) -> Writer: ...
    def publish(self, run_id: str, staged: list[Staged]) -> bool: ...
    def is_published(self, run_id: str) -> bool: ...
    def discard(self, run_id: str) -> None: ...
