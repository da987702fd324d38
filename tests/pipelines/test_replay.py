"""Replay: rows come back once the contract is mended, exactly once; the rest is counted, bounded and parked."""

import json
from pathlib import Path

import duckdb
import pytest

from tiebeam import cli
from tiebeam.pipelines._letter_store import FolderStore

CONTRACT = """\
apiVersion: v3.0.2
kind: DataContract
id: shop
version: 1.0.0
status: active
schema:
  - name: sales
    logicalType: object
    properties:
      - name: id
        logicalType: integer
        required: true
      - name: net
        logicalType: number
        logicalTypeOptions:
          minimum: {minimum}
"""
FLAGS = ("--source=jsonl", "--source_path=in/*.jsonl", "--sink=parquet", "--sink_path=out/", "--contract=c.yaml")


@pytest.fixture
def store(tmp_path, monkeypatch, capsys):
    """A store with five rows below the minimum and one malformed line."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    lines = [json.dumps({"id": i, "net": float(i - 5)}) for i in range(20)]
    Path("in/rows.jsonl").write_text("\n".join([*lines, '{"id": 99, "net"']) + "\n")
    Path("c.yaml").write_text(CONTRACT.format(minimum=0))
    assert cli.main(["run", "ingest", *FLAGS]) == 0
    assert "21 read = 15 accepted + 6 rejected" in capsys.readouterr().out
    return tmp_path / "out.rejected"


def rows() -> list[tuple]:
    return duckdb.sql("SELECT id, net FROM read_parquet('out/*.parquet') ORDER BY id").fetchall()


def letters(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def replay(*flags: str) -> int:
    return cli.main(["replay", "--dead_letters=out.rejected", *flags])


def test_a_mended_contract_brings_the_rows_in_once(store):
    Path("c.yaml").write_text(CONTRACT.format(minimum=-10))
    assert replay() == 0
    wanted = [(i, float(i - 5)) for i in range(20)]
    assert rows() == wanted
    assert [(k["reason"], k["attempt"]) for k in letters(store)] == [("malformed", 2)]
    assert replay() == 0
    assert rows() == wanted


def test_rows_refused_again_are_counted_and_parked_beyond_the_bound(store):
    for attempt in (2, 3):
        assert replay() == 0
        assert sorted(k["attempt"] for k in letters(store)) == [attempt] * 6
    assert replay() == 0
    assert letters(store) == []
    assert sorted(k["attempt"] for k in letters(store / "parked")) == [4] * 6
    before = {f: f.read_bytes() for f in store.rglob("*") if f.is_file()}
    assert replay() == 0
    assert {f: f.read_bytes() for f in store.rglob("*") if f.is_file()} == before
    assert len(rows()) == 15


def test_a_broken_line_of_the_store_is_parked(store):
    file = next(store.glob("*.jsonl"))
    file.write_bytes(file.read_bytes() + b'{"step": "Conform", "original": 5}\nnot even json\n')
    Path("c.yaml").write_text(CONTRACT.format(minimum=-10))
    assert replay() == 0
    assert len(rows()) == 20
    assert [k["reason"] for k in letters(store / "parked")] == ["broken_letter"] * 2


def test_a_replay_that_dies_after_publishing_doubles_nothing(store, monkeypatch):
    Path("c.yaml").write_text(CONTRACT.format(minimum=-10))

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "_close_plan", die)
        with pytest.raises(KeyboardInterrupt):
            replay()
    assert replay() == 0
    assert rows() == [(i, float(i - 5)) for i in range(20)]
    assert [(k["reason"], k["attempt"]) for k in letters(store)] == [("malformed", 2)]


def test_a_replay_that_dies_before_the_letters_leave_doubles_nothing(store, monkeypatch):
    from tiebeam.io.jsonl import WriteToJsonl

    Path("c.yaml").write_text(CONTRACT.format(minimum=-10))

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WriteToJsonl, "retire", die)
        with pytest.raises(KeyboardInterrupt):
            replay()
    assert replay() == 0
    assert rows() == [(i, float(i - 5)) for i in range(20)]
    assert [(k["reason"], k["attempt"]) for k in letters(store)] == [("malformed", 2)]


def test_no_such_store_is_a_wrong_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["replay", "--dead_letters=nowhere"]) == 2
    assert "there is no store at nowhere" in capsys.readouterr().err
