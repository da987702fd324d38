"""`ingest` through its own command line: every pair of file connectors and DuckDB, contracts, exit codes, repeated runs."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from support.pickling import pickled_edges
from tiebeam import cli
from tiebeam.pipelines import _job

GOOD = [{"id": i, "shop": "ab"[i % 2], "net": i / 4} for i in range(100)]
BAD = ['{"id": 7, "shop": "a", "net": ', '{"id": 7, "shop": "a", "id": 8, "net": 1.5}']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    lines = [json.dumps(row) for row in GOOD]
    lines[50:50] = BAD
    (tmp_path / "in/rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def ingest(*flags: str) -> int:
    return cli.main(["run", "ingest", *flags])


FROM_JSONL = ("--source=jsonl", "--source_path=in/*.jsonl")


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()}


def letters(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "avro"])
def test_rows_reach_every_file_sink_and_come_back(folder, kind, capsys):
    assert ingest(*FROM_JSONL, f"--sink={kind}", "--sink_path=out/") == 0
    assert "102 read = 100 accepted + 2 rejected" in capsys.readouterr().out
    assert ingest(f"--source={kind}", "--source_path=out/", "--sink=duckdb", "--sink_path=w.duckdb", "--sink_table=t") == 0
    with duckdb.connect("w.duckdb", read_only=True) as db:
        assert db.execute("SELECT id, shop, net FROM t ORDER BY id").fetchall() == [(r["id"], r["shop"], r["net"]) for r in GOOD]


def test_rejected_rows_are_kept_whole_beside_the_output(folder):
    assert ingest(*FROM_JSONL, "--sink=parquet", "--sink_path=out/") == 0
    import base64

    kept = letters(folder / "out.rejected")
    assert sorted(base64.b64decode(k["original"]).decode().strip() for k in kept) == sorted(line.strip() for line in BAD)
    assert {k["pipeline"] for k in kept} == {"ingest"} and {k["attempt"] for k in kept} == {1}
    assert all("in/rows.jsonl:" in k["row_position"] for k in kept)


def test_no_batch_takes_the_pickle_path_on_any_edge(folder):
    job = _job.prepare("ingest", [*FROM_JSONL, "--sink=duckdb", "--sink_path=w.duckdb", "--sink_table=t"])
    assert pickled_edges(_job.assemble(job)[0]) == []


def test_the_same_run_twice_changes_nothing(folder, capsys):
    flags = (*FROM_JSONL, "--sink=parquet", "--sink_path=out/", "--dead_letters=rejected/")
    assert ingest(*flags) == 0
    before = tree(folder)
    assert ingest(*flags) == 0
    after = tree(folder)
    jobs = {f for f in before if "/_jobs/" in f}
    assert {f: v for f, v in after.items() if f not in jobs} == {f: v for f, v in before.items() if f not in jobs}
    assert "already published" in capsys.readouterr().out


def test_new_input_is_a_new_run(folder):
    flags = (*FROM_JSONL, "--sink=parquet", "--sink_path=out/", "--sink_mode=replace")
    assert ingest(*flags) == 0
    (folder / "in/more.jsonl").write_text(json.dumps({"id": 1000, "shop": "c", "net": 2.5}) + "\n")
    assert ingest(*flags) == 0
    assert duckdb.sql("SELECT count(*) FROM read_parquet('out/*.parquet')").fetchall() == [(101,)]


def test_every_problem_is_told_at_once(folder, capsys):
    assert ingest("--source=jsonl", "--source_pth=in/*.jsonl", "--sink=parquett", "--max_rejected_ratio=7") == 2
    said = capsys.readouterr().err
    for part in ("--source_path", "did you mean --source_path?", "did you mean parquet?", "largest allowed"):
        assert part in said
    assert not (folder / "out").exists()


def test_a_missing_input_is_told_before_anything_moves(folder, capsys):
    assert ingest("--source=jsonl", "--source_path=nowhere/*.jsonl", "--sink=parquet", "--sink_path=out/") == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_place_for_dead_letters_that_cannot_be_written_is_told_before_anything_moves(folder, capsys):
    (folder / "rejected").write_text("a file, where a folder is wanted")
    assert ingest(*FROM_JSONL, "--sink=parquet", "--sink_path=out/", "--dead_letters=rejected") == 2
    assert "rejected" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_too_many_rejected_publishes_dead_letters_only(folder, capsys):
    assert ingest(*FROM_JSONL, "--sink=parquet", "--sink_path=out/", "--max_rejected_ratio=0.01") == 3
    assert "2 of 102 rows read were rejected" in capsys.readouterr().err
    assert len(letters(folder / "out.rejected")) == 2
    assert not list((folder / "out").rglob("*.parquet"))


def test_options_file_holds_flags_and_given_flags_win(folder):
    (folder / "job.yaml").write_text("source: jsonl\nsource_path: in/*.jsonl\nsink: parquet\nsink_path: elsewhere/\n")
    assert ingest("--options_file=job.yaml", "--sink_path=out/") == 0
    assert (folder / "out").exists() and not (folder / "elsewhere").exists()


def test_as_a_module_with_beams_own_flags(folder):
    command = [sys.executable, "-m", "tiebeam.pipelines.ingest", *FROM_JSONL, "--sink=csv", "--sink_path=out/"]
    result = subprocess.run([*command, "--runner=FnApiRunner", "--direct_num_workers=1"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "102 read" in result.stdout
    assert subprocess.run([*command, "--direct_num_worker=1"], capture_output=True, text=True).returncode == 2


def test_interrupt_leaves_nothing_half_published(folder):
    """SIGINT at a moment that is certain: rows have been conformed, nothing has been published."""
    script = (
        "import os, signal, sys, threading\n"
        "from tiebeam import cli, steps\n"
        "real = steps.count\n"
        "def count(step, name, amount):\n"
        "    real(step, name, amount)\n"
        "    if step == 'Conform' and name == 'rows_out':\n"
        "        os.kill(os.getpid(), signal.SIGINT); threading.Event().wait(60)\n"
        "steps.count = count\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "run", "ingest", *FROM_JSONL, "--sink=parquet", "--sink_path=out/"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not [f for f in (folder / "out").rglob("*") if f.is_file()]


@pytest.mark.parametrize("sent", [signal.SIGKILL])
def test_a_killed_run_leaves_the_table_as_it_was(folder, sent):
    assert ingest(*FROM_JSONL, "--sink=parquet", "--sink_path=out/", "--run_id=first") == 0
    before = tree(folder / "out")
    script = (
        "import os, sys\n"
        "from tiebeam import cli, delivery\n"
        "publish = delivery._PublishFn.process\n"
        f"def kill(self, *a, **k): os.kill(os.getpid(), {int(sent)}); yield 0\n"
        "delivery._PublishFn.process = kill\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    flags = ["run", "ingest", *FROM_JSONL, "--sink=parquet", "--sink_path=out/", "--run_id=second"]
    assert subprocess.run([sys.executable, "-c", script, *flags], capture_output=True).returncode == -sent
    published = {f: v for f, v in tree(folder / "out").items() if "_staging" not in f}
    assert published == before
    assert cli.main(flags) == 0
    assert duckdb.sql("SELECT count(*), count(DISTINCT id) FROM read_parquet('out/*.parquet')").fetchall() == [(200, 100)]
