"""Dataflow's REST service: jobs, their states and errors, and how they are drained, cancelled and kept in snapshots.

https://cloud.google.com/dataflow/docs/reference/rest
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

ENDPOINT = "https://dataflow.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
ENDED = frozenset(f"JOB_STATE_{end}" for end in ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED"))


class DataflowError(Exception):
    """What Dataflow says when it does not do what it was asked."""


@dataclass(frozen=True)
class Rest:
    """The service for one project and region. With `auth`, as the one whose credentials are found on this machine."""

    project: str
    region: str
    endpoint: str = ENDPOINT
    auth: bool = True
    secs: float = 60

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request below the region; DataflowError with what Dataflow says when it is refused, OSError when nobody answers."""
        url = f"{self.endpoint.rstrip('/')}/v1b3/projects/{self.project}/locations/{self.region}/{path}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(self._authorization() if self.auth else {})}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=self.secs) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as e:
            raise DataflowError(f"{method} {path.partition('?')[0]}: {e.code}: {_message(e.read())}") from None

    def job(self, job: str) -> dict[str, Any]:
        """What is known of a job."""
        return self.ask("GET", f"jobs/{job}")

    def jobs(self) -> Iterator[dict[str, Any]]:
        """The jobs that run."""
        page = ""
        while True:
            told = self.ask("GET", f"jobs?{urlencode({'filter': 'ACTIVE', 'pageToken': page})}")
            yield from told.get("jobs", [])
            if not (page := told.get("nextPageToken", "")):
                return

    def errors(self, job: str) -> list[str]:
        """What went wrong, the last first."""
        told = self.ask("GET", f"jobs/{job}/messages?{urlencode({'minimumImportance': 'JOB_MESSAGE_ERROR'})}")
        return [message["messageText"] for message in reversed(told.get("jobMessages", []))]

    def drain(self, job: str) -> None:
        """Asks a stream to read no more, to publish what it has read, and to end."""
        self._request(job, "JOB_STATE_DRAINING")

    def cancel(self, job: str) -> None:
        """Asks a job to end at once."""
        self._request(job, "JOB_STATE_CANCELLED")

    def snapshot(self, job: str, days: int = 7) -> str:
        """Keeps the state of a stream while it runs on, and gives the snapshot's id."""
        return self.ask("POST", f"jobs/{job}:snapshot", {"ttl": f"{days * 86_400}s", "location": self.region})["id"]

    def page(self, job: str) -> str:
        """Where people see the job."""
        return f"https://console.cloud.google.com/dataflow/jobs/{self.region}/{job}?project={self.project}"

    def _request(self, job: str, state: str) -> None:
        self.ask("PUT", f"jobs/{job}", {"requestedState": state})

    def _authorization(self) -> dict[str, str]:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        try:
            credentials, _ = google.auth.default(scopes=[SCOPE])
            credentials.refresh(Request())
        except GoogleAuthError as e:
            raise DataflowError(f"there are no credentials for Google Cloud here: {e}") from None
        return {"Authorization": f"Bearer {credentials.token}"}


def _message(said: bytes) -> str:
    try:
        return json.loads(said)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return said.decode(errors="replace").strip().partition("\n")[0]
