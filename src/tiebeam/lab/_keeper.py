"""Keeps services running between commands: a process of its own starts them, says where they are, and ends them.

FOLDER/kafka.json     {"pid": …, "address": "127.0.0.1:…", "environment": {…}}, there while the service runs
FOLDER/kafka/…        its data, which stays for the next time
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tiebeam.errors import ConfigError, Problem

SERVICES = ("kafka", "bigquery", "pubsub", "gcs")
FIRST = ("kafka",)
"""What is started when no service is named."""
UP_SECS = 300  # it may have to be installed first


def up(service: str, folder: Path) -> dict[str, Any]:
    """Starts a service unless it runs, and says where it is."""
    if found := status(folder).get(service):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{service}.log").open("w") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tiebeam.lab._keeper", service, str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    until = time.monotonic() + UP_SECS
    while service not in (running := status(folder)):
        if keeper.poll() is not None or time.monotonic() > until:
            last = ((folder / f"{service}.log").read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigError(Problem(f"{service} did not start: {last.strip()}", "lab up", f"see {folder / service}.log"))
        time.sleep(0.1)
    return running[service]


def status(folder: Path) -> dict[str, dict[str, Any]]:
    """The services that run, by name."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            told = json.loads(file.read_text())
            if _runs(told["pid"]):
                found[file.stem] = told
    return found


def down(folder: Path) -> list[str]:
    """Ends all services of a folder, and says which."""
    running = status(folder)
    for told in running.values():
        with suppress(ProcessLookupError):
            os.kill(told["pid"], signal.SIGTERM)
    until = time.monotonic() + UP_SECS
    while any(_runs(told["pid"]) for told in running.values()) and time.monotonic() < until:
        time.sleep(0.05)
    for file in folder.glob("*.json"):
        file.unlink(missing_ok=True)
    return list(running)


def _runs(pid: int) -> bool:
    """Whether a process is there and is not merely waiting to be noticed as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def keep(service: str, folder: Path) -> None:
    """Runs a service until this process is told to end."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: over.set())
    with import_module(f"tiebeam.lab.{service}").obtain().cluster(folder.absolute() / service) as running:
        told = folder / f"{service}.json"
        draft = told.with_suffix(".draft")
        draft.write_text(json.dumps({"pid": os.getpid(), "address": running.servers, "environment": running.environment}))
        draft.replace(told)
        over.wait()
        told.unlink(missing_ok=True)


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
