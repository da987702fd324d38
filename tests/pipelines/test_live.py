"""`live`: the real purchases through a real broker, streamed and held to the batch; to its end, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiebeam import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "live"


def flags(folder: Path, kafka, *more: str) -> list[str]:
    return ["run", "live", f"--folder={folder}", f"--servers={kafka.servers}", "--commit_secs=1", "--json", *more]


def test_the_stream_gives_the_sums_of_the_batch(folder, kafka, prism, capsys):
    assert cli.main(flags(folder, kafka, "--rows=120000")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["equal"]
    assert told["purchases sent"] == told["in windows"] + told["late, kept as rows"] == 120_000
    assert told["broken messages sent besides"] == told["rejected, kept as dead letters"] == 1
    assert told["days compared"] > 20
    assert told["files published"] > 0


def test_an_interrupt_drains_the_stream(folder, kafka, prism):
    """As a terminal sends it: to all processes, Prism and the sender among them."""
    command = [sys.executable, "-m", "tiebeam", *flags(folder, kafka, "--rows_per_second=5000")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not list((folder / "windows").glob("*.parquet")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "draining" in err
    told = json.loads(out)
    assert told["equal"]
    assert 0 < told["purchases sent"] == told["in windows"] + told["late, kept as rows"] < 1_000_000


def test_a_folder_that_holds_something_else_is_left_alone(folder, kafka, capsys):
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert cli.main(flags(folder, kafka)) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (folder / "mine.txt").read_text() == "mine"
