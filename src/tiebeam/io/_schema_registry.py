"""Schema registries of Confluent's protocol: schemas by their number, and the frame in front of a payload that says which it has.

A framed payload is a zero, four bytes with the number of its schema, and the datum.
https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.options import Secret

TRIES = 8
TIMEOUT_SECS = 10


class UnknownSchemaError(Exception):
    """Says that a registry does not know a schema."""


class RegistryError(TransientError):
    """Says that a registry cannot be reached, or refuses to answer: its status, and what it says, where it answered."""

    def __init__(self, message: str, status: int = 0, said: str = ""):
        super().__init__(message)
        self.status, self.said = status, said


@dataclass
class SchemaRegistry:
    """A registry at a URL; what it says of a number never changes, so it is asked once."""

    url: str
    user: str | None = None
    password: str | None = None
    known: dict[int, tuple[str, Any]] = field(default_factory=dict)
    references: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    @staticmethod
    def at(url: str, user: str | None, password: Secret | None) -> SchemaRegistry:
        """A registry whose password is a reference."""
        return SchemaRegistry(url, user, password.resolve() if password is not None else None)

    def schema(self, number: int) -> tuple[str, Any]:
        """The kind (AVRO, JSON, PROTOBUF) and the schema of a number; raises UnknownSchemaError when there is none.

        A registry that is down is asked again for a minute, then RegistryError stops the job: what it knows cannot be a dead letter.
        """
        if number not in self.known:
            told = self._ask(f"/schemas/ids/{number}")
            if told is None:
                raise UnknownSchemaError(f"the registry at {self.url} knows no schema {number}")
            kind = told.get("schemaType", "AVRO")
            self.references[number] = told.get("references") or []
            self.known[number] = kind, json.loads(told["schema"]) if kind != "PROTOBUF" else told["schema"]
        return self.known[number]

    def imports(self, number: int) -> dict[str, str]:
        """The texts of all schemas that a known one refers to, directly or not, by the names under which they are imported."""
        found: dict[str, str] = {}
        left = list(self.references[number])
        while left:
            wanted = left.pop()
            if wanted["name"] not in found:
                told = self._ask(f"/subjects/{quote(wanted['subject'], safe='')}/versions/{wanted['version']}")
                if told is None:
                    raise UnknownSchemaError(f"the registry at {self.url} has no version {wanted['version']} of {wanted['subject']}")
                found[wanted["name"]] = told["schema"]
                left += told.get("references") or []
        return found

    def latest(self, subject: str) -> tuple[int, str, Any] | None:
        """The number, kind and schema registered last for a subject; None when there is none."""
        told = self._ask(f"/subjects/{subject}/versions/latest")
        if told is None:
            return None
        kind = told.get("schemaType", "AVRO")
        return told["id"], kind, json.loads(told["schema"]) if kind != "PROTOBUF" else told["schema"]

    def register(self, subject: str, schema: Any) -> int:
        """Registers an Avro schema for a subject and returns its number; the same schema has the same number.

        Raises ConfigError when the registry does not take it, since it is not compatible with those that readers know.
        """
        try:
            told = self._ask(f"/subjects/{quote(subject, safe='')}/versions", json.dumps({"schema": json.dumps(schema)}).encode())
        except RegistryError as e:
            if e.status not in (409, 422):
                raise
            fix = "rename the column, or write to another topic; or set the compatibility of the subject in the registry"
            raise ConfigError(Problem(f"the registry does not take the schema of {subject}: {e.said}", "schema_registry", fix)) from None
        if told is None:
            raise RegistryError(f"the registry at {self.url} does not take schemas for {subject}")
        return told["id"]

    def ping(self) -> None:
        """Reaches the registry; raises ConfigError."""
        try:
            self._ask("/schemas/types", tries=2)
        except RegistryError as e:
            fix = "check schema_registry, registry_user and registry_password"
            raise ConfigError(Problem(str(e), "schema_registry", fix)) from None

    def _ask(self, path: str, body: bytes | None = None, tries: int | None = None) -> Any:
        request = urllib.request.Request(self.url.rstrip("/") + path, body, {"Content-Type": "application/vnd.schemaregistry.v1+json"})
        if self.user is not None:
            secret = base64.b64encode(f"{self.user}:{self.password or ''}".encode()).decode()
            request.add_header("Authorization", f"Basic {secret}")
        trouble, said, status = "", "", 0
        tries = tries or TRIES
        for attempt in range(tries):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECS) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as e:
                if e.code == 404:
                    return None
                said, status = e.read(2_000).decode(errors="replace"), e.code
                trouble = f"HTTP {e.code}: {said[:500]}"
                if e.code < 500 and e.code != 429:
                    break
            except (OSError, ValueError) as e:
                trouble = str(getattr(e, "reason", e))
            if attempt + 1 < tries:
                time.sleep(min(16.0, 0.5 * 2**attempt))
        raise RegistryError(f"the schema registry at {self.url} does not answer {path}: {trouble}", status, said)


def unframed(payload: bytes) -> tuple[int, bytes]:
    """The number of a payload's schema, -1 where it has no frame, and its datum."""
    if len(payload) < 5 or payload[0]:
        return -1, payload
    return int.from_bytes(payload[1:5], "big"), payload[5:]


def framed(number: int, datum: bytes) -> bytes:
    """A datum in its frame."""
    return b"\0" + number.to_bytes(4, "big") + datum
