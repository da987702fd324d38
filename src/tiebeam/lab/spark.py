"""Spark: Beam's job server with a Spark of its own inside (`local[2]`), for batch jobs, one at a time.

`SPARK_JOB_SERVER=HOST:PORT` names one that runs already. Else its jars are taken from the cache (`~/.cache/tiebeam`), or
fetched: Beam's Spark runner by Maven, Spark from the source of the `pyspark` package by pip; two minutes, 420 MB.
The runner is older than the Beam installed, which it need not match: newer ones are not in every index of Maven.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.lab._boot import importable, write_boot
from tiebeam.lab._machine import Leashed, answers, cached, call, dependency, fetched, free_ports, kill_all, maven_jars, need, passing_folder

ENV = "SPARK_JOB_SERVER"
BEAM = "2.70.0"
JOB_SERVICE = "2.65.0"
SPARK = "3.5.9"
START_SECS = 120

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
_NAME = f"spark-{SPARK}-beam-{BEAM}"


@dataclass(frozen=True)
class JobServer:
    """A job server that runs. It has one Spark, so it takes one job at a time."""

    address: str
    jar: str
    boot: str | None = None

    def flags(self) -> list[str]:
        """The flags that run a batch job here, one worker of Python for all stages, and no jars to ship.

        Its Python runs in this process; on a cluster, in processes that the workers of Spark start, with what this process can import.
        """
        environment = json.dumps({"command": self.boot, "env": {"PYTHONPATH": importable()}})
        return [
            "--runner=SparkRunner",
            f"--job_endpoint={self.address}",
            *(["--environment_type=PROCESS", f"--environment_config={environment}"] if self.boot else ["--environment_type=LOOPBACK"]),
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

    @contextmanager
    def cluster(self, workers: int = 2) -> Iterator[JobServer]:
        """A job server for a standalone cluster of a master and workers, each a process; all of it ends with the block."""
        with passing_folder("tiebeam-spark-") as folder:
            jar, boot, home = folder / "empty.jar", folder / "boot", folder / "home"
            zipfile.ZipFile(jar, "w").close()
            write_boot(boot, folder / "workers.log")
            home.mkdir()
            (home / "jars").symlink_to(self.path)
            port, *pages = free_ports(workers + 2)
            master = f"spark://127.0.0.1:{port}"
            place = ["--host", "127.0.0.1", "--webui-port"]
            mains = [["master.Master", *place, str(pages[0]), "--port", str(port)]]
            mains += [
                ["worker.Worker", *place, str(page), "--cores", "1", "--memory", "1g", "-d", f"{folder}/w{page}", master]
                for page in pages[1:]
            ]
            env = {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_SCALA_VERSION": "2.12"}
            started: list[Leashed] = []
            try:
                for main in mains:
                    java = ["java", "-Xmx512m", *_opened(), "-cp", f"{self.path}/*", f"org.apache.spark.deploy.{main[0]}", *main[1:]]
                    started.append(Leashed(java, folder / f"spark{len(started)}.log", folder, env))
                    if len(started) == 1:
                        started[0].await_ready(lambda: answers(f"127.0.0.1:{port}"), "spark", START_SECS, _FIX)
                with _started(Path(self.path), folder, master) as address:
                    yield JobServer(address, str(jar), str(boot))
            finally:
                kill_all(started)


def find() -> Spark | None:
    """The Spark that is here already, without fetching one."""
    if given := os.environ.get(ENV):
        if not answers(given):
            raise ConfigError(Problem(f"no job server answers at {given}", ENV, "HOST:PORT of one that runs"))
        return Spark(given, f"given by {ENV}", runs=True)
    return Spark(str(cached(_NAME)), "fetched before, kept in the cache") if cached(_NAME).is_dir() else None


def obtain() -> Spark:
    """The Spark that is here, or one fetched now; raises ConfigError when neither can be had."""
    found = find()
    if not (found and found.runs):
        need("java", "spark", _FIX)
    return found or Spark(str(fetched(_NAME, _fetch)), "fetched by Maven and pip")


def _fetch(folder: Path, draft: Path) -> None:
    _merge(_jars_of_spark(folder), _jars_of_beam(folder), draft)


def _jars_of_beam(folder: Path) -> list[Path]:
    def beam(name: str, version: str) -> str:
        return dependency("org.apache.beam", f"beam-{name}", version)

    managed = "".join(beam(name, version) for name, version in _MANAGED.items())
    return maven_jars(folder, folder / "beam", beam("runners-spark-3", BEAM), "spark", _FIX, managed)


def _jars_of_spark(folder: Path) -> list[Path]:
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:"]
    call([*download, f"--dest={folder}", f"pyspark=={SPARK}"], "spark", _FIX)
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


def _opened() -> list[str]:
    """What Spark needs to see of Java 17."""
    return [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]


@contextmanager
def _started(jars: Path, folder: Path, master: str = "local[2]") -> Iterator[str]:
    """Starts a job server in a process group of its own; gives its address, and ends it with the block."""
    (port,) = free_ports(1)
    server = [
        f"--spark-master-url={master}",
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
    command = ["java", *jvm, *_opened(), "-cp", f"{jars}/*", "org.apache.beam.runners.spark.SparkJobServerDriver", *server]
    program = Leashed(command, folder / "log", folder)
    try:
        program.await_ready(lambda: answers(f"localhost:{port}"), "spark", START_SECS, _FIX)  # it says nothing when it is ready
        yield f"localhost:{port}"
    finally:
        program.kill()
