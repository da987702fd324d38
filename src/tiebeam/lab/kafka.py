"""Kafka: Apache Kafka itself, one broker or several, without Docker (KRaft).

`KAFKA=HOST:PORT` names a cluster that runs already. Else its jars are taken from the cache (`~/.cache/tiebeam`), or fetched by
Maven (15 seconds, 120 MB); a broker starts in four seconds and takes 300 MB. https://kafka.apache.org/documentation/#kraft
"""

from __future__ import annotations

import os
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.lab._machine import FETCH_SECS, Leashed, answers, cached, dependency, fetched, free_ports, kill_all, maven_jars, need

ENV = "KAFKA"
VERSION = "4.4.0"
START_SECS = 180

_FIX = f"set {ENV} to HOST:PORT of a broker that runs, or install what is missing: Java 17 and Maven"
_NAME = f"kafka-{VERSION}"


@dataclass(frozen=True)
class Kafka:
    """Kafka's jars on this machine, or the address of a cluster that runs (`HOST:PORT`), and how it was found."""

    path: str
    how: str
    runs: bool = False

    @contextmanager
    def cluster(
        self, folder: Path, brokers: int = 1, settings: Mapping[str, str] | None = None, listeners: Mapping[str, str] | None = None
    ) -> Iterator[Cluster]:
        """Brokers that keep their data in a folder and end with the block; the running ones, when an address was given."""
        if self.runs:
            yield Cluster([self.path])
            return
        cluster = self.start(folder, brokers, settings, listeners)
        try:
            yield cluster
        finally:
            cluster.stop()

    def start(
        self, folder: Path, brokers: int = 1, settings: Mapping[str, str] | None = None, listeners: Mapping[str, str] | None = None
    ) -> Cluster:
        """Starts brokers; who starts them has to stop them. `listeners` are more ways in, each with its security protocol (SSL …)."""
        doors = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **(listeners or {})}
        ports = iter(free_ports(len(doors) * brokers))
        nodes = [{name: f"127.0.0.1:{next(ports)}" for name in doors} for _ in range(brokers)]
        voters = ",".join(f"{n}@{node['CONTROLLER']}" for n, node in enumerate(nodes, 1))
        name = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        made = []
        for n, node in enumerate(nodes, 1):
            home = folder / f"broker{n}"
            home.mkdir(parents=True, exist_ok=True)
            told = {**_properties(n, home, voters, brokers), **_listening(node, doors), **(settings or {})}
            (home / "server.properties").write_text("".join(f"{name}={value}\n" for name, value in told.items()))
            made.append(Broker(self.path, home, node["PLAINTEXT"]))
        others = {name: ",".join(node[name] for node in nodes) for name in listeners or {}}
        cluster = Cluster([node["PLAINTEXT"] for node in nodes], made, others)
        try:
            for broker in made:
                if not (broker.home / "data" / "meta.properties").exists():
                    broker.format(name)
                broker.launch()
            for broker in made:
                broker.await_ready()
        except BaseException:
            cluster.stop()
            raise
        return cluster


@dataclass
class Broker:
    """One broker, which can be killed and started again on the same data."""

    jars: str
    home: Path
    address: str
    program: Leashed | None = None

    def format(self, name: str) -> None:
        """Makes its folder a part of the cluster of this name."""
        config = str(self.home / "server.properties")
        command = [*self._java("kafka.tools.StorageTool", "-Xmx128m"), "format", f"--cluster-id={name}", f"--config={config}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECS, check=False)
        if done.returncode:
            last = ((done.stderr + done.stdout).strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigError(Problem(f"the folder of a broker could not be prepared: {last}", str(self.home), _FIX))

    def launch(self) -> None:
        """Starts the broker, without waiting for it."""
        command = [*self._java("kafka.Kafka", "-Xmx512m"), str(self.home / "server.properties")]
        self.program = Leashed(command, self.home / "log", self.home)

    def await_ready(self) -> None:
        """Waits until clients can reach it."""
        assert self.program
        self.program.await_ready(lambda: answers(self.address), "kafka", START_SECS, _FIX)

    def kill(self) -> None:
        """Ends the broker at once, as a crash would."""
        if self.program:
            self.program.kill()

    def restart(self) -> None:
        """Starts a killed broker on the data that it has."""
        self.launch()
        self.await_ready()

    def _java(self, main: str, heap: str) -> list[str]:
        options = [heap, "-XX:+UseSerialGC", f"-Dlog4j2.configurationFile={_quiet_log(self.home)}"]
        return ["java", *options, "-cp", f"{self.jars}/*", main]


@dataclass(eq=False)
class Cluster:
    """Brokers that run."""

    addresses: list[str]
    brokers: list[Broker] = field(default_factory=list)
    listeners: dict[str, str] = field(default_factory=dict)
    """What a client is given to come in another way than without security."""

    @property
    def servers(self) -> str:
        """What a client is given to find the cluster."""
        return ",".join(self.addresses)

    @property
    def environment(self) -> dict[str, str]:
        """What tests and other commands are told to find the cluster."""
        return {ENV: self.servers}

    def stop(self) -> None:
        """Ends all brokers that were started here."""
        kill_all(broker.program for broker in self.brokers if broker.program)


def find() -> Kafka | None:
    """The Kafka that is here already, without fetching one."""
    if given := os.environ.get(ENV):
        if not answers(given.split(",")[0]):
            raise ConfigError(Problem(f"no broker answers at {given}", ENV, "HOST:PORT of one that runs"))
        return Kafka(given, f"given by {ENV}", runs=True)
    return Kafka(str(cached(_NAME)), "fetched before, kept in the cache") if cached(_NAME).is_dir() else None


def obtain() -> Kafka:
    """The Kafka that is here, or one fetched now; raises ConfigError when neither can be had."""
    found = find()
    if not (found and found.runs):
        need("java", "kafka", _FIX)
    return found or Kafka(str(fetched(_NAME, _fetch)), "fetched by Maven")


def _fetch(folder: Path, draft: Path) -> None:
    maven_jars(folder, draft, dependency("org.apache.kafka", "kafka_2.13", VERSION), "kafka", _FIX)


def _quiet_log(home: Path) -> Path:
    file = home / "log4j2.properties"
    if not file.exists():
        file.write_text(
            "appender.out.type=Console\nappender.out.name=out\nappender.out.layout.type=PatternLayout\n"
            "appender.out.layout.pattern=%d %p %c{1}: %m%n\nrootLogger.level=WARN\nrootLogger.appenderRef.out.ref=out\n"
        )
    return file


def _listening(node: Mapping[str, str], doors: Mapping[str, str]) -> dict[str, str]:
    return {
        "listeners": ",".join(f"{name}://{address}" for name, address in node.items()),
        "advertised.listeners": ",".join(f"{name}://{address}" for name, address in node.items() if name != "CONTROLLER"),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in doors.items()),
        "controller.listener.names": "CONTROLLER",
    }


def _properties(node: int, home: Path, voters: str, brokers: int) -> dict[str, str]:
    copies = str(min(brokers, 3))
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "controller.quorum.voters": voters,
        "log.dirs": str(home / "data"),
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": str(max(1, int(copies) - 1)),
        "default.replication.factor": copies,
        "min.insync.replicas": str(max(1, int(copies) - 1)),
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        "broker.session.timeout.ms": "2000",  # a broker that was killed may come back after this
        "broker.heartbeat.interval.ms": "500",
        "auto.create.topics.enable": "false",
        "log.retention.ms": "-1",  # messages of old times that are replayed would be removed within minutes
    }
