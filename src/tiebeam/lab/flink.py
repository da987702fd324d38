"""Flink: a real cluster of version 1.19 with Beam's Flink runner, for batch and streams, without Docker.

`FLINK_REST=HOST:PORT` names a cluster on this machine that runs already. What is missing is fetched by pip and Maven and kept in the
cache (`~/.cache/tiebeam`): one minute, 240 MB. A JobManager takes 400 MB of memory, a TaskManager 300 to 600 MB, each of its
Python workers 250 MB. The runner is older than the Beam installed, which it need not match: newer ones are not in every index of Maven.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.lab._flink_rest import ENTRY, FlinkError, Rest
from tiebeam.lab._machine import Leashed, cached, call, dependency, fetched, free_ports, kill_all, maven_jars, need

ENV = "FLINK_REST"
BEAM = "2.70.0"
JOB_SERVICE = "2.65.0"
FLINK = "1.19.3"
MINOR = "1.19"
START_SECS = 120
STOP_SECS = 20

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
_OPENED = (
    *("lang", "lang.invoke", "lang.reflect", "net", "io", "nio", "security", "text", "time", "util", "util.concurrent"),
    *("util.concurrent.atomic", "util.concurrent.locks"),
)
_JOBMANAGER = ("org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint", "--executionMode", "cluster")
_TASKMANAGER = ("org.apache.flink.runtime.taskexecutor.TaskManagerRunner",)
_SETTINGS = {
    # What Flink's shell scripts would work out.
    "taskmanager.cpu.cores": "2",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "64m",
    "taskmanager.memory.task.heap.size": "384m",
    "taskmanager.memory.task.off-heap.size": "64m",
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.network.min": "128m",
    "taskmanager.memory.network.max": "128m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "64m",
    "taskmanager.memory.jvm-overhead.max": "64m",
    "cluster.evenly-spread-out-slots": "true",
    # Whoever dies is missed soon, and the job goes on from its last checkpoint.
    "heartbeat.interval": "1000",
    "heartbeat.timeout": "6000",
    "cluster.registration.error-delay": "300",
    "cluster.registration.refused-registration-delay": "500",
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": "20",
    "restart-strategy.fixed-delay.delay": "500 ms",
    "jobmanager.execution.failover-strategy": "region",
    "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    "execution.checkpointing.min-pause": "500 ms",
    "execution.checkpointing.tolerable-failed-checkpoints": "1000",
    "state.checkpoints.num-retained": "3",
}


@dataclass
class Server:
    """A JobManager or a TaskManager: a process that can be killed, frozen and started again."""

    name: str
    command: list[str]
    folder: Path
    program: Leashed | None = None
    starts: int = 0

    @property
    def id(self) -> str:
        """How a TaskManager is known to the JobManager: as another one each time that it starts."""
        return f"{self.name}-{self.starts}"

    @property
    def log(self) -> Path:
        """What it and its Python workers say."""
        return self.folder / f"{self.name}.log"

    @property
    def runs(self) -> bool:
        return self.program is not None and self.program.runs

    def launch(self) -> None:
        """Starts it, without waiting for it."""
        self.starts += 1
        self.program = Leashed([*self.command, f"-Dtaskmanager.resource-id={self.id}"], self.log, self.folder)

    def kill(self) -> None:
        """Ends it at once, with its Python workers, as the loss of a machine would."""
        if self.program:
            self.program.kill()

    def stop(self) -> None:
        """Lets it end in order; it is gone when this returns."""
        for pid in self._processes("java"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if self.program:
            with suppress(subprocess.TimeoutExpired):
                self.program.process.wait(STOP_SECS)
            self.program.kill()

    def freeze(self) -> None:
        """Halts it and its workers where they are; to others it is like a network that is cut."""
        if self.program:
            self.program.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        if self.program:
            self.program.signal(signal.SIGCONT)

    def workers(self) -> list[int]:
        """The processes of Python that run for it."""
        return self._processes("python")

    def kill_workers(self) -> list[int]:
        """Ends its Python workers at once, and gives their ids."""
        killed = self.workers()
        for pid in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return killed

    def _processes(self, kind: str) -> list[int]:
        """The processes of its group whose program has a name that starts so."""
        if not self.program:
            return []
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                name, _, rest = stat.read_text().rpartition(")")
                state, _, group = rest.split()[:3]
                if int(group) == self.program.process.pid and state != "Z" and name.partition("(")[2].startswith(kind):
                    found.append(int(stat.parent.name))
        return sorted(found)


@dataclass
class Cluster:
    """A Flink that runs, its servers, where they were started here, and a folder for what jobs leave behind until its end."""

    address: str
    jar: Path
    folder: Path
    servers: dict[str, Server] = field(default_factory=dict)

    @property
    def rest(self) -> Rest:
        return Rest(self.address)

    @property
    def jobmanager(self) -> Server:
        return self.servers["jobmanager"]

    @property
    def taskmanagers(self) -> list[Server]:
        return [server for name, server in self.servers.items() if name != "jobmanager"]

    def flags(
        self, parallelism: int = 2, checkpoint_ms: int = 2000, *, streaming: bool = True, ends: bool = False, env: Mapping[str, str] | None = None
    ) -> list[str]:
        """The flags that run a job here. With `ends`, a stream whose sources all come to an end is over; else it runs until it is cancelled.

        Its Python runs in processes that the TaskManagers start: with this interpreter, and what this process can import.
        """
        environment = {"command": str(self._boot()), "env": {"PYTHONPATH": _importable(), "TMPDIR": str(self.folder), **(env or {})}}
        flags = [
            "--runner=FlinkRunner",
            f"--flink_master={self.address}",
            "--flink_submit_uber_jar",
            f"--flink_job_server_jar={self.jar}",
            f"--flink_version={MINOR}",
            "--environment_type=PROCESS",
            f"--environment_config={json.dumps(environment)}",
            f"--parallelism={parallelism}",
            "--max_parallelism=128",
        ]
        if streaming:
            flags += [
                "--streaming",
                f"--checkpointing_interval={checkpoint_ms}",
                "--finish_bundle_before_checkpointing",
                "--min_pause_between_checkpoints=500",
                "--num_concurrent_checkpoints=1",
            ]
        return [*flags, "--shutdown_sources_after_idle_ms=1000"] if streaming and ends else flags

    def await_ready(self) -> None:
        """Waits until all TaskManagers that run have told the JobManager of their slots."""
        wanted = {server.id for server in self.taskmanagers if server.runs}
        try:
            self.rest.wait(lambda: wanted <= set(self.rest.taskmanagers()), " and ".join(sorted(wanted)), START_SECS)
        except FlinkError as e:
            raise ConfigError(Problem(f"Flink did not start: {e}: {self._last_words()}", "flink", _FIX)) from None

    def restart(self, server: Server) -> None:
        """Starts a server anew, killing it if it runs, and waits until the cluster is whole. A new JobManager knows no jobs, but their jars."""
        server.kill()
        server.launch()
        self.await_ready()

    def stop(self) -> None:
        """Ends all servers that were started here, with their workers."""
        kill_all(server.program for server in self.servers.values() if server.program)

    def _boot(self) -> Path:
        """The program that starts a Python worker."""
        boot = self.folder / "boot"
        if not boot.exists():
            log = self.folder / "workers.log"  # the runner throws away what a process says
            boot.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m tiebeam.lab._boot "$@" >>"{log}" 2>&1\n')
            boot.chmod(0o755)
        return boot

    def _last_words(self) -> str:
        logs = [server.log.read_text(errors="replace").strip() for server in self.servers.values() if server.log.exists()]
        return next((log.splitlines()[-1] for log in logs if log), "it said nothing")


@dataclass(frozen=True)
class Flink:
    """The jars of Flink and of Beam's runner on this machine, the address of a cluster that runs, and how it was found."""

    path: str
    how: str
    address: str | None = None

    @contextmanager
    def cluster(self, taskmanagers: int = 2, slots: int = 2, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
        """A cluster that ends with the block, with all that its jobs left on disk; the running one, when an address was given."""
        with tempfile.TemporaryDirectory(prefix="tiebeam-flink-", ignore_cleanup_errors=True) as name:
            folder, jar = Path(name), Path(self.path, f"beam-flink-{MINOR}.jar")
            if self.address:
                yield Cluster(self.address, jar, folder)
                return
            cluster = _made(self.path, jar, folder, taskmanagers, slots, settings or {})
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


def _made(jars: str, jar: Path, folder: Path, taskmanagers: int, slots: int, settings: Mapping[str, str]) -> Cluster:
    """Writes down how a cluster runs; nothing is started yet."""
    rest, rpc, blobs = free_ports(3)
    told = {
        **_SETTINGS,
        **dict.fromkeys(("jobmanager.rpc.address", "jobmanager.bind-host", "taskmanager.host", "taskmanager.bind-host"), "127.0.0.1"),
        **dict.fromkeys(("rest.address", "rest.bind-address"), "127.0.0.1"),
        "rest.port": rest,
        "jobmanager.rpc.port": rpc,
        "blob.server.port": blobs,
        "taskmanager.numberOfTaskSlots": slots,
        "web.upload.dir": folder / "jars",
        "io.tmp.dirs": folder / "tmp",
        "state.checkpoints.dir": (folder / "checkpoints").as_uri(),
        "state.savepoints.dir": (folder / "savepoints").as_uri(),
        **settings,
    }
    for name in ("conf", "jars", "tmp"):
        (folder / name).mkdir()
    (folder / "conf" / "flink-conf.yaml").write_text("".join(f"{name}: {value}\n" for name, value in told.items()))
    (folder / "conf" / "log4j.properties").write_text(
        "appender.out.type=Console\nappender.out.name=out\nappender.out.layout.type=PatternLayout\n"
        "appender.out.layout.pattern=%d %p %c{1}: %m%n\nrootLogger.level=WARN\nrootLogger.appenderRef.out.ref=out\n"
    )
    java = ["java", "-Xmx512m", "-XX:+UseSerialGC", f"-Djava.io.tmpdir={folder}/tmp"]
    java += [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED]
    java += [f"-Dlog4j.configurationFile={folder}/conf/log4j.properties", "-cp", os.pathsep.join(map(str, sorted(Path(jars).glob("[!b]*.jar"))))]
    mains = {"jobmanager": _JOBMANAGER, **{f"taskmanager{n + 1}": _TASKMANAGER for n in range(taskmanagers)}}
    servers = {name: Server(name, [*java, *main, "--configDir", f"{folder}/conf"], folder) for name, main in mains.items()}
    return Cluster(f"127.0.0.1:{rest}", jar, folder, servers)


def _importable() -> str:
    """What this process can import besides what comes with its interpreter."""
    own = [Path(path).resolve() for path in (sys.prefix, sys.base_prefix)]
    found = [path for path in map(Path, dict.fromkeys(sys.path)) if path.is_absolute() and path.is_dir()]
    return os.pathsep.join(str(path) for path in found if not any(path.resolve().is_relative_to(one) for one in own))
