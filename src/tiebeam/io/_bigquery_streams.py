"""Streams of the Storage Write API: rows appended at offsets, so that what is sent again is taken once, and committed together.

https://cloud.google.com/bigquery/docs/write-api: a PENDING stream shows nothing until it is committed; a commit of several streams of a
table is one transaction; a stream is committed once at most, and says so when asked again.
"""

from __future__ import annotations

import queue
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.io._bigquery_client import TRANSIENT, Clients, Pauses, TableName, is_transient
from tiebeam.rows import RowBatch

REQUEST_BYTES = 9_000_000
"""A request may have 10 MB; what comes around the rows is in the difference."""
_ALREADY_EXISTS, _OUT_OF_RANGE, _INVALID_ARGUMENT = 6, 11, 3
_NEW_COLUMN_NOT_SEEN = "SCHEMA_MISMATCH_EXTRA_FIELDS"


@dataclass(frozen=True)
class Refused:
    """Rows that the service does not take, with its reason for each; `rows` are numbered as they were appended."""

    rows: list[int]
    reasons: list[str]


@dataclass
class _Part:
    """Some rows of one request: which of the appended rows they are, and the rows."""

    numbers: list[int] | range
    batch: RowBatch

    def without(self, bad: set[int]) -> _Part:
        kept = [i for i in range(self.batch.num_rows) if i not in bad]
        return _Part([self.numbers[i] for i in kept], self.batch.take(pa.array(kept, pa.int64())))

    def halves(self) -> list[_Part]:
        half = self.batch.num_rows // 2
        return [_Part(self.numbers[:half], self.batch.slice(0, half)), _Part(self.numbers[half:], self.batch.slice(half))]


class Appender:
    """Appends rows to a stream: at offsets, each once, or (`exact=False`) to the default stream, at least once."""

    def __init__(self, clients: Clients, stream: str, encode: Any, *, exact: bool):
        self.clients = clients
        self.stream = stream
        self.encode = encode
        self.exact = exact
        self.limit = REQUEST_BYTES if encode is as_arrow else REQUEST_BYTES // 4  # protocol buffers may be larger
        self.taken = 0
        self.bytes = 0
        self._call: _Call | None = None

    def append(self, batch: RowBatch) -> list[Refused]:
        """Appends a batch, and returns once the service has it; which rows it refuses, and why.

        One request is on its way at a time: one that comes late on a connection given up is then never at the offset of another.
        """
        waiting = deque(self._parts(_Part(range(batch.num_rows), batch)))
        refused = [
            Refused([p.numbers[0]], [f"a row of {p.batch.nbytes:,} bytes is larger than a request"]) for p in waiting if self._large(p)
        ]
        waiting = deque(part for part in waiting if not self._large(part))
        pauses = self._pauses()
        while waiting:
            try:
                call = self._call = self._call or _Call(self.clients, self.stream)
                call.send(self._request(waiting[0].batch))
                trouble = self._answer(call.receive(), waiting, refused)
            except Exception as e:
                if not _is_passing(e):
                    raise
                trouble = str(e) or type(e).__name__
            if trouble is None:
                pauses = self._pauses()
                continue
            self.close()
            if trouble:
                pauses.wait(f"rows to {self.stream}", trouble)
        return refused

    def close(self) -> None:
        """Ends the connection; what is appended next opens another."""
        if self._call:
            self._call.close()
            self._call = None

    def _pauses(self) -> Pauses:
        return Pauses(self.clients.connection.patience_secs)

    def _parts(self, part: _Part) -> Iterator[_Part]:
        """Cuts rows into requests."""
        if part.batch.nbytes <= self.limit or part.batch.num_rows == 1:
            yield part
        else:
            for half in part.halves():
                yield from self._parts(half)

    def _large(self, part: _Part) -> bool:
        return part.batch.num_rows == 1 and part.batch.nbytes > REQUEST_BYTES

    def _request(self, batch: RowBatch) -> Any:
        from google.cloud.bigquery_storage_v1 import types

        request = types.AppendRowsRequest(**self.encode(batch), write_stream=self.stream, trace_id="tiebeam")
        if self.exact:
            request.offset = self.taken
        return request

    def _answer(self, answer: Any, waiting: deque[_Part], refused: list[Refused]) -> str | None:
        """What an answer to the first part says: None rows are taken; "" some were refused and left out; else what is wrong for now."""
        code, said = answer.error.code, answer.error.message
        if code == 0 or (code == _ALREADY_EXISTS and self.exact):
            part = waiting.popleft()
            self.taken += part.batch.num_rows
            self.bytes += part.batch.nbytes
            return None
        if answer.row_errors:
            part, bad = waiting.popleft(), {int(e.index): e.message for e in answer.row_errors}
            refused.append(Refused([part.numbers[i] for i in sorted(bad)], [bad[i] for i in sorted(bad)]))
            left = part.without(set(bad))
            waiting.extendleft([left] if left.batch.num_rows else [])
            return ""
        if code == _INVALID_ARGUMENT and _NEW_COLUMN_NOT_SEEN not in said:
            part = waiting.popleft()
            if part.batch.num_rows == 1:
                refused.append(Refused([part.numbers[0]], [said]))
            else:
                waiting.extendleft(reversed(part.halves()))
            return ""
        if code == _OUT_OF_RANGE or _NEW_COLUMN_NOT_SEEN in said or _name_of(code) in TRANSIENT:
            return said or _name_of(code)
        raise _lasting(code, said, self.stream)


