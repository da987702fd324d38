"""What users build on and a release may not change in silence: templates, options, labels of steps, the schema of dead letters.

tests/templates/surface.json lists all that ever was released, one line of text for each. What is new is entered by

    cd tests && python -m support.surface

and what is there is never taken out: when a release renames or removes it, CHANGELOG.md must have a line with its text and, behind a →,
what to use instead.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from support.streams import dealt
from tiebeam import dead_letters, registry
from tiebeam.connectors import Source
from tiebeam.errors import ConfigError
from tiebeam.io._endless import ReadEndless
from tiebeam.options import Option, Secret, declared
from tiebeam.pipelines import _job
from tiebeam.pipelines._account import leaf_labels
from tiebeam.rows import RowBatch
from tiebeam.templates import _build

FILE = Path(__file__).parents[1] / "templates" / "surface.json"
CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
DRY = [
    "--dry_run=True",
    "--no_auth",
    "--project=some-project",
    "--region=europe-west1",
    "--temp_location=gs://bucket/temp",
    "--staging_location=gs://bucket/staging",
]
ROWS = [{"user": "u", "page": page, "amount": 1, "at": "2026-01-01T00:00:00Z"} for page in ("home", "cart")]
DAY = ["--from=2026-01-01T00:00:00Z", "--to=2026-01-02T00:00:00Z"]
SECRET = "env:PASSWORD_OF_THE_BROKERS"
FLAGS = {
    "ingest": DAY,
    "rollup": ["--by=user", "--window=1h", "--aggregates=n=count()", "--where=amount > 0", "--late=parquet", "--late_path=late", *DAY],
    "sessions": ["--event=page", "--funnel=home,cart", "--funnel_sink=parquet", "--funnel_sink_path=funnel"],
}


class Endless(Source):
    """A source without end."""

    bounded = False

    def read(self, begin: Any) -> beam.PCollection:
        schema = pa.schema([("user", pa.string()), ("amount", pa.int64()), ("row_time", pa.timestamp("us", tz="UTC"))])
        batch = RowBatch.from_pydict({"user": ["u"], "amount": [1], "row_time": [0]}, schema=schema)
        return begin | ReadEndless(dealt([batch], disorder=0, seed=1, ends=False))


def graphs(folder: Path) -> dict[str, beam.Pipeline]:
    """The graph of every pipeline as it goes to Dataflow: from files to files, and from a source without end to Kafka with a secret."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = ["--source=jsonl", f"--source_path={folder}/rows.jsonl", "--source_event_time=at"]
    made = {}
    for name, flags in FLAGS.items():
        sink = ["--sink=parquet", f"--sink_path={folder}/{name}"]
        here = [flag.replace("_path=", f"_path={folder}/{name}-") if flag.endswith(("=late", "=funnel")) else flag for flag in flags]
        made[name] = _graph(_job.prepare(name, [*source, *sink, *here]))
    retail = {"input": "in", "output": "out", "warehouse": "retail.duckdb", "report": "report.html", "dead_letters": "rejected"}
    made["retail"] = _graph(_job.prepare("retail", [f"--{option}={folder}/retail/{place}" for option, place in retail.items()]))
    made["rollup of a stream"] = _graph(_stream(folder))
    return made


def _stream(folder: Path) -> _job.Job:
    rollup = registry.pipeline("rollup")
    access = {"security": "sasl_ssl", "sasl": "PLAIN", "username": "me", "password": Secret(SECRET)}
    sink: Any = registry.connector("sink", "kafka")("localhost:9092", "totals", staging=str(folder / "staged"), **access)
    what = {"by": ("user",), "window": "1h", "aggregates": ("n=count()",), "dead_letters": str(folder / "rejected")}
    options = rollup.Options(source=Endless(), sink=sink, **what)
    return _job.Job("rollup", rollup, options, [], [], "", "rollup-1", endless=True)


def _graph(job: _job.Job) -> beam.Pipeline:
    job.runner, job.beam_argv = "DataflowRunner", [*DRY, *(["--streaming"] if job.endless else [])]
    return _job.assemble(job)[0]


def surface(made: dict[str, beam.Pipeline]) -> list[str]:
    """All of it, sorted."""
    told = [f"dead letter {f.name}: {f.type}" for f in dead_letters.SCHEMA]
    for name in registry.PIPELINES:
        told += [f"option {_option(f'{name} --', o)}" for o in declared(registry.pipeline(name).Options)]
        told += [f"template {name} on {target}" for target in registry.TARGETS if _has(name, target)]
    for entry in registry.entries("connectors"):
        if entry.name in registry.CONNECTORS:
            told += [
                f"option {_option(f'{entry.name} {r} --', o)}" for r in entry.roles for o in declared(registry.connector(r, entry.name))
            ]
    for name, p in made.items():
        told += [f"label {name}: {label}" for label in leaf_labels(p)]
    return sorted(set(told))


def _option(prefix: str, o: Option) -> str:
    return f"{prefix}{o.name}: {o.role or o.kind.__name__}"


def _has(pipeline: str, target: str) -> bool:
    try:
        registry.target(target).build(_build.Settings(pipeline, target, Path("nowhere")))
    except ConfigError:
        return False
    return True


def unexplained(released: list[str], now: list[str], changelog: str) -> list[str]:
    """What was released, is no more, and is not told of in the changelog: a line with its text, and `→` behind it."""
    told = [line.partition("→")[0] for line in changelog.splitlines() if "→" in line]
    return [item for item in released if item not in set(now) and not any(f"`{item}`" in line for line in told)]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        now = surface(graphs(Path(folder)))
    before = json.loads(FILE.read_text()) if FILE.exists() else []
    FILE.write_text(json.dumps(sorted({*before, *now}), indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
