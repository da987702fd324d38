"""Publishes rows to a topic, at least once: staged as files of messages, and then sent, piece by piece.

    <staging>/staged/<topic and run>/00000-….arrow         messages of one piece, with names of their own
    <staging>/staged/<topic and run>/00000-….arrow.sent    all of this piece was taken by the service
    <staging>/published/<topic>/<run>.json                 all of this run was

The service has no transactions: who dies after a message was taken and before that is noted sends at most one piece again, each message
under the `row_id` that it had. https://cloud.google.com/pubsub/quotas#resource_limits
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.io._as_text import finite_pieces, json_lines
from tiebeam.io._folder import draft_in, folder_at
from tiebeam.io._publication import ORPHAN_SECS, SWEEP_SECS, LostPiecesError, safe
from tiebeam.io._pubsub_client import Connection, is_for_now, told
from tiebeam.rows import RowBatch
from tiebeam.staging import Staged

ROW_ID = "row_id"
MAX_MESSAGE_BYTES = 9_900_000
REQUEST_BYTES, REQUEST_MESSAGES = 9_900_000, 1000
PIECE_ROWS, PIECE_BYTES = 20_000, 32 << 20
SEND_SECS = 60.0
SIDE_BY_SIDE = 4
MAX_ATTRIBUTE_BYTES = 1024

MESSAGES = pa.schema([("data", pa.binary()), ("attributes", pa.string()), ("ordering_key", pa.string())])

_swept: dict[str, float] = {}


@dataclass(frozen=True)
class Target:
    """Where messages go, and how rows become messages."""

    connection: Connection
    topic: str
    step: str
    staging: str
    format: str = "json"
    attributes: tuple[str, ...] = ()
    ordering_key: str | None = None
    id_column: str | None = None

    def messages(self, rows: RowBatch) -> Iterator[RowBatch | Letters]:
        """Rows as messages (`MESSAGES`), and those that the service would not take."""
        for piece in finite_pieces(rows) if self.format == "json" else [rows]:
            messages = self._encoded(piece)
            bad = _unfit(messages)
            if bad:
                lines = sorted(bad)
                yield letters_of_rows(self.step, piece.take(pa.array(lines)), [bad[i][0] for i in lines], [bad[i][1] for i in lines])
                kept = np.ones(piece.num_rows, bool)
                kept[lines] = False
                messages = messages.filter(pa.array(kept))
            if messages.num_rows:
                yield messages

    def _encoded(self, rows: RowBatch) -> RowBatch:
        body = rows.select([name for name in rows.schema.names if name not in self.attributes])
        data = json_lines(body) if self.format == "json" else rows.column("data").cast(pa.binary())
        if body.num_columns == 0:
            data = pa.array([b"{}"] * rows.num_rows, pa.binary())
        ids = _texts(rows.column(self.id_column)) if self.id_column is not None else [None] * rows.num_rows
        own = f"{uuid.uuid4().hex}-"
        columns = {name: _texts(rows.column(name)) for name in self.attributes}
        heads = []
        for i, given in enumerate(ids):
            head = {name: texts[i] for name, texts in columns.items() if texts[i] is not None}
            heads.append(json.dumps({**head, ROW_ID: given if given is not None else f"{own}{i}"}, ensure_ascii=False))
        keys = pa.array(_texts(rows.column(self.ordering_key)), pa.string()) if self.ordering_key else pa.nulls(rows.num_rows, pa.string())
        return RowBatch.from_arrays([data, pa.array(heads, pa.string()), pc.fill_null(keys, "")], schema=MESSAGES)

    def trouble(self, schema: pa.Schema) -> Problem | None:
        """Why rows of a schema cannot become messages."""
        there = ", ".join(schema.names)
        if self.format == "raw" and "data" not in schema.names:
            return Problem("there is no column 'data', which raw messages hold", "format", f"the rows have: {there}")
        named = [("attributes", n) for n in self.attributes] + [("ordering_key", self.ordering_key), ("id_column", self.id_column)]
        for where, name in named:
            if name is not None and name not in schema.names:
                return Problem(f"there is no column {name!r}", where, f"the rows have: {there}")
        return None


def _texts(column: pa.Array) -> list[str | None]:
    return column.cast(pa.string()).to_pylist()


def _unfit(messages: RowBatch) -> dict[int, tuple[str, str]]:
    """The rows that the service would refuse, and why."""
    sizes = pc.add(pc.binary_length(messages.column("data")), pc.binary_length(messages.column("attributes")))
    bad: dict[int, tuple[str, str]] = {}
    for i in np.flatnonzero(pc.fill_null(pc.greater(sizes, MAX_MESSAGE_BYTES), False).to_numpy(zero_copy_only=False)).tolist():
        bad[i] = "too_large", f"{sizes[i].as_py():,} bytes, more than a message holds ({MAX_MESSAGE_BYTES:,})"
    for i in np.flatnonzero(messages.column("data").is_null().to_numpy(zero_copy_only=False)).tolist():
        bad[i] = "no_value", "data is absent"
    long = pc.greater(pc.binary_length(messages.column("attributes")), MAX_ATTRIBUTE_BYTES).to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(long).tolist():
        heads = json.loads(messages.column("attributes")[i].as_py())
        if large := [name for name, value in heads.items() if len(value.encode()) > MAX_ATTRIBUTE_BYTES]:
            bad[i] = "bad_attribute", f"{large[0]} has more than {MAX_ATTRIBUTE_BYTES:,} bytes"
    keys = pc.greater(pc.binary_length(messages.column("ordering_key")), MAX_ATTRIBUTE_BYTES).to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(keys).tolist():
        bad[i] = "bad_key", f"the ordering key has more than {MAX_ATTRIBUTE_BYTES:,} bytes"
    return bad


class StagingWriter:
    """Writes messages to files of a bounded size; what is published again after a crash is one of them at most."""

    def __init__(self, target: Target, run_id: str):
        self.target = target
        self.folder = folder_at(target.staging)
        self.place = _staged(target, run_id)
        self.parts: list[RowBatch] = []
        self.done: list[Staged] = []

    def write(self, batch: RowBatch) -> Iterator[Letters]:
        if problem := self.target.trouble(batch.schema):
            raise ConfigError(problem)
        for start in range(0, batch.num_rows, PIECE_ROWS):
            for item in self.target.messages(batch.slice(start, PIECE_ROWS)):
                if isinstance(item, Letters):
                    yield item
                else:
                    self.parts.append(item)
            if sum(p.num_rows for p in self.parts) >= PIECE_ROWS or sum(p.nbytes for p in self.parts) >= PIECE_BYTES:
                self._end()

    def _end(self) -> None:
        if not self.parts:
            return
        name = f"{self.place}/{len(self.done):05}-{uuid.uuid4().hex}.arrow"  # pieces are published in the order of their names
        stream = self.folder.open(name)
        with pa.ipc.new_stream(stream, MESSAGES, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
            for part in self.parts:
                file.write_batch(part)
        self.folder.seal(stream)
        self.done.append(Staged(name, sum(p.num_rows for p in self.parts), sum(p.nbytes for p in self.parts)))
        self.parts = []

    def close(self) -> list[Staged]:
        self._end()
        self.folder.sync([piece.handle for piece in self.done])
        return self.done

    def abort(self) -> None:
        with contextlib.suppress(Exception):
            self.folder.remove([piece.handle for piece in self.done])


def publish(target: Target, run_id: str, staged: list[Staged]) -> bool:
    """Publishes the pieces that are not published yet; False when all were."""
    folder, marker = folder_at(target.staging), _published(target, run_id)
    if folder.exists(marker):
        discard(target, run_id)
        return False
    present = set(folder.names(_staged(target, run_id)))
    with Sending(target) as sending:
        for piece in staged:
            if f"{piece.handle}.sent" in present:
                continue
            if piece.handle not in present:
                if folder.exists(marker):
                    return False  # a twin has published this run, and removed what we staged
                raise LostPiecesError(f"run {run_id!r}: {folder.path(piece.handle)} with {piece.rows} rows is neither staged nor sent")
            for messages in pa.ipc.open_stream(pa.py_buffer(folder.read(piece.handle))):
                sending.send(messages)
            folder.create(f"{piece.handle}.sent", b"", draft_in(_staged(target, run_id)))
    note = json.dumps({"topic": target.topic, "rows": sum(piece.rows for piece in staged)}).encode()
    done = folder.create(marker, note, draft_in(_staged(target, run_id)))
    discard(target, run_id)
    _sweep(target)
    return done


def is_published(target: Target, run_id: str) -> bool:
    return folder_at(target.staging).exists(_published(target, run_id))


def discard(target: Target, run_id: str) -> None:
    """Removes what a run has staged."""
    folder, place = folder_at(target.staging), _staged(target, run_id)
    folder.remove(folder.names(place))
    folder.prune(place)


def trouble(target: Target) -> str | None:
    """Says what forbids staging; None when nothing does."""
    return folder_at(target.staging).trouble()


def _sweep(target: Target) -> None:
    """Removes what lay about for a week: pieces of dead bundles, and notes of runs that nobody asks for any more."""
    folder, now = folder_at(target.staging), time.monotonic()
    if now > _swept.get(folder.root, -SWEEP_SECS) + SWEEP_SECS:
        _swept[folder.root] = now
        folder.remove([*folder.older("staged", ORPHAN_SECS), *folder.older("published", ORPHAN_SECS)])


def _staged(target: Target, run_id: str) -> str:
    return f"staged/{safe(f'{target.topic}/{run_id}')}"


def _published(target: Target, run_id: str) -> str:
    return f"published/{safe(target.topic)}/{safe(run_id)}.json"


class Sending:
    """Sends messages in large requests, several at once; those of one ordering key one after the other."""

    def __init__(self, target: Target):
        self.target = target
        self.client = target.connection.publisher()
        self.pool = ThreadPoolExecutor(SIDE_BY_SIDE)

    def __enter__(self) -> Sending:
        return self

    def __exit__(self, *_: Any) -> None:
        self.pool.shutdown(cancel_futures=True)

    def send(self, messages: RowBatch) -> None:
        """Returns once the service has taken all; raises TransientError or ConfigError when it has not."""
        keys = messages.column("ordering_key").dictionary_encode()
        numbers = keys.indices.to_numpy(zero_copy_only=False)
        waiting = []
        for number, key in enumerate(keys.dictionary.to_pylist()):
            own = messages.filter(pa.array(numbers == number))
            if key:
                waiting.append(self.pool.submit(self._in_order, own))
            else:
                waiting += [self.pool.submit(self._request, request) for request in _requests(own)]
        for one in waiting:
            one.result()

    def _in_order(self, messages: RowBatch) -> None:
        for request in _requests(messages):
            self._request(request)

    def _request(self, messages: RowBatch) -> None:
        from google.api_core.exceptions import GoogleAPIError
        from google.api_core.retry import Retry
        from google.pubsub_v1.types import PublishRequest

        request = PublishRequest(topic=self.target.topic)
        added = PublishRequest.pb(request).messages
        columns = [messages.column(name).to_pylist() for name in MESSAGES.names]
        for data, heads, key in zip(*columns, strict=True):
            added.add(data=data, attributes=json.loads(heads), ordering_key=key)
        try:
            self.client.publish(request=request, timeout=SEND_SECS, retry=Retry(predicate=is_for_now, initial=0.2, timeout=SEND_SECS))
        except GoogleAPIError as e:
            raise told(e, f"the topic {self.target.topic}", "topic") from None


def _requests(messages: RowBatch) -> Iterable[RowBatch]:
    """Cuts messages so that a request takes each piece."""
    sizes = pc.add(pc.binary_length(messages.column("data")), pc.binary_length(messages.column("attributes"))).to_numpy() + 1100
    start, size = 0, 0
    for i, one in enumerate(sizes.tolist()):
        if i > start and (size + one > REQUEST_BYTES or i - start >= REQUEST_MESSAGES):
            yield messages.slice(start, i - start)
            start, size = i, 0
        size += one
    if len(sizes):
        yield messages.slice(start)
