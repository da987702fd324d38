"""Pub/Sub: Google's own emulator, which is part of the Google Cloud SDK and needs Java.

`PUBSUB=HOST:PORT` names one that runs already. Else it is looked for in the SDK (`gcloud components install pubsub-emulator`, or the Debian
package google-cloud-cli-pubsub-emulator). It starts in two seconds and keeps nothing: who ends it ends its topics too.
https://cloud.google.com/pubsub/docs/emulator
"""

from __future__ import annotations

import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.lab._machine import Leashed, free_ports, need

ENV = "PUBSUB"
HOST = "PUBSUB_EMULATOR_HOST"
START_SECS = 90

_FIX = f"set {ENV} to HOST:PORT of one that runs, or install the Google Cloud SDK with its pubsub-emulator, and Java"
_ROOTS = ("/usr/lib/google-cloud-sdk", "/usr/share/google-cloud-sdk", "/opt/google-cloud-sdk")


@dataclass(frozen=True)
class PubSub:
    """The emulator on this machine, or the address of one that runs (`HOST:PORT`), and how it was found."""

    path: str
    how: str
    runs: bool = False

    @contextmanager
    def cluster(self, folder: Path) -> Iterator[Server]:
        """An emulator that ends with the block; the running one, when an address was given."""
        if self.runs:
            yield Server(self.path)
            return
        server = self.start(folder)
        try:
            yield server
        finally:
            server.kill()

    def start(self, folder: Path) -> Server:
        """Starts an emulator; who starts it has to end it."""
        (port,) = free_ports(1)
        server = Server(f"127.0.0.1:{port}", self.path, folder)
        server.launch()
        return server


@dataclass
class Server:
    """An emulator, which can be killed or stopped for a while."""

    address: str
    jar: str = ""
    folder: Path = Path()
    process: Leashed | None = None

    @property
    def servers(self) -> str:
        """The address, as people are told it."""
        return self.address

    @property
    def environment(self) -> dict[str, str]:
        """What tells Google's clients, and so every connector, to use this server, without credentials."""
        return {HOST: self.address}

    def launch(self) -> None:
        """Starts the emulator and waits until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        host, _, port = self.address.partition(":")
        command = ["java", "-Xmx768m", "-XX:+UseSerialGC", "-jar", self.jar, f"--host={host}", f"--port={port}"]
        self.process = Leashed(command, self.folder / "log", self.folder)
        self.process.await_ready(lambda: _is_pubsub(self.address), "pubsub", START_SECS, _FIX)

    def freeze(self) -> None:
        """Stops the emulator where it is, as a network that is cut would seem."""
        if self.process:
            self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen emulator go on."""
        if self.process:
            self.process.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the emulator at once, with all that it holds."""
        if self.process:
            self.process.kill()


def find() -> PubSub | None:
    """The emulator that is here already."""
    if given := os.environ.get(ENV):
        if not _is_pubsub(given):
            raise ConfigError(Problem(f"no Pub/Sub emulator answers at {given}", ENV, "HOST:PORT of one that runs"))
        return PubSub(given, f"given by {ENV}", runs=True)
    program = shutil.which("gcloud")
    roots = [str(Path(program).resolve().parent.parent)] if program else []
    for root in [*roots, *_ROOTS]:
        if jars := sorted(Path(root, "platform", "pubsub-emulator", "lib").glob("cloud-pubsub-emulator*.jar")):
            return PubSub(str(jars[-1]), "found in the Google Cloud SDK")
    return None


def obtain() -> PubSub:
    """The emulator that is here; raises ConfigError when there is none: no registry of packages has it."""
    found = find()
    if found is None:
        raise ConfigError(Problem("Google's Pub/Sub emulator is not on this machine", "pubsub", _FIX))
    if not found.runs:
        need("java", "pubsub", _FIX)
    return found


def _is_pubsub(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
            return answer.read(100).strip() == b"Ok"
    except (OSError, ValueError):
        return False
