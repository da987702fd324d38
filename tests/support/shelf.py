"""A connector for tests: numbered rows in, Arrow files out. Small, real, and able to fail where it is told to."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.connectors import Sink, Source
from tiebeam.dead_letters import Letters, letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.options import option
from tiebeam.rows import ROW_POSITION, RowBatch
from tiebeam.staging import Staged
from tiebeam.steps import BatchFn, apply_batches

SCHEMA = pa.schema([("n", pa.int64()), ("word", pa.string()), (ROW_POSITION, pa.string())])


def numbers(start: int, stop: int) -> RowBatch:
    """Rows start to stop - 1, each with a position of its own."""
    rows = [{"n": n, "word": f"w{n}", ROW_POSITION: f"numbers:{n}"} for n in range(start, stop)]
    return RowBatch.from_pylist(rows, schema=SCHEMA)


class ReadFromShelf(Source):
    """Reads the numbers from 0 to `rows` - 1; every `bad_every`th is rejected."""

    rows: int = option(10, help="How many rows there are", low=0)
    batch_rows: int = option(4, help="Rows in a batch", low=1)
    bad_every: int | None = option(None, help="Which rows are rejected", low=1)

    def read(self, begin: Any) -> beam.PCollection:
        starts = begin | "Starts" >> beam.Create(list(range(0, self.rows, self.batch_rows))).with_output_types(int)
        apart = starts | "Apart" >> beam.Reshuffle()
        return apply_batches(apart, "Parse", _CountFn(self.label, self.rows, self.batch_rows, self.bad_every))

    def sample(self, rows: int) -> RowBatch | None:
        return numbers(0, min(rows, self.rows)) if self.rows else None


class _CountFn(BatchFn):
    def __init__(self, step: str, rows: int, batch_rows: int, bad_every: int | None):
        super().__init__(step)
        self.rows, self.batch_rows, self.bad_every = rows, batch_rows, bad_every

    def apply(self, start: int) -> Iterator[RowBatch | Letters]:
        stop = min(start + self.batch_rows, self.rows)
        bad = [n for n in range(start, stop) if self.bad_every and n % self.bad_every == 0]
        batch = numbers(start, stop)
        yield batch.filter(pc.invert(pc.is_in(batch.column("n"), pa.array(bad, pa.int64()))))
        if bad:
            positions = [f"numbers:{n}" for n in bad]
            originals = [str(n).encode() for n in bad]
            yield letters(self.step, "unlucky", ["its number is bad"] * len(bad), originals, "text", positions=positions)


class WriteToShelf(Sink):
    """Writes rows to Arrow files of a folder. `broken` names the phase that fails; numbers from `refuse_from` on are rejected."""

    path: str = option(help="The folder", example="shelf/")
    mode: str = option("append", help="What to do with rows of earlier runs", choices=Sink.modes)
    refuse_from: int | None = option(None, help="The first number that is refused")
    broken: str | None = option(None, help="Which phase fails", choices=("write", "close", "publish"))

    takes_unbounded = True

    def is_published(self, run_id: str) -> bool:
        return (Path(self.path) / f"_run_{run_id}").exists()

    def ping(self) -> None:
        if Path(self.path).is_file():
            raise ConfigError(Problem("is a file", "path", "name a folder"))

    def location(self) -> str:
        return self.path.rstrip("/")

    def writer(self, run_id: str) -> _ShelfWriter:
        return _ShelfWriter(self, Path(self.path))

    def publish(self, run_id: str, staged: list[Staged]) -> bool:
        if self.broken == "publish":
            raise OSError("the shelf fell down")
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / f"_run_{run_id}"
        if done.exists():
            return False
        if self.mode == "replace":
            for old in folder.glob("*.arrow"):
                old.unlink()
        for piece in staged:
            waiting = Path(piece.handle)
            if waiting.exists():
                waiting.rename(folder / waiting.name)
        done.touch()
        return True


class _ShelfWriter:
    def __init__(self, sink: WriteToShelf, folder: Path):
        self.sink = sink
        self.path = folder / "_staged" / f"{uuid.uuid4().hex}.arrow"
        self.batches: list[RowBatch] = []

    def write(self, batch: RowBatch) -> Iterable[Letters]:
        if self.sink.broken == "write":
            raise OSError("the shelf is full")
        if self.sink.refuse_from is not None:
            refused = pc.greater_equal(batch.column("n"), self.sink.refuse_from)
            bad, batch = batch.filter(refused), batch.filter(pc.invert(refused))
            if bad.num_rows:
                yield letters_of_rows(self.sink.label, bad, "too_high", ["above the shelf"] * bad.num_rows)
        if batch.num_rows:
            self.batches.append(batch)

    def close(self) -> list[Staged]:
        if not self.batches:
            return []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_batches(self.batches)
        with pa.OSFile(str(self.path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
        if self.sink.broken == "close":
            raise OSError("the shelf broke")
        return [Staged(str(self.path), table.num_rows)]

    def abort(self) -> None:
        self.path.unlink(missing_ok=True)


def on_shelf(path: str | Path) -> list[dict[str, Any]]:
    """The visible rows of a shelf, in the order of their numbers or positions."""
    rows = []
    for file in Path(path).glob("*.arrow"):
        with pa.memory_map(str(file)) as source:
            rows += pa.ipc.open_file(source).read_all().to_pylist()
    return sorted(rows, key=lambda r: r.get("n") if r.get("n") is not None else r[ROW_POSITION] or "")


def staged_on_shelf(path: str | Path) -> list[Path]:
    """What was staged there and is not visible."""
    return sorted(Path(path).glob("_staged/*"))


def shelf_table(path: str | Path) -> pa.Table | None:
    """The visible rows of a shelf as one table, None when there are none."""
    tables = []
    for file in sorted(Path(path).glob("*.arrow")):
        with pa.OSFile(str(file)) as source:
            tables.append(pa.ipc.open_file(source).read_all())
    return pa.concat_tables(tables, promote_options="default") if tables else None
