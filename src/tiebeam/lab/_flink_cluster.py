"""A cluster of Flink on this machine: its servers as processes that can be killed and started again, and the flags that run jobs on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.flink_rest import FlinkError, Rest
from tiebeam.lab._boot import importable, write_boot
from tiebeam.lab._machine import Leashed, free_ports, kill_all

MINOR = "1.19"
START_SECS = 120
STOP_SECS = 20

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
    "taskmanager.memory.managed.size": "256m",  # sorts of batch jobs; taken when they need it
    "taskmanager.memory.network.min": "128m",
    "taskmanager.memory.network.max": "128m",
    "taskmanager.network.sort-shuffle.min-buffers": "64",  # of 32 kB, for each shuffle of a batch job; many are open at once
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "64m",
    "taskmanager.memory.jvm-overhead.max": "64m",
    "cluster.evenly-spread-out-slots": "true",
    "metrics.fetcher.update-interval": "1000",
    # Whoever dies is missed soon, and the job goes on from its last checkpoint.
    "heartbeat.interval": "1000",
    "heartbeat.timeout": "10000",
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

    def kill_java(self) -> None:
        """Ends the server itself at once; its Python workers are left behind."""
        for pid in self._processes("java"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

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
        self,
        parallelism: int = 2,
        checkpoint_ms: int = 2000,
        *,
        streaming: bool = True,
        ends: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The flags that run a job here. With `ends`, a stream is over when its sources are; else it runs until it is cancelled.

        Its Python runs in processes that the TaskManagers start: with this interpreter, and what this process can import.
        """
        environment = {"command": str(self._boot()), "env": {"PYTHONPATH": importable(), "TMPDIR": str(self.folder), **(env or {})}}
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
            raise ConfigError(Problem(f"Flink did not start: {e}: {self._last_words()}", "flink", "Java 17 on PATH")) from None

    def restart(self, server: Server) -> None:
        """Starts a server anew, killing it if it runs, and waits until the cluster is whole. A new JobManager knows jars, but no jobs."""
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
            write_boot(boot, self.folder / "workers.log")
        return boot

    def _last_words(self) -> str:
        logs = [server.log.read_text(errors="replace").strip() for server in self.servers.values() if server.log.exists()]
        return next((log.splitlines()[-1] for log in logs if log), "it said nothing")


def made(jars: str, jar: Path, folder: Path, taskmanagers: int, slots: int, settings: Mapping[str, str]) -> Cluster:
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
    classes = os.pathsep.join(str(path) for path in sorted(Path(jars).glob("*.jar")) if path != jar)
    java += [f"-Dlog4j.configurationFile={folder}/conf/log4j.properties", "-cp", classes]
    mains = {"jobmanager": _JOBMANAGER, **{f"taskmanager{n + 1}": _TASKMANAGER for n in range(taskmanagers)}}
    servers = {name: Server(name, [*java, *main, "--configDir", f"{folder}/conf"], folder) for name, main in mains.items()}
    return Cluster(f"127.0.0.1:{rest}", jar, folder, servers)
