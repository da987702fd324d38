"""`tiebeam lab`: services that stay between commands and leave nothing running; a broker keeps its data."""

from __future__ import annotations

import json
import time

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from support import services
from tiebeam import cli
from tiebeam.lab import kafka as lab_kafka
from tiebeam.lab._machine import answers


def told(capsys, *argv: str) -> str:
    assert cli.main(["lab", *argv]) == 0
    return capsys.readouterr().out


def test_a_broker_stays_keeps_its_data_and_ends(tmp_path, capsys, kafka, monkeypatch):
    monkeypatch.delenv(lab_kafka.ENV, raising=False)
    folder = f"--folder={tmp_path}"
    try:
        first = json.loads(told(capsys, "up", "kafka", folder, "--json"))["kafka"]
        assert json.loads(told(capsys, "up", folder, "--json"))["kafka"] == first  # it runs already
        making = AdminClient({"bootstrap.servers": first["address"], "log_level": 0})
        making.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
        assert "ended: kafka" in told(capsys, "down", folder)
        assert not answers(first["address"])
        assert "nothing is running" in told(capsys, "status", folder)
        second = json.loads(told(capsys, "up", folder, "--json"))["kafka"]
        assert found(second["address"], "kept")
    finally:
        told(capsys, "down", folder)
    assert not answers(second["address"])


def found(servers: str, topic: str) -> bool:
    """Whether a broker that has just started comes to know a topic."""
    watching = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    until = time.monotonic() + 30
    while topic not in watching.list_topics(timeout=20).topics:
        if time.monotonic() > until:
            return False
    return True


@pytest.mark.parametrize(
    ("service", "names"),
    [
        ("bigquery", ["BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"]),
        ("pubsub", ["PUBSUB_EMULATOR_HOST"]),
        ("gcs", ["STORAGE_EMULATOR_HOST"]),
    ],
)
def test_an_emulator_is_there_where_the_lab_says(service, names, tmp_path, capsys, monkeypatch):
    services.obtain(service)
    for name in ("BIGQUERY_EMULATOR_HOST", "PUBSUB", "GCS"):
        monkeypatch.delenv(name, raising=False)
    folder = f"--folder={tmp_path}"
    try:
        shown = told(capsys, "up", service, folder)
        found = dict(line.removeprefix("export ").split("=", 1) for line in shown.splitlines() if line.startswith("export "))
        addresses = [found[name].removeprefix("http://") for name in names]
        assert all(map(answers, addresses))
    finally:
        told(capsys, "down", folder)
    assert not any(map(answers, addresses))


@pytest.mark.parametrize("argv", [[], ["start"], ["up", "zookeeper"], ["down", "kafka"]])
def test_what_the_lab_does_not_understand(argv, capsys):
    assert cli.main(["lab", *argv]) == 2
    assert "lab up" in capsys.readouterr().err
