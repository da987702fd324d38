"""A bad network before the emulator of BigQuery: by a seed, requests and answers are lost, delayed, cut, refused, and said to be done.

Both services are passed on, REST and gRPC, in this process. What the emulator does is real; what the client hears of it is not always.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types
from google.rpc import status_pb2

from tiebeam.lab.bigquery import Emulator

POISON = 13
"""Rows whose `n` leaves this remainder by 97 are refused, row by row, as the service refuses what only it can judge."""
_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED)
_ALREADY_EXISTS, _OUT_OF_RANGE = 6, 11
_UNARY = ("pass", "refused", "answer lost", "delayed", "twice")
_APPEND = ("pass", "refused", "said to be refused", "answer lost", "delayed", "cut", "said to be there", "out of range")
_HTTP = ("pass", "refused", "answer lost", "delayed", "truncated")


@dataclass
class Faults:
    """What goes wrong next; calm until a seed is given."""

    share: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    _random: random.Random = field(default_factory=random.Random)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, seed: int, share: float) -> None:
        with self._lock:
            self._random, self.share = random.Random(seed), share

    def next(self, kinds: tuple[str, ...], where: str) -> str:
        with self._lock:
            kind = self._random.choice(kinds) if self._random.random() < self.share else "pass"
            self.seen[f"{where} {kind}"] += 1
        if kind == "delayed":
            time.sleep(0.003)
        return kind

    def code(self) -> grpc.StatusCode:
        with self._lock:
            return self._random.choice(_CODES)


def is_poison(n: int) -> bool:
    return n % 97 == POISON


@contextmanager
def bad_network(emulator: Emulator) -> Iterator[tuple[Emulator, Faults]]:
    """Where a client reaches the emulator through the bad network, and what decides how bad it is."""
    faults = Faults()
    channel = grpc.insecure_channel(emulator.storage, options=[("grpc.max_receive_message_length", -1)])
    server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Passing(channel, faults),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(emulator.rest.removeprefix("http://"), faults))
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Emulator(f"http://127.0.0.1:{http.server_address[1]}", f"127.0.0.1:{port}"), faults
    finally:
        http.shutdown()
        http.server_close()
        server.stop(0).wait(5)
        channel.close()


class _Passing(grpc.GenericRpcHandler):
    """Passes calls of the Storage services on, as bytes."""

    def __init__(self, channel: grpc.Channel, faults: Faults):
        self.channel = channel
        self.faults = faults

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        if name == "AppendRows":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: self._append(requests, context, details.method))
        if name == "ReadRows":
            return grpc.unary_stream_rpc_method_handler(lambda request, _: self.channel.unary_stream(details.method)(request))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._unary(request, context, details.method, name))

    def _unary(self, request: bytes, context: Any, method: str, name: str) -> bytes:
        fault = self.faults.next(_UNARY, name)
        if fault == "refused":
            context.abort(self.faults.code(), "the network refuses")
        try:
            answer = self.channel.unary_unary(method)(request, timeout=60)
            if fault == "twice" and name != "CreateWriteStream":
                answer = self.channel.unary_unary(method)(request, timeout=60)
        except grpc.RpcError as e:
            context.abort(e.code(), e.details())
        if fault == "answer lost":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        return answer

    def _append(self, requests: Iterator[bytes], context: Any, method: str) -> Iterator[bytes]:
        """Request by request, over a connection of its own for each call."""
        import queue

        passed: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = self.channel.stream_stream(method)(iter(passed.get, None))
        schema = b""
        try:
            for request in requests:
                told = types.AppendRowsRequest.deserialize(request)
                schema = told.arrow_rows.writer_schema.serialized_schema or schema
                exact = types.AppendRowsRequest.pb(told).HasField("offset")  # the default stream knows nothing of offsets
                fault = self.faults.next(_APPEND if exact else _APPEND[:-2], "AppendRows")
                if fault == "refused":
                    context.abort(self.faults.code(), "the network refuses")
                if fault == "cut":
                    return
                if fault in ("out of range", "said to be refused"):
                    code = _OUT_OF_RANGE if fault == "out of range" else self.faults.code().value[0]
                    yield _error(told.write_stream, code, fault)
                    continue
                if poisoned := _poisoned(schema, told):
                    yield types.AppendRowsResponse.serialize(poisoned)
                    continue
                passed.put(request)
                answer = next(answers)
                if fault == "answer lost":
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
                there = fault == "said to be there" and not types.AppendRowsResponse.deserialize(answer).error.code
                yield _error(told.write_stream, _ALREADY_EXISTS, "the rows are there") if there else answer
        except grpc.RpcError as e:
            if isinstance(e, grpc.Call):  # else it is the client that has gone
                context.abort(e.code(), e.details())
        finally:
            passed.put(None)
            answers.cancel()


def _error(stream: str, code: int, said: str) -> bytes:
    return types.AppendRowsResponse.serialize(
        types.AppendRowsResponse(write_stream=stream, error=status_pb2.Status(code=code, message=said))
    )


def _poisoned(schema: bytes, told: Any) -> Any | None:
    """The answer of the service to rows that only it can judge; None when there are none."""
    if not told.arrow_rows.rows.serialized_record_batch:
        return None
    batch = pa.ipc.read_record_batch(pa.py_buffer(told.arrow_rows.rows.serialized_record_batch), pa.ipc.read_schema(pa.py_buffer(schema)))
    bad = [i for i, n in enumerate(batch.column("n").to_pylist()) if is_poison(n)] if "n" in batch.schema.names else []
    if not bad:
        return None
    errors = [types.RowError(index=i, code=types.RowError.RowErrorCode.FIELDS_ERROR, message="this row is poison") for i in bad]
    status = status_pb2.Status(code=3, message="rows are refused")
    return types.AppendRowsResponse(write_stream=told.write_stream, error=status, row_errors=errors)


def _handler(upstream: str, faults: Faults) -> type[BaseHTTPRequestHandler]:
    """Passes requests of the REST service on."""

    class Passing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def passed(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            fault = faults.next(_HTTP, self.command)
            if fault == "refused":
                status = random.choice((429, 500, 503))
                return self.answered(status, b'{"error": {"message": "the network refuses", "errors": [{"reason": "backendError"}]}}', [])
            connection = HTTPConnection(upstream, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            connection.request(self.command, self.path, body, {**headers, "Host": self.headers["host"]})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if fault == "answer lost":
                self.close_connection = True
                return None
            told = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("content-length", "transfer-encoding", "connection")]
            return self.answered(answer.status, content, told, cut=fault == "truncated")

        def answered(self, status: int, content: bytes, headers: list[tuple[str, str]], cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = passed  # noqa: N815 as http.server names them

        def log_message(self, *_: Any) -> None:
            pass

    return Passing
