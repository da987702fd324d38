"""Flink's REST service: jobs, their checkpoints and figures, and how they are cancelled, stopped and run again from a savepoint.

https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ENTRY = "org.apache.beam.runners.flink.FlinkPipelineRunner"
ENDED = frozenset({"FINISHED", "CANCELED", "FAILED"})


class FlinkError(Exception):
    """What Flink says when it does not do what it was asked."""


@dataclass(frozen=True)
class Rest:
    """The REST service at HOST:PORT."""

    address: str
    secs: float = 60

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request; FlinkError with the first line of what Flink says when it is refused, OSError when nobody answers."""
        return self._send(method, path, None if body is None else json.dumps(body).encode(), "application/json")

    def _send(self, method: str, path: str, data: bytes | None, kind: str) -> Any:
        request = urllib.request.Request(f"http://{self.address}/v1/{path}", data=data, method=method, headers={"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=self.secs) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as e:
            raise FlinkError(f"{method} {path}: {e.code}: {_first_line(e.read().decode(errors='replace'))}") from None

    def overview(self) -> dict[str, Any]:
        """TaskManagers, slots and numbers of jobs."""
        return self.ask("GET", "overview")

    def taskmanagers(self) -> list[str]:
        """The ids of the TaskManagers that are known, those that died but were not missed yet among them."""
        return [told["id"] for told in self.ask("GET", "taskmanagers")["taskmanagers"]]

    def version(self) -> str:
        """The version of Flink, such as 1.19.3."""
        return self.ask("GET", "config")["flink-version"]

    def jobs(self) -> dict[str, str]:
        """The state of every job, by its id, those that started last first."""
        found = sorted(self.ask("GET", "jobs/overview")["jobs"], key=lambda job: -job["start-time"])
        return {job["jid"]: job["state"] for job in found}

    def state(self, job: str) -> str:
        """The state of a job: RUNNING, RESTARTING, FINISHED, …"""
        return self.ask("GET", f"jobs/{job}/status")["status"]

    def causes(self, job: str) -> list[str]:
        """Why a job failed, each time that it did, the last one first."""
        entries = self.ask("GET", f"jobs/{job}/exceptions")["exceptionHistory"]["entries"]
        return [entry["stacktrace"] for entry in entries]

    def checkpoints(self, job: str) -> dict[str, int]:
        """How many checkpoints of a job there are of each kind: completed, failed, in_progress, restored, total."""
        return self._checkpoints(job)["counts"]

    def latest_checkpoint(self, job: str) -> dict[str, Any] | None:
        """The last completed checkpoint of a job: `id`, `external_path`, `state_size`, …"""
        return self._checkpoints(job)["latest"]["completed"]

    def _checkpoints(self, job: str) -> dict[str, Any]:
        """What is said of checkpoints; of a job that makes none, as one in batch, that there are none."""
        try:
            return self.ask("GET", f"jobs/{job}/checkpoints")
        except FlinkError as e:
            if "Checkpointing has not been enabled" not in str(e):
                raise
            kinds = ("completed", "failed", "in_progress", "restored", "total")
            return {"counts": dict.fromkeys(kinds, 0), "latest": {"completed": None}}

    def metrics(self, job: str, *names: str, vertex: str = "") -> dict[str, float]:
        """Figures of a job, or of one of its vertices, summed over its parts. Without names: those that there are, as 0."""
        path = f"jobs/{job}/vertices/{vertex}/subtasks/metrics" if vertex else f"jobs/{job}/metrics"
        query = f"?{urlencode({'get': ','.join(names)})}" if names else ""
        return {told["id"]: float(told.get("sum", told.get("value", 0))) for told in self.ask("GET", path + query)}

    def vertices(self, job: str) -> dict[str, str]:
        """The names of a job's vertices, by id."""
        return {vertex["id"]: vertex["name"] for vertex in self.ask("GET", f"jobs/{job}")["vertices"]}

    def accumulators(self, job: str) -> dict[str, str]:
        """What the job counted itself, by name; Beam's metrics are in `__metricscontainers`."""
        told = self.ask("GET", f"jobs/{job}/accumulators")["user-task-accumulators"]
        return {counted["name"]: counted["value"] for counted in told}

    def cancel(self, job: str) -> None:
        """Asks a job to end without a savepoint; its retained checkpoints stay."""
        self.ask("PATCH", f"jobs/{job}?mode=cancel")

    def stop(self, job: str, folder: str | None = None, *, drain: bool = False, secs: float = 120) -> str:
        """Ends a job with a savepoint below a folder, by default the cluster's, and gives its place.

        `drain` sends the last watermark first: no way back.
        """
        asked = self.ask("POST", f"jobs/{job}/stop", {"targetDirectory": folder, "drain": drain})
        return self._saved(job, asked["request-id"], secs)

    def savepoint(self, job: str, folder: str | None = None, *, secs: float = 120) -> str:
        """Takes a savepoint below a folder while the job runs on, and gives its place."""
        asked = self.ask("POST", f"jobs/{job}/savepoints", {"target-directory": folder, "cancel-job": False})
        return self._saved(job, asked["request-id"], secs)

    def jars(self) -> list[str]:
        """The ids of the jars that were uploaded, the latest first."""
        found = sorted(self.ask("GET", "jars")["files"], key=lambda jar: -jar["uploaded"])
        return [jar["id"] for jar in found]

    def upload(self, jar: Path) -> str:
        """Gives a jar to the JobManager, and returns its id there."""
        mark = uuid.uuid4().hex
        about = f'Content-Disposition: form-data; name="jarfile"; filename="{jar.name}"\r\nContent-Type: application/x-java-archive'
        data = f"--{mark}\r\n{about}\r\n\r\n".encode() + jar.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        return self._send("POST", "jars/upload", data, f"multipart/form-data; boundary={mark}")["filename"].rpartition("/")[2]

    def run_jar(self, jar: str, *, savepoint: str | None = None, parallelism: int | None = None, allow_dropped: bool = False) -> str:
        """Runs the job in an uploaded jar, from a savepoint or a retained checkpoint that stays as it is; gives the job's id.

        With `allow_dropped`, state of steps that the job no longer has is left behind; else it is an error.
        """
        body: dict[str, Any] = {"entryClass": ENTRY}
        if savepoint:
            body |= {"savepointPath": savepoint, "allowNonRestoredState": allow_dropped, "restoreMode": "NO_CLAIM"}
        if parallelism:
            body["parallelism"] = parallelism
        return self.ask("POST", f"jars/{jar}/run", body)["jobid"]

    def await_state(self, job: str, states: Iterable[str] = ENDED, *, secs: float = 120) -> str:
        """Waits until a job is in one of these states, and gives it."""
        wanted = frozenset(states)
        return self.wait(lambda: found if (found := self.state(job)) in wanted else None, f"{job} is {' or '.join(sorted(wanted))}", secs)

    def await_checkpoints(self, job: str, more: int = 1, *, secs: float = 120) -> dict[str, Any]:
        """Waits until so many more checkpoints of a job are complete than are now, and gives the last."""
        before = self.checkpoints(job)["completed"]
        self.wait(lambda: self.checkpoints(job)["completed"] >= before + more, f"{job} completes {more} checkpoints", secs)
        found = self.latest_checkpoint(job)
        assert found
        return found

    def wait(self, found: Callable[[], Any], what: str, secs: float) -> Any:
        """Asks again and again until there is an answer that is true; a service that is not there for now is waited for."""
        until = time.monotonic() + secs
        last: Exception | None = None
        while time.monotonic() < until:
            try:
                if answer := found():
                    return answer
            except (OSError, FlinkError) as e:
                last = e
            time.sleep(0.1)
        raise FlinkError(f"not within {secs} s: {what}" + (f" ({last})" if last else ""))

    def _saved(self, job: str, request: str, secs: float) -> str:
        def done() -> dict[str, Any] | None:
            told = self.ask("GET", f"jobs/{job}/savepoints/{request}")
            return told if told["status"]["id"] == "COMPLETED" else None

        operation = self.wait(done, f"{job} has a savepoint", secs)["operation"]
        if "failure-cause" in operation:
            raise FlinkError(f"no savepoint of {job}: {_first_line(operation['failure-cause']['stack-trace'])}")
        return operation["location"]


def _first_line(text: str) -> str:
    """Flink answers with stack traces in JSON: the last cause in them says what is wrong."""
    with suppress(ValueError, KeyError, TypeError):
        text = "\n".join(json.loads(text)["errors"])
    causes = [line.removeprefix("Caused by: ") for line in text.splitlines() if line.startswith("Caused by: ")]
    return causes[-1] if causes else next((line for line in text.splitlines() if line.strip()), "no reason given")
