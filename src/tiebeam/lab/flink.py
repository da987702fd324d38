"""Flink: a real cluster of version 1.19 with Beam's Flink runner, for batch and streams, without Docker.

`FLINK_REST=HOST:PORT` names a cluster on this machine that runs already. What is missing is fetched by pip and Maven and kept in the
cache (`~/.cache/tiebeam`): one minute, 240 MB. A JobManager takes 400 MB of memory, a TaskManager 300 to 600 MB, each of its
Python workers 250 MB. The runner is older than the Beam installed, which it need not match: newer ones are not in every index of Maven.
"""

from __future__ import annotations

import os
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.flink_rest import ENTRY, FlinkError, Rest
from tiebeam.lab._flink_cluster import MINOR, Cluster, made
from tiebeam.lab._machine import cached, call, dependency, fetched, maven_jars, need, passing_folder

ENV = "FLINK_REST"
BEAM = "2.70.0"
JOB_SERVICE = "2.65.0"
FLINK = "1.19.3"

_FIX = f"set {ENV} to HOST:PORT of the REST service of a Flink {MINOR}, or install what is missing: Java 17, Maven and pip"
_NAME = f"flink-{FLINK}-beam-{BEAM}"
_NEWEST = (
    "sdks-java-core",
    "runners-java-fn-execution",
    "runners-core-java",
    "model-pipeline",
    "model-fn-execution",
    "model-job-management",
)
_MANAGED = {"runners-java-job-service": JOB_SERVICE, **dict.fromkeys(_NEWEST, BEAM)}
_NOT_NEEDED = re.compile(r"flink-|beam-sdks-java-harness-|slf4j-simple-")  # the cluster has Flink; the harness is an old one
_SIGNATURE = re.compile(r"META-INF/([^/]*\.(SF|RSA|DSA|EC)|INDEX\.LIST|MANIFEST\.MF)|module-info\.class", re.IGNORECASE)


@dataclass(frozen=True)
class Flink:
    """The jars of Flink and of Beam's runner on this machine, the address of a cluster that runs, and how it was found."""

    path: str
    how: str
    address: str | None = None

    @contextmanager
    def cluster(self, taskmanagers: int = 2, slots: int = 2, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
        """A cluster that ends with the block, with all that its jobs left on disk; the running one, when an address was given."""
        with passing_folder("tiebeam-flink-") as folder:
            jar = Path(self.path, f"beam-flink-{MINOR}.jar")
            if self.address:
                yield Cluster(self.address, jar, folder)
                return
            cluster = made(self.path, jar, folder, taskmanagers, slots, settings or {})
            try:
                for server in cluster.servers.values():
                    server.launch()
                cluster.await_ready()
                yield cluster
            finally:
                cluster.stop()


def find() -> Flink | None:
    """The Flink that is here already, without fetching what is missing."""
    if given := os.environ.get(ENV):
        try:
            version = Rest(given, secs=10).version()
        except (OSError, ValueError, KeyError, FlinkError):
            raise ConfigError(Problem(f"no Flink answers at {given}", ENV, "HOST:PORT of the REST service of one that runs")) from None
        if not version.startswith(f"{MINOR}."):
            raise ConfigError(Problem(f"the Flink at {given} is {version}, and the runner here is for {MINOR}", ENV, _FIX))
    if not cached(_NAME).is_dir():
        return None
    return Flink(str(cached(_NAME)), f"given by {ENV}" if given else "fetched before, kept in the cache", given)


def obtain() -> Flink:
    """The Flink that is here, or one fetched now; raises ConfigError when neither can be had."""
    found = find()
    need("java", "flink", _FIX)
    return found or Flink(str(fetched(_NAME, _fetch)), "fetched by Maven and pip", os.environ.get(ENV))


def _fetch(folder: Path, draft: Path) -> None:
    draft.mkdir()
    _fetch_flink(folder, draft)

    def beam(name: str, version: str) -> str:
        return dependency("org.apache.beam", f"beam-{name}", version)

    managed = "".join(beam(name, version) for name, version in _MANAGED.items())
    jars = maven_jars(folder, folder / "beam", beam(f"runners-flink-{MINOR}", BEAM), "flink", _FIX, managed)
    _merge([jar for jar in jars if not _NOT_NEEDED.match(jar.name)], draft / f"beam-flink-{MINOR}.jar")


def _fetch_flink(folder: Path, draft: Path) -> None:
    """Flink itself, without its SQL and its connectors, out of a package for Python."""
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:"]
    call([*download, f"--dest={folder}", f"apache-flink-libraries=={FLINK}"], "flink", _FIX)
    with tarfile.open(folder / f"apache-flink-libraries-{FLINK}.tar.gz") as sources:
        for member in sources:
            if re.fullmatch(r"[^/]+/deps/lib/(flink-dist|log4j)-[^/]+\.jar", member.name):
                member.name = Path(member.name).name
                sources.extract(member, draft, filter="data")


def _merge(jars: list[Path], into: Path) -> None:
    """Makes one jar of many: of files with one name the first is taken, but all services are kept."""
    seen, services = set(), dict[str, list[bytes]]()
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as merged:
        merged.writestr("META-INF/MANIFEST.MF", f"Manifest-Version: 1.0\r\nMain-Class: {ENTRY}\r\n\r\n")
        for jar in jars:
            with zipfile.ZipFile(jar) as source:
                for name in source.namelist():
                    if name.startswith("META-INF/services/") and not name.endswith("/"):
                        services.setdefault(name, []).append(source.read(name))
                    elif not (name in seen or name.endswith("/") or _SIGNATURE.fullmatch(name)):
                        seen.add(name)
                        merged.writestr(name, source.read(name))
        for name, lines in services.items():
            merged.writestr(name, b"\n".join(lines) + b"\n")
