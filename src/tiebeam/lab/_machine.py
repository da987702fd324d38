"""What services of the lab share: the cache of what was fetched, free ports, programs that end with us, and the search for a jar."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiebeam.errors import ConfigError, Problem

FETCH_SECS = 900
# Ends the program, and all that it has started, when our end of the pipe is closed: by us, or because this process is no more.
_LEASHED = 'exec 3<&0; "$@" 3<&- & program=$!; { cat <&3 >/dev/null; kill -KILL "$program"; } & wait "$program"; kill -KILL 0'


def cached(name: str) -> Path:
    """Where something fetched is kept, whether it is there or not."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tiebeam" / name


def fetched(name: str, fetch: Callable[[Path, Path], None]) -> Path:
    """What is kept under a name; `fetch(folder, draft)` makes it first. It appears in one step, and who comes second waits."""
    kept = cached(name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_name(f"{kept.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                draft = Path(folder) / "draft"
                fetch(Path(folder), draft)
                draft.rename(kept)
    return kept


def need(program: str, service: str, fix: str) -> None:
    """Raises ConfigError when a program is not on PATH."""
    if not shutil.which(program):
        raise ConfigError(Problem(f"there is no {program} on PATH, which {service} needs", service, fix))


def call(command: list[str], service: str, fix: str, cwd: Path | None = None) -> None:
    """Runs a program that fetches or prepares something; raises ConfigError with what it says."""
    shown = " ".join(command[:4])
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECS, check=True, cwd=cwd)
    except subprocess.CalledProcessError as e:
        lines = (e.stdout + e.stderr).splitlines()
        told = [line for line in lines if re.search("ERROR|No module|Exception", line)] or lines or ["no reason given"]
        raise ConfigError(Problem(f"{service} could not be prepared: {told[0].strip()}", shown, fix)) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(Problem(f"{service} was not prepared within {FETCH_SECS} s", shown, fix)) from None


def maven_jars(folder: Path, target: Path, dependencies: str, service: str, fix: str, managed: str = "") -> list[Path]:
    """Copies what Maven dependencies need at run time into a folder."""
    need("mvn", service, fix)
    (folder / "pom.xml").write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        f"<groupId>tiebeam</groupId><artifactId>{service}</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencyManagement><dependencies>{managed}</dependencies></dependencyManagement>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )
    copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={target}"]
    call(["mvn", "-q", "-B", "-f", str(folder / "pom.xml"), *copy], service, fix)
    return sorted(target.glob("*.jar"))


def dependency(group: str, name: str, version: str) -> str:
    """One dependency of Maven."""
    return f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def passing_folder(prefix: str) -> Iterator[Path]:
    """A folder that is removed with all that is in it after the block, and also when this process is no more."""
    folder = tempfile.mkdtemp(prefix=prefix)
    removed = 'cat >/dev/null; until rm -rf "$0" 2>/dev/null; do sleep 0.2; done'  # while somebody still writes, it is not empty
    with subprocess.Popen(["sh", "-c", removed, folder], stdin=subprocess.PIPE, start_new_session=True):
        yield Path(folder)


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


class Leashed:
    """A program in a process group of its own, which ends when we end it, and when this process is no more."""

    def __init__(self, command: list[str], log: Path, folder: Path, env: dict[str, str] | None = None):
        self.log = log
        with log.open("a") as out:
            self.process = subprocess.Popen(
                ["sh", "-c", _LEASHED, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Sends a signal to the program and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Ends the program at once, and all that it has started; it is gone when this returns."""
        self.signal(signal.SIGCONT)
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()
        self.signal(signal.SIGKILL)

    def await_ready(self, ready: Callable[[], bool], service: str, secs: float, fix: str) -> None:
        """Waits until the service answers; raises ConfigError with its last words when it does not."""
        until = time.monotonic() + secs
        while not ready():
            if not self.runs or time.monotonic() > until:
                last = (self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                self.kill()
                raise ConfigError(Problem(f"{service} did not start: {last}", service, fix))
            time.sleep(0.05)


def kill_all(programs: Iterable[Leashed]) -> None:
    """Ends programs."""
    for program in programs:
        program.kill()
