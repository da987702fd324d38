"""A schema registry of Confluent's protocol for tests: what a real one answers to the requests that tiebeam makes.

Karapace, the free one, is not in every package index. https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tiebeam.lab._machine import free_ports


class Registry:
    """Schemas by number and by subject. `down` answers 503 until it is cleared; `password` is asked of everyone when set."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self.schemas: list[tuple[str, str, str]] = []
        self.subjects: dict[str, list[int]] = {}
        self.down = threading.Event()
        self.password: str | None = None
        self.asked = 0

    def register(self, subject: str, schema: Any) -> int:
        return self.register_text(subject, json.dumps(schema))

    def register_text(self, subject: str, text: str, kind: str = "AVRO", references: Any = ()) -> int:
        one = (kind, text, json.dumps(list(references)))
        if one not in self.schemas:
            self.schemas.append(one)
        number = self.schemas.index(one) + 1
        versions = self.subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return number

    def posted(self, subject: str, body: Any) -> tuple[int, Any]:
        """Registers; refuses an Avro schema that cannot read what the last one wrote, as a registry does that is set to BACKWARD."""
        kind, text = body.get("schemaType", "AVRO"), body["schema"]
        if kind == "AVRO" and subject in self.subjects:
            before = self.told(self.subjects[subject][-1])["schema"]
            if trouble := unreadable(json.loads(text), json.loads(before)):
                return 409, {"error_code": 409, "message": f"Schema being registered is incompatible with an earlier schema: {trouble}"}
        return 200, {"id": self.register_text(subject, text, kind, body.get("references", ()))}

    def told(self, number: int) -> dict[str, Any]:
        kind, text, references = self.schemas[number - 1]
        told: dict[str, Any] = {"schema": text} | ({} if kind == "AVRO" else {"schemaType": kind})
        return told | ({"references": json.loads(references)} if references != "[]" else {})

    def answer(self, method: str, path: str, body: Any, authorization: str | None) -> tuple[int, Any]:
        self.asked += 1
        if self.down.is_set():
            return 503, {"error_code": 50003, "message": "the leader is not known"}
        wanted = None if self.password is None else "Basic " + base64.b64encode(f"user:{self.password}".encode()).decode()
        if authorization != wanted:
            return 401, {"error_code": 40101, "message": "Unauthorized"}
        match [method, *path.strip("/").split("/")]:
            case ["GET", "schemas", "ids", number] if 0 < int(number) <= len(self.schemas):
                return 200, self.told(int(number))
            case ["GET", "schemas", "ids", _]:
                return 404, {"error_code": 40403, "message": "Schema not found"}
            case ["POST", "subjects", subject, "versions"]:
                return self.posted(subject, body)
            case ["GET", "subjects", subject, "versions", version] if subject in self.subjects:
                known = self.subjects[subject]
                if version != "latest" and not 0 < int(version) <= len(known):
                    return 404, {"error_code": 40402, "message": "Version not found"}
                place = len(known) if version == "latest" else int(version)
                return 200, {"subject": subject, "id": known[place - 1], "version": place} | self.told(known[place - 1])
        return 404, {"error_code": 40401, "message": "Subject not found"}


def unreadable(reader: Any, writer: Any) -> str | None:
    """Why a record written with one schema cannot be read with another, field by field (Avro 1.12, schema resolution)."""
    written = {field["name"]: field["type"] for field in writer["fields"]}
    for field in reader["fields"]:
        if field["name"] not in written and "default" not in field:
            return f"READER_FIELD_MISSING_DEFAULT_VALUE: {field['name']}"
        if field["name"] in written and written[field["name"]] != field["type"]:
            return f"TYPE_MISMATCH: {field['name']}"
    return None


@contextmanager
def running(port: int | None = None) -> Iterator[Registry]:
    """A registry that ends with the block."""
    registry = Registry(port or free_ports(1)[0])

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, told = registry.answer(self.command, self.path, json.loads(body or b"null"), self.headers.get("Authorization"))
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve  # noqa: N815 - names of http.server

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", int(registry.url.rpartition(":")[2])), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
