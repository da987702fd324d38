"""`tiebeam lab`: a broker that stays between commands, keeps its data, and leaves nothing running."""

from __future__ import annotations

import json
import time

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tiebeam import cli
from tiebeam.lab import bigquery as lab_bigquery
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


def test_bigquery_is_there_where_the_lab_says(tmp_path, capsys, bigquery, monkeypatch):
    monkeypatch.delenv(lab_bigquery.ENV, raising=False)
    folder = f"--folder={tmp_path}"
    try:
        shown = told(capsys, "up", "bigquery", folder)
        found = dict(line.removeprefix("export ").split("=", 1) for line in shown.splitlines() if line.startswith("export "))
        rest, storage = found[lab_bigquery.ENV], found[lab_bigquery.STORAGE_ENV]
        assert answers(rest.removeprefix("http://"))
        assert answers(storage)
    finally:
        told(capsys, "down", folder)
    assert not answers(storage)


@pytest.mark.parametrize("argv", [[], ["start"], ["up", "zookeeper"], ["down", "kafka"]])
def test_what_the_lab_does_not_understand(argv, capsys):
    assert cli.main(["lab", *argv]) == 2
    assert "lab up" in capsys.readouterr().err
