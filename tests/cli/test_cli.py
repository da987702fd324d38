"""The command line: list, describe, plan, completion, exit codes, and other people's connectors and pipelines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiebeam import __version__, cli, registry


def out(capsys, *argv: str, code: int = 0) -> str:
    assert cli.main(list(argv)) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 100


def test_list_shows_everything_in_100_columns(capsys):
    text = out(capsys, "list")
    assert fits(text) and "cannot be loaded" not in text
    for name in [*registry.PIPELINES, *registry.CONNECTORS]:
        assert name in text
    listed = json.loads(out(capsys, "list", "--json"))
    assert {c["name"]: c["roles"] for c in listed["connectors"]}["parquet"] == ["source", "sink"]


def test_list_loads_neither_beam_nor_arrow():
    heavy = "{'apache_beam', 'pyarrow', 'polars', 'duckdb'}"
    code = f"import sys\nfrom tiebeam import cli\ncli.main(['list'])\nassert not {heavy} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


@pytest.mark.parametrize("name", [*registry.PIPELINES, *registry.CONNECTORS])
def test_describe(name, capsys):
    assert fits(out(capsys, "describe", name))
    about = json.loads(out(capsys, "describe", name, "--json"))
    described = [o for part in (about, about.get("source", {}), about.get("sink", {})) for o in part.get("options", [])]
    assert described and all(o["help"] and not o["help"].endswith(".") for o in described)


def test_misspelt_names_get_the_nearest(capsys):
    assert "did you mean parquet?" in out(capsys, "describe", "parket", code=2)
    assert "did you mean ingest?" in out(capsys, "run", "injest", code=2)
    assert "there is no command 'lst'" in out(capsys, "lst", code=2)


def test_version_and_help(capsys):
    assert out(capsys, "--version") == f"tiebeam {__version__}\n"
    assert out(capsys) == cli.USAGE
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "ingest", "--help"])
    assert stopped.value.code == 0
    assert "--max_rejected_ratio" in capsys.readouterr().out


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"id": 1, "name": "a"}\n{"id": 2, "name": "b"}\n')
    return ["--source=jsonl", "--source_path=rows.jsonl", "--sink=parquet", "--sink_path=out/"]


def test_plan_shows_schema_graph_and_places_and_moves_nothing(rows, capsys):
    text = out(capsys, "plan", "ingest", *rows)
    assert fits(text)
    for part in ("int64", "out.rejected", "Read → Conform → Write", "FnApiRunner", "Nothing was moved"):
        assert part in text
    assert sorted(p.name for p in Path().iterdir()) == ["rows.jsonl"]
    about = json.loads(out(capsys, "plan", "ingest", *rows, "--json"))
    assert [c["name"] for c in about["schemas"]["source"]][:2] == ["id", "name"]


def test_plan_writes_the_inferred_contract_and_run_takes_it(rows, capsys):
    out(capsys, "plan", "ingest", *rows, "--write_contract=c.yaml")
    assert "DataContract" in Path("c.yaml").read_text()
    assert cli.main(["run", "ingest", *rows, "--contract=c.yaml"]) == 0
    assert "2 read = 2 accepted + 0 rejected" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--direct_running_mode=multi_threading", "--runner=PrismRunner"])
def test_plan_refuses_runner_modes_that_lose_rows(rows, flag, capsys):
    assert "lose" in out(capsys, "plan", "ingest", *rows, flag, code=2)


def test_completion_offers_verbs_names_and_flags(capsys):
    assert "ingest" in out(capsys, "words", "run", "").split()
    flags = out(capsys, "words", "run", "ingest", "--source=jsonl", "--so").split()
    assert "--source=jsonl" in flags and "--source_path=" in flags and "--dead_letters=" in flags
    for shell in ("bash", "zsh", "fish"):
        assert "tiebeam" in out(capsys, "completion", shell)


CONNECTOR = '''"""Numbers counted upwards."""
import apache_beam as beam
import pyarrow as pa
from tiebeam.connectors import Source
from tiebeam.options import option
from tiebeam.steps import BatchFn, apply_batches


class _CountFn(BatchFn):
    def apply(self, n):
        yield pa.RecordBatch.from_pydict({"n": list(range(n))})


class ReadFromNumbers(Source):
    """Counts upwards from nought."""

    upto: int = option(help="How many numbers", low=1)

    def read(self, begin):
        return apply_batches(begin | beam.Create([self.upto]), "Count", _CountFn(self.label))

    def sample(self, rows):
        return pa.RecordBatch.from_pydict({"n": list(range(min(rows, self.upto)))})
'''


def test_other_peoples_connectors_appear_and_run(tmp_path):
    """A distribution with the entry point `tiebeam.connectors` is listed, described and run like our own."""
    (tmp_path / "numbers_connector.py").write_text(CONNECTOR)
    info = tmp_path / "numbers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numbers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tiebeam.connectors]\nnumbers = numbers_connector\n")

    def tiebeam(*argv: str) -> str:
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom tiebeam import cli\nsys.exit(cli.main(sys.argv[1:]))"
        result = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "Numbers counted upwards." in tiebeam("list")
    assert "--source_upto" in tiebeam("describe", "numbers")
    flags = ["--source=numbers", "--source_upto=5", "--sink=jsonl", "--sink_path=out/"]
    assert "5 read = 5 accepted + 0 rejected" in tiebeam("run", "ingest", *flags)
    assert sorted(json.loads(line)["n"] for f in (tmp_path / "out").glob("*.jsonl") for line in f.read_text().splitlines()) == [
        0,
        1,
        2,
        3,
        4,
    ]