def _lasting(code: int, said: str, stream: str) -> Exception:
    table = stream.partition("/streams/")[0]
    if _name_of(code) == "FAILED_PRECONDITION":
        return TransientError(f"the stream of {table} was ended by somebody else: {said}")
    return ConfigError(Problem(f"BigQuery refuses rows: {said or _name_of(code)}", table, "see the reason"))


def _is_passing(error: Exception) -> bool:
    import grpc

    if isinstance(error, grpc.RpcError):
        code = error.code() if hasattr(error, "code") else None
        if code is not None and code.name not in TRANSIENT | {"OUT_OF_RANGE", "ALREADY_EXISTS"}:
            raise _lasting(code.value[0], error.details() if hasattr(error, "details") else str(error), "BigQuery")
        return True
    return is_transient(error)


def _name_of(code: int) -> str:
    import grpc

    return next((c.name for c in grpc.StatusCode if c.value[0] == code), f"code {code}")


class _Call:
    """One connection: requests go in, answers come out in their order; an answer that does not come ends it."""

    def __init__(self, clients: Clients, stream: str):
        self.secs = clients.connection.answer_secs
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        routed = (("x-goog-request-params", f"write_stream={stream}"),)
        self._answers = clients.writing.transport.append_rows(iter(self._requests.get, None), metadata=routed)

    def send(self, request: Any) -> None:
        self._requests.put(request)

    def receive(self) -> Any:
        watch = threading.Timer(self.secs, self._answers.cancel)
        watch.daemon = True
        watch.start()
        try:
            answer = next(self._answers, None)
        finally:
            watch.cancel()
        if answer is None:
            raise TransientError("the connection ended without an answer")
        return answer

    def close(self) -> None:
        self._requests.put(None)
        self._answers.cancel()


def as_arrow(batch: RowBatch) -> dict[str, Any]:
    """Rows as an append request takes them, in Arrow's format."""
    schema = batch.schema.serialize().to_pybytes()
    return {
        "arrow_rows": {"writer_schema": {"serialized_schema": schema}, "rows": {"serialized_record_batch": batch.serialize().to_pybytes()}}
    }


def create(clients: Clients, table: TableName) -> str:
    """Opens a PENDING stream, and gives its name. One whose answer was lost is never committed, and is removed by the service."""
    from google.cloud.bigquery_storage_v1 import types

    pending = types.WriteStream(type_=types.WriteStream.Type.PENDING)
    secs = clients.connection.answer_secs

    def made() -> str:
        return clients.writing.create_write_stream(parent=table.path, write_stream=pending, retry=None, timeout=secs).name

    return clients.again(f"a stream of {table}", made)


def finalize(clients: Clients, stream: str, rows: int) -> None:
    """Ends a stream; raises TransientError when it does not hold what was appended to it."""
    secs = clients.connection.answer_secs
    held = clients.again(f"ending {stream}", lambda: clients.writing.finalize_write_stream(name=stream, retry=None, timeout=secs).row_count)
    if held != rows:
        raise TransientError(f"{stream} holds {held:,} rows, and {rows:,} were appended")


class GoneError(Exception):
    """Says that streams are neither committed nor there to be committed."""


def commit(clients: Clients, streams: Iterable[str]) -> bool:
    """Commits streams, those of one table together; False when all were committed before. Raises GoneError."""
    by_table: dict[str, list[str]] = {}
    for stream in streams:
        by_table.setdefault(stream.partition("/streams/")[0], []).append(stream)
    committed = [_commit(clients, table, named) for table, named in sorted(by_table.items())]
    return any(committed)


def _commit(clients: Clients, table: str, streams: list[str]) -> bool:
    secs = clients.connection.answer_secs
    pauses = Pauses(clients.connection.patience_secs)
    while True:
        done = clients.again(
            f"commit to {table}",
            lambda: clients.writing.batch_commit_write_streams(
                request={"parent": table, "write_streams": streams}, retry=None, timeout=secs
            ),
        )
        errors = {error.entity: error for error in done.stream_errors}
        if done.commit_time and not errors:
            return True
        already = {e.entity for e in done.stream_errors if e.code.name == "STREAM_ALREADY_COMMITTED"}
        if all(stream in already or is_committed(clients, stream) for stream in streams):
            return False
        said = next((f"{e.code.name}: {e.error_message}" for e in errors.values()), "no commit time")
        if re.search("NOT_FOUND|INVALID_STREAM|ALREADY_COMMITTED", said):
            raise GoneError(f"{table}: {said}")
        pauses.wait(f"commit to {table}", said)


def is_committed(clients: Clients, stream: str) -> bool:
    """Whether a stream is there and committed."""
    from google.api_core.exceptions import NotFound

    secs = clients.connection.answer_secs

    def committed() -> bool:
        try:
            return bool(clients.writing.get_write_stream(name=stream, retry=None, timeout=secs).commit_time)
        except NotFound:
            return False

    return clients.again(f"asking for {stream}", committed)
