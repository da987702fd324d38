"""A stand-in for Dataflow's REST service and for Cloud Storage, on this machine: keeps what is uploaded and submitted, and serves it back.

It does what a submission by Beam and `tiebeam status|drain|cancel|savepoint|update` ask for, as the published APIs describe it:
https://cloud.google.com/dataflow/docs/reference/rest and https://cloud.google.com/storage/docs/json_api. It runs no job.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

TOKEN = "token-of-the-stand-in"
WHEN = "2026-11-27T00:00:00.000Z"


@dataclass
class Dataflow:
    """What was uploaded, by `bucket/name`, and which jobs were submitted, by id; each as its request had it."""

    address: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, str] = field(default_factory=dict)

    def flags(self) -> list[str]:
        """The flags that submit to it."""
        return [
            "--runner=DataflowRunner",
            "--project=some-project",
            "--region=europe-west1",
            "--temp_location=gs://work/temp",
            "--staging_location=gs://work/staging",
            f"--dataflow_endpoint=http://{self.address}",
        ]

    def env(self, folder: Path) -> dict[str, str]:
        """What points a process here: the address of the storage, and an account whose tokens come from here too."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        kind = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(*kind).decode()
        account = {"type": "service_account", "project_id": "some-project", "private_key_id": "1", "private_key": key, "client_id": "1"}
        account |= {"client_email": "someone@some-project.iam.gserviceaccount.com", "token_uri": f"http://{self.address}/token"}
        (folder / "account.json").write_text(json.dumps(account))
        return {"STORAGE_EMULATOR_HOST": f"http://{self.address}", "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "account.json")}

    def stored(self, name: str) -> dict[str, Any]:
        """An object as the service describes it."""
        bucket, _, key = name.partition("/")
        data = self.objects[name]
        crc = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()  # without it a client uploads for ever
        about = {"kind": "storage#object", "id": f"{name}/1", "bucket": bucket, "name": key, "generation": "1", "metageneration": "1"}
        return {**about, "size": str(len(data)), "crc32c": crc, "etag": "1", "updated": WHEN, "timeCreated": WHEN}


@contextmanager
def serving() -> Iterator[Dataflow]:
    """The services, until the end of the block."""
    state = Dataflow()

    class Handler(_Handler):
        service = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"localhost:{server.server_port}"  # a client of Dataflow speaks REST to a name like this
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Dataflow

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts.path.startswith("/v1b3/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.say({"error": {"code": 401, "message": "who are you?"}}, 401)
            return
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {parts.path}"):
                method(self, query, body, *map(unquote, match.groups()))
                return
        self.say({"error": {"code": 501, "message": f"not served here: {self.command} {self.path}"}}, 501)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def say(self, told: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def missing(self, what: str) -> None:
        self.say({"error": {"code": 404, "message": f"{what} not found"}}, 404)

    def token(self, query: dict[str, str], body: bytes) -> None:
        self.say({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600})

    # Cloud Storage

    def bucket(self, query: dict[str, str], body: bytes, name: str) -> None:
        self.say({"kind": "storage#bucket", "id": name, "name": name, "location": "EU", "projectNumber": "1"})

    def list(self, query: dict[str, str], body: bytes, bucket: str) -> None:
        prefix = f"{bucket}/{query.get('prefix', '')}"
        found = [self.service.stored(name) for name in sorted(self.service.objects) if name.startswith(prefix)]
        self.say({"kind": "storage#objects", "items": found})

    def object(self, query: dict[str, str], body: bytes, bucket: str, key: str) -> None:
        name = f"{bucket}/{key}"
        if name not in self.service.objects:
            self.missing(name)
        elif query.get("alt") == "media":
            self.media(query, body, bucket, key)
        else:
            self.say(self.service.stored(name))

    def media(self, query: dict[str, str], body: bytes, bucket: str, key: str) -> None:
        name = f"{bucket}/{key}"
        if name not in self.service.objects:
            self.missing(name)
            return
        data, told = self.service.objects[name], self.service.stored(name)
        headers = {"x-goog-hash": f"crc32c={told['crc32c']}", "x-goog-generation": "1", "Content-Type": "application/octet-stream"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            part = data[start : end + 1]
            self.say(part, 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})
        else:
            self.say(data, 200, headers)

    def delete(self, query: dict[str, str], body: bytes, bucket: str, key: str) -> None:
        if self.service.objects.pop(f"{bucket}/{key}", None) is None:
            self.missing(key)
        else:
            self.say(b"", 204)

    def rewrite(self, query: dict[str, str], body: bytes, bucket: str, key: str, to_bucket: str, to_key: str) -> None:
        self.service.objects[f"{to_bucket}/{to_key}"] = data = self.service.objects[f"{bucket}/{key}"]
        size = str(len(data))
        told = self.service.stored(f"{to_bucket}/{to_key}")
        self.say({"kind": "storage#rewriteResponse", "done": True, "objectSize": size, "totalBytesRewritten": size, "resource": told})

    def upload(self, query: dict[str, str], body: bytes, bucket: str) -> None:
        if query["uploadType"] == "resumable":
            number = str(len(self.service.uploads))
            self.service.uploads[number] = f"{bucket}/{query.get('name') or json.loads(body)['name']}"
            self.service.objects.pop(self.service.uploads[number], None)
            self.say({}, 200, {"Location": f"http://{self.service.address}/upload/{number}"})
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        about, data = (part.get_payload(decode=True) for part in BytesParser().parsebytes(head + body).get_payload())
        name = f"{bucket}/{json.loads(about)['name']}"
        self.service.objects[name] = data
        self.say(self.service.stored(name))

    def resume(self, query: dict[str, str], body: bytes, number: str) -> None:
        name = self.service.uploads[number]
        self.service.objects[name] = self.service.objects.get(name, b"") + body
        if self.headers.get("Content-Range", "").endswith("/*"):
            last = len(self.service.objects[name]) - 1
            self.say(b"", 308, {"Range": f"bytes=0-{last}"} if last >= 0 else {})
        else:
            self.say(self.service.stored(name))

    # Dataflow

    def create(self, query: dict[str, str], body: bytes) -> None:
        job = json.loads(body)
        job["type"] = {1: "JOB_TYPE_BATCH", 2: "JOB_TYPE_STREAMING"}.get(job["type"], job["type"])  # the service tells names
        alike = [j for j in self.service.jobs.values() if j["name"] == job["name"] and j["currentState"] == "JOB_STATE_RUNNING"]
        if replaced := job.get("replaceJobId"):
            if refusal := self._unlike(self.service.jobs[replaced], job):
                self.say({"error": {"code": 400, "message": refusal}}, 400)
                return
            self.service.jobs[replaced]["currentState"] = "JOB_STATE_UPDATED"
        elif alike:
            self.say(alike[0])
            return
        told = {"id": f"2026-11-27_00_00_00-{len(self.service.jobs)}", "currentState": "JOB_STATE_RUNNING", "createTime": WHEN}
        self.service.jobs[told["id"]] = {**job, **told, "currentStateTime": WHEN}
        self.say(self.service.jobs[told["id"]])

    def _unlike(self, old: dict[str, Any], new: dict[str, Any]) -> str | None:
        """Says why a job cannot take the state of another over: a stateful step of the old one has no namesake, nor a mapping."""
        mapping = new.get("transformNameMapping", {})
        labels = self.labels(new)
        gone = sorted(label for label in self.labels(old) if mapping.get(label, label) not in labels)
        return f"Workflow failed. The new job is missing steps {', '.join(gone[:3])}" if gone else None

    def labels(self, job: dict[str, Any]) -> set[str]:
        """The labels of a job's steps, read from the graph that it staged."""
        from apache_beam.portability.api import beam_runner_api_pb2

        url = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
        graph = beam_runner_api_pb2.Pipeline.FromString(self.service.objects[url.removeprefix("gs://")])
        return {t.unique_name for t in graph.components.transforms.values() if not t.subtransforms}

    def jobs(self, query: dict[str, str], body: bytes) -> None:
        self.say({"jobs": list(self.service.jobs.values())})

    def job(self, query: dict[str, str], body: bytes, name: str) -> None:
        if name in self.service.jobs:
            self.say(self.service.jobs[name])
        else:
            self.missing(f"(1): Information about job {name} could")

    def change(self, query: dict[str, str], body: bytes, name: str) -> None:
        wanted = json.loads(body)["requestedState"]
        self.service.jobs[name] |= {"requestedState": wanted, "currentState": wanted.replace("CANCELLED", "CANCELLING")}
        self.say(self.service.jobs[name])

    def messages(self, query: dict[str, str], body: bytes, name: str) -> None:
        self.say({})

    def snapshot(self, query: dict[str, str], body: bytes, name: str) -> None:
        self.say({"id": "snapshot-1", "sourceJobId": name, "state": "PENDING", "ttl": json.loads(body)["ttl"]})


_REGION = r"/v1b3/projects/[^/]+/locations/[^/]+"
_ROUTES: list[tuple[str, Any]] = [
    (r"POST /token", _Handler.token),
    (r"GET /storage/v1/b/([^/]+)", _Handler.bucket),
    (r"GET /storage/v1/b/([^/]+)/o", _Handler.list),
    (r"GET /storage/v1/b/([^/]+)/o/([^/]+)", _Handler.object),
    (r"GET /download/storage/v1/b/([^/]+)/o/([^/]+)", _Handler.media),
    (r"DELETE /storage/v1/b/([^/]+)/o/([^/]+)", _Handler.delete),
    (r"POST /storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", _Handler.rewrite),
    (r"POST /upload/storage/v1/b/([^/]+)/o", _Handler.upload),
    (r"PUT /upload/(\d+)", _Handler.resume),
    (rf"POST {_REGION}/jobs", _Handler.create),
    (rf"GET {_REGION}/jobs", _Handler.jobs),
    (rf"GET {_REGION}/jobs/([^/]+)", _Handler.job),
    (rf"PUT {_REGION}/jobs/([^/]+)", _Handler.change),
    (rf"GET {_REGION}/jobs/([^/]+)/messages", _Handler.messages),
    (rf"POST {_REGION}/jobs/([^/:]+):snapshot", _Handler.snapshot),
]
