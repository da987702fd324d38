"""A proxy in front of an HTTP service, which refuses or loses what a test chooses."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Judge = Callable[[str, str, bool], int | None]
"""Told the method, the path, and whether the service has answered already, it gives the status to answer instead, or None."""


@contextmanager
def proxy(url: str, judge: Judge) -> Iterator[str]:
    """The URL of a proxy of a service."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else None
            if (status := judge(self.command, self.path, False)) is not None:
                return self._answer(status, {}, b'{"error": {"message": "the proxy says no"}}')
            told = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            request = urllib.request.Request(url + self.path, body, told, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    code, headers, data = answer.status, dict(answer.headers), answer.read()
            except urllib.error.HTTPError as e:
                code, headers, data = e.code, dict(e.headers), e.read()
            if (status := judge(self.command, self.path, True)) is not None:
                return self._answer(status, {}, b'{"error": {"message": "the answer was lost"}}')
            return self._answer(code, headers, data)

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass_on  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
