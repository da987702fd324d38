"""Spark: Beam's job server with a Spark of its own inside (`local[2]`), for batch jobs, one at a time.

`SPARK_JOB_SERVER=HOST:PORT` names one that runs already. Else its jars are taken from the cache (`~/.cache/tiebeam`), or
fetched: Beam's Spark runner by Maven, Spark from the source of the `pyspark` package by pip; two minutes, 420 MB.
The runner is older than the Beam installed, which it need not match: newer ones are not in every index of Maven.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiebeam.errors import ConfigError, Problem

ENV = "SPARK_JOB_SERVER"
BEAM = "2.70.0"
JOB_SERVICE = "2.65.0"
SPARK = "3.5.9"
FETCH_SECS = 900
START_SECS = 120
STOP_SECS = 20

_FIX = f"set {ENV} to HOST:PORT of a job server of Beam for Spark, or install what is missing: Java 17, Maven and pip"
_NEWEST = (
    "sdks-java-core",
    "runners-java-fn-execution",
    "runners-core-java",
    "model-pipeline",
    "model-fn-execution",
    "model-job-management",
)
_MANAGED = {"runners-java-job-service": JOB_SERVICE, **dict.fromkeys(_NEWEST, BEAM)}
_OF_BEAM = {"guava", "gson", "joda-time"}  # Beam calls what the older ones of Spark do not have
_NOT_OF_BEAM = re.compile(r"spark-|beam-sdks-java-harness-|slf4j-simple-")  # the harness holds old classes of Beam's own core
_OPENED = (
    *("java.io", "java.lang", "java.lang.invoke", "java.lang.reflect", "java.net", "java.nio", "java.util", "java.util.concurrent"),
    *("java.util.concurrent.atomic", "sun.nio.ch", "sun.nio.cs", "sun.security.action", "sun.util.calendar"),
)
# Ends the server when our end of the pipe is closed: by us, or because this process is no more.
_LEASHED = 'exec 3<&0; "$@" 3<&- & server=$!; { cat <&3 >/dev/null; kill "$server"; } & wait "$server"'


@dataclass(frozen=True)
class JobServer:
    """A job server that runs. It has one Spark, so it takes one job at a time."""

    address: str
    jar: str

    def flags(self) -> list[str]:
        """The flags that run a batch job here, its Python in this process; one worker for all stages, and no jars to ship."""
        return [
            "--runner=SparkRunner",
            f"--job_endpoint={self.address}",
            "--environment_type=LOOPBACK",
            "--environment_cache_millis=600000",
            f"--files_to_stage={self.jar}",
        ]


@dataclass(frozen=True)
class Spark:
    """The jars of a job server on this machine, or the address of one that runs (`HOST:PORT`), and how it was found."""

    path: str
    how: str
    runs: bool = False

    @contextmanager
    def server(self) -> Iterator[JobServer]:
        """A job server, which ends with the block unless it was running before."""
        with tempfile.TemporaryDirectory(prefix="tiebeam-spark-") as folder:
            jar = Path(folder) / "empty.jar"
            zipfile.ZipFile(jar, "w").close()
            if self.runs:
                yield JobServer(self.path, str(jar))
            else:
                with _started(Path(self.path), Path(folder)) as address:
                    yield JobServer(address, str(jar))


def find() -> Spark | None:
    """The Spark that is here already, without fetching one."""
    if given := os.environ.get(ENV):
        if not _answers(given):
            raise ConfigError(Problem(f"no job server answers at {given}", ENV, "HOST:PORT of one that runs"))
        return Spark(given, f"given by {ENV}", runs=True)
    if _cached().is_dir():
        return Spark(str(_cached()), "fetched before, kept in the cache")
    return None


def obtain() -> Spark:
    """The Spark that is here, or one fetched now; raises ConfigError when neither can be had."""
    found = find()
    if not (found and found.runs):
        _need("java")
    return found or _fetch()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _need(program: str) -> None:
    if not shutil.which(program):
        raise ConfigError(Problem(f"there is no {program} on PATH, which Spark needs", "spark", _FIX))


def _cached() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tiebeam" / f"spark-{SPARK}-beam-{BEAM}"


def _fetch() -> Spark:
    """Fetches all jars into a draft that becomes the cached folder in one step. Who comes second waits for the first."""
    kept = _cached()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_name(f"{kept.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_dir():
            _need("mvn")
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                draft = Path(folder) / "jars"
                _merge(_jars_of_spark(Path(folder)), _jars_of_beam(Path(folder)), draft)
                draft.rename(kept)
    return Spark(str(kept), "fetched by Maven and pip")


def _jars_of_beam(folder: Path) -> list[Path]:
    def dependency(name: str, version: str) -> str:
        named = f"<groupId>org.apache.beam</groupId><artifactId>beam-{name}</artifactId><version>{version}</version>"
        return f"<dependency>{named}</dependency>"

    managed = "".join(dependency(name, version) for name, version in _MANAGED.items())
    (folder / "pom.xml").write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>tiebeam</groupId><artifactId>spark</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencyManagement><dependencies>{managed}</dependencies></dependencyManagement>"
        f"<dependencies>{dependency('runners-spark-3', BEAM)}</dependencies></project>"
    )
    target = folder / "beam"
    copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={target}"]
    _call(["mvn", "-q", "-B", "-f", str(folder / "pom.xml"), *copy])
    return sorted(target.glob("*.jar"))


def _jars_of_spark(folder: Path) -> list[Path]:
    _call([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", f"--dest={folder}", f"pyspark=={SPARK}"])
    with tarfile.open(folder / f"pyspark-{SPARK}.tar.gz") as sources:
        jars = [member for member in sources if re.fullmatch(r"[^/]+/deps/jars/[^/]+\.jar", member.name)]
        sources.extractall(folder, jars, filter="data")
    return sorted(folder.glob("*/deps/jars/*.jar"))


def _merge(of_spark: list[Path], of_beam: list[Path], into: Path) -> None:
    """Moves the jars into one folder: all of Spark's, and of Beam's those that Spark has not, but for `_OF_BEAM`."""
    into.mkdir()
    chosen = {_artifact(jar): jar for jar in of_beam if not _NOT_OF_BEAM.match(jar.name)}
    chosen |= {_artifact(jar): jar for jar in of_spark if _artifact(jar) not in _OF_BEAM}
    for jar in chosen.values():
        jar.rename(into / jar.name)


def _artifact(jar: Path) -> str:
    """The name of a jar without its version; a classifier, as of native code, stays."""
    return re.sub(r"-\d+(\.[\w]+)*", "", jar.stem, count=1)


def _call(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECS, check=True)
    except subprocess.CalledProcessError as e:
        told = [line for line in (e.stdout + e.stderr).splitlines() if "ERROR" in line or "No module" in line] or ["no reason given"]
        raise ConfigError(Problem(f"its jars could not be fetched: {told[0].strip()}", " ".join(command[:4]), _FIX)) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(Problem(f"its jars were not fetched within {FETCH_SECS} s", " ".join(command[:4]), _FIX)) from None


@contextmanager
def _started(jars: Path, folder: Path) -> Iterator[str]:
    """Starts a job server in a process group of its own; gives its address, and ends it with the block."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    server = [
        "--spark-master-url=local[2]",
        f"--job-port={port}",
        "--artifact-port=0",
        "--expansion-port=-1",
        f"--artifacts-dir={folder}/staged",
    ]
    jvm = [
        "-Xmx2g",
        f"-Djava.io.tmpdir={folder}",
        "-Dspark.ui.enabled=false",
        "-Dspark.driver.host=localhost",
        "-Dspark.driver.bindAddress=127.0.0.1",
    ]
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
    command = ["java", *jvm, *opened, "-cp", f"{jars}/*", "org.apache.beam.runners.spark.SparkJobServerDriver", *server]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            ["sh", "-c", _LEASHED, "sh", *command], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
        try:
            _await(process, f"localhost:{port}", folder / "log")
            yield f"localhost:{port}"
        finally:
            _stop(process)


def _await(process: subprocess.Popen, address: str, log: Path) -> None:
    """Waits for the port: the server says nothing when it is ready."""
    until = time.monotonic() + START_SECS
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > until:
            last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigError(Problem(f"the job server did not start: {last}", "spark", "Java 17 on PATH"))
        time.sleep(0.1)


def _stop(process: subprocess.Popen) -> None:
    assert process.stdin
    process.stdin.close()
    try:
        process.wait(STOP_SECS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
