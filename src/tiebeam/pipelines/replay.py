"""Replay: rejected rows through their own pipeline again, with the options they were first run with.

    tiebeam replay --dead_letters=out.rejected

Each job whose letters lie in the store runs once more, over those letters only, appending to its sinks; a pipeline
without a source to replace (its output is computed from all of its input) runs again as a whole. A letter refused
again goes back to the store with its attempt counted, and is parked beyond `max_attempts`. A line of the store that is
no letter is parked at once. Flags given behind the store's override those of the job: a mended `--contract`, say.

A replay that dies is taken up where it stopped, under the same name, and so doubles nothing: which files it replays is
written down before it starts, and they leave the store in one step after it is done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, ClassVar

import apache_beam as beam
import pyarrow as pa

from tiebeam import registry, terminal
from tiebeam.connectors import Source
from tiebeam.dead_letters import SCHEMA, Letters, letters
from tiebeam.errors import ConfigError, Problem
from tiebeam.options import JobOptions, declared, option
from tiebeam.pipelines import _job
from tiebeam.pipelines._letter_store import Store, Taken, park, store_at
from tiebeam.rows import ROW_POSITION, RowBatch
from tiebeam.steps import BatchFn, apply_batches


class Options(JobOptions):
    """Which dead letters are replayed; further flags override those of the jobs they came from."""

    dead_letters: str = option(help="The store of dead letters to replay, a folder or bigquery:TABLE", example="out.rejected")


class ReadLetters(Source):
    """Reads dead letters again as the rows they were, through the source they came from.

    Out: what `source.decode` makes of them; rows that were typed already as they were typed.
    """

    formats: ClassVar[tuple[str, ...]] = ("arrow",)
    source: Any = None
    waiting: Any = ()

    def sample(self, rows: int) -> RowBatch | None:
        return self.source.sample(rows)

    def with_types(self, schema: pa.Schema) -> ReadLetters:
        return ReadLetters(self.source.with_types(schema) if hasattr(self.source, "with_types") else self.source, self.waiting)

    def read(self, begin: Any) -> beam.PCollection:
        packed = begin | beam.Create([RowBatch.from_pylist(self.waiting, schema=SCHEMA)]).with_output_types(RowBatch)
        return apply_batches(packed, "Decode", _DecodeFn(self.label, self.source))


class _DecodeFn(BatchFn):
    def __init__(self, step: str, source: Source):
        super().__init__(step)
        self.source = source

    def process(self, batch):  # letters are not rows: they are not counted as rows in
        return self.emit(self.apply(batch))

    def apply(self, batch: RowBatch) -> Iterator[RowBatch | Letters]:
        typed = [row for row in batch.to_pylist() if row["original_format"] == "arrow"]
        for row in typed if "arrow" not in self.source.formats else ():
            yield pa.ipc.open_stream(pa.py_buffer(row["original"])).read_next_batch()
        for kind in self.source.formats:
            raw = [row for row in batch.to_pylist() if row["original_format"] == kind]
            if raw:
                yield from self.source.decode([r["original"] for r in raw], [r[ROW_POSITION] for r in raw], self.step)
        unknown = [r for r in batch.to_pylist() if r["original_format"] not in ("arrow", *self.source.formats)]
        if unknown:
            details = [f"this source cannot decode {r['original_format']}" for r in unknown]
            originals, positions = [r["original"] or b"" for r in unknown], [r[ROW_POSITION] for r in unknown]
            yield letters(self.step, "unknown_format", details, originals, "unknown", positions=positions)


def main(argv: list[str], as_json: bool) -> int:
    """Replays a store and returns the exit code."""
    path, overrides = _split(argv)
    store = store_at(path)
    taken = store.take()
    if taken is None:
        print(json.dumps({"replayed": 0}) if as_json else f"no dead letters wait in {path}")
        return 0
    park(path, taken)
    outcomes = [_replay(path, store, taken.id, i, key, rows, overrides) for i, (key, rows) in enumerate(sorted(taken.letters.items()))]
    store.close(taken)
    if as_json:
        print(
            json.dumps(
                {"replayed": sum(map(len, taken.letters.values())), "parked": len(taken.broken), "runs": [asdict(o) for o in outcomes]},
                indent=2,
            )
        )
    else:
        print(_report(path, taken, outcomes))
    return 0


def _split(argv: list[str]) -> tuple[str, list[str]]:
    paths = [a.partition("=")[2] for a in argv if a.startswith("--dead_letters=")]
    if len(paths) != 1 or not paths[0]:
        raise ConfigError(Problem("is required, once", "--dead_letters", "the store to replay, such as --dead_letters=out.rejected"))
    return paths[0].rstrip("/"), [a for a in argv if not a.startswith("--dead_letters=")]


def _replay(path: str, store: Store, plan_id: str, index: int, key: str, rows: list[dict[str, Any]], overrides: list[str]) -> Any:
    """Runs one job again over its letters."""
    name, run_id = key.split("\n")
    argv = [*_kept_argv(store, name, run_id), *overrides, f"--dead_letters={path}", f"--run_id={plan_id}-{index}"]
    job = _job.prepare(name, _last_wins(argv), on=False)
    attempts = {row[ROW_POSITION]: row["attempt"] for row in rows if row[ROW_POSITION]}
    roles = {o.role: o.name for o in declared(type(job.options)) if o.role}
    if "source" in roles:
        setattr(job.options, roles["source"], ReadLetters(getattr(job.options, roles["source"]), rows))
        for sink in _job.connectors(job.options).values():
            if getattr(sink, "mode", "").startswith("replace"):
                sink.mode = "append"
    print(f"replay: {len(rows):,} letters of run {run_id}", file=sys.stderr)
    return _job.execute(job, prior_attempts=attempts)


def _kept_argv(store: Store, name: str, run_id: str) -> list[str]:
    registry.pipeline(name)
    if (kept := store.argv_of(run_id)) is None:
        what, fix = f"the options of run {run_id} are not kept with the store", "give them as flags to a run of their own"
        raise ConfigError(Problem(what, "--dead_letters", fix))
    return json.loads(kept)["argv"]


def _last_wins(argv: list[str]) -> list[str]:
    return list({a.partition("=")[0]: a for a in argv}.values())


def _report(path: str, taken: Taken, outcomes: list[Any]) -> str:
    rows = [(o.pipeline, o.run_id, o.read, o.accepted, o.rejected) for o in outcomes]
    facts = [("store", path), ("broken lines", f"{len(taken.broken)} parked")] if taken.broken else [("store", path)]
    return terminal.table(["pipeline", "run", "rows", "accepted", "rejected again"], rows) + "\n\n" + terminal.table(["", "replay"], facts)


def run(argv: list[str] | None = None) -> int:
    """Runs `replay` from its flags and returns the exit code."""
    return _job.run("replay", argv)


if __name__ == "__main__":
    sys.exit(run())
