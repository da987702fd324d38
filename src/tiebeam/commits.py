"""Commits: how a sink publishes again and again what an input without end has brought, each row once, whoever is killed.

Two steps with state, both keyed by shard:

    Stage     keeps rows, and every `commit_secs` writes them to one staged, invisible commit and hands on its name. When there was
              nothing it hands on a poke, for as long as the input lasts; after its end until the destination shows the last commits.
    Publish   keeps the names. Each call, pokes too, asks the runner to be told when its bundle is durable, and is then publishing
              those commits that an earlier such message has found in place already.

Why two messages: on Flink a bundle that ends behind a checkpoint's barrier is told with that checkpoint and is not part of it. What
it published would be staged again after a crash. docs/delivery.md has the whole argument, and what was measured.
"""

from __future__ import annotations

import math
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import VarIntCoder
from apache_beam.transforms import window
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from tiebeam.dead_letters import REJECTED, route, route_nowhere
from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.rows import RowBatch, RowBatchCoder, with_column
from tiebeam.staging import Staged, TwoPhase
from tiebeam.steps import ROWS_IN, ROWS_OUT, BatchFn, count, gauge

COMMITS_STAGED, COMMITS_PUBLISHED, COMMITS_WAITING = "commits_staged", "commits_published", "commits_waiting "
ROWS_PUBLISHED, LETTERS_PUBLISHED = "rows_published", "letters_published"
STATED = "commit"
PATIENCE_SECS = 900
"""How long a destination may be away before a job stops; what is staged waits meanwhile."""
_POKE = RowBatch.from_arrays([pa.array(["poke"])], names=["poke"])
_REMEMBERED = 100_000  # to forget one costs a commit another message, or a publication that finds itself done
_LAST = window.GlobalWindow().max_timestamp()


class Commit(beam.PTransform):
    """Stages and publishes rows as they come.

    In: row batches of an input that never ends.
    Out: reports of what was staged. Rows that the sink refuses are dead letters; `final`: they have no further place, and stop the job.
    """

    def __init__(self, sink: TwoPhase, step: str, run_id: str, *, final: bool = False):
        super().__init__()
        self.sink = sink
        self.step = step
        self.run_id = run_id
        self.route = route_nowhere if final else route
        self.counts = LETTERS_PUBLISHED if final else ROWS_PUBLISHED
        if sink.mode in ("replace", "replace_partitions"):
            what = f"mode={sink.mode} on an input that never ends: there is no whole to replace"
            raise ConfigError(Problem(what, step, "use append or upsert, or give the source an end"))

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        writers = 1 if getattr(self.sink, "key", ()) else self.sink.writers  # what comes later of a key must be published later
        whole = rows | "Whole run" >> beam.WindowInto(window.GlobalWindows())
        sharded = whole | "Shard" >> beam.ParDo(_ShardFn(writers)).with_output_types(tuple[int, RowBatch])
        stage = beam.ParDo(_StageFn(self.step, self.sink, self.run_id)).with_output_types(tuple[int, RowBatch])
        outputs = sharded | "Stage" >> stage.with_outputs(REJECTED, main="rows")
        outputs.rows.element_type = beam.typehints.Tuple[int, RowBatch]
        staged = self.route(outputs)
        names = staged | "Name" >> beam.Map(_as_it_is).with_output_types(tuple[int, RowBatch])  # Publish has an input of its own
        _ = names | "Publish" >> beam.ParDo(_PublishFn(self.step, self.sink, self.counts)).with_output_types(int)
        return staged | "Reports" >> beam.Values().with_output_types(RowBatch)


def _as_it_is(element: Any) -> Any:
    return element


class _ShardFn(beam.DoFn):
    """Deals batches to the writers in turn."""

    def __init__(self, writers: int):
        self.writers = writers
        self.turn = 0

    def process(self, batch):
        self.turn = (self.turn + 1) % self.writers
        yield self.turn, batch


class _StageFn(BatchFn):
    """Keeps the rows of a shard and stages them in time."""

    ROWS = BagStateSpec("rows", RowBatchCoder())
    HELD = BagStateSpec("held", VarIntCoder())
    """How many rows each batch has that is kept; a 0 when the clock runs."""
    LAST = BagStateSpec("last", RowBatchCoder())
    """The commit that was handed on last. All before it are visible when it is, and the end of the input waits for that."""
    CLOCK = TimerSpec("clock", TimeDomain.REAL_TIME)
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(self, step: str, sink: TwoPhase, run_id: str):
        super().__init__(step)
        self.sink = sink
        self.run_id = run_id

    def process(
        self, keyed, rows=beam.DoFn.StateParam(ROWS), held=beam.DoFn.StateParam(HELD),
        last=beam.DoFn.StateParam(LAST), clock=beam.DoFn.TimerParam(CLOCK), end=beam.DoFn.TimerParam(END),
    ):  # fmt: skip
        shard, batch = keyed
        count(self.step, ROWS_IN, batch.num_rows)
        kept = list(held.read())
        if not kept:
            self._wind(clock)
            end.set(_LAST)
            held.add(0)
        rows.add(batch)
        held.add(batch.num_rows)
        if sum(kept) + batch.num_rows >= self.sink.commit_rows:
            yield from self._staged(shard, rows, held, last)

    @on_timer(CLOCK)
    def strike(
        self, shard=beam.DoFn.KeyParam, rows=beam.DoFn.StateParam(ROWS), held=beam.DoFn.StateParam(HELD),
        last=beam.DoFn.StateParam(LAST), clock=beam.DoFn.TimerParam(CLOCK),
    ):  # fmt: skip
        if kept := list(held.read()):
            self._wind(clock)
            yield from self._staged(shard, rows, held, last) if sum(kept) else [_at_end(shard, _POKE)]
        elif handed_on := list(last.read()):  # the input has ended
            if self.sink.is_published(_name_of(handed_on[0])):
                last.clear()
            else:
                self._wind(clock)
            yield _at_end(shard, _POKE)  # one more when it is visible, so that Publish counts it

    @on_timer(END)
    def finish(
        self, shard=beam.DoFn.KeyParam, rows=beam.DoFn.StateParam(ROWS), held=beam.DoFn.StateParam(HELD),
        last=beam.DoFn.StateParam(LAST), clock=beam.DoFn.TimerParam(CLOCK),
    ):  # fmt: skip
        yield from self._staged(shard, rows, held, last)
        held.clear()
        self._wind(clock)

    def _wind(self, clock: Any) -> None:
        """Whole seconds: Flink cuts delays to these, and what is shorter or past becomes a busy loop there."""
        clock.set(Timestamp(math.ceil(time.time()) + self.sink.commit_secs))

    def _staged(self, shard: int, rows: Any, held: Any, last: Any) -> Iterator[Any]:
        """Writes what is kept to one commit, and hands on its name."""
        batches = list(rows.read())
        rows.clear()
        held.clear()
        held.add(0)
        if not batches:
            return
        name = name_of(self.run_id, shard, after=next(map(_name_of, last.read()), ""))
        writer = self.sink.writer(name)
        try:
            for batch in batches:
                yield from self.emit(writer.write(batch))
            pieces = writer.close()
        except BaseException:
            writer.abort()
            raise
        if pieces:
            count(self.step, ROWS_OUT, sum(piece.rows for piece in pieces))
            count(self.step, COMMITS_STAGED, 1)
            packed = Staged.pack(pieces)
            report = with_column(packed, STATED, pa.array([name] * packed.num_rows))
            last.clear()
            last.add(report)
            yield _at_end(shard, report)


_NAME = re.compile(r"(?P<writer>.+-\d+)-(?P<moment>\d{19})-[0-9a-f]{12}")


def name_of(run_id: str, shard: int, after: str = "") -> str:
    """A new name for a commit of a writer. Those of one writer are in the order in which they were made, whatever clocks say."""
    earlier = _NAME.fullmatch(after)
    moment = max(time.time_ns(), int(earlier["moment"]) + 1 if earlier else 0)
    return f"{run_id}-{shard}-{moment:019}-{uuid.uuid4().hex[:12]}"


def writer_of(name: str) -> str | None:
    """The run and the writer of a commit, which publishes one commit at a time; None where the name is that of a whole run."""
    found = _NAME.fullmatch(name)
    return found["writer"] if found else None


def _at_end(shard: int, batch: RowBatch) -> window.TimestampedValue:
    return window.TimestampedValue((shard, batch), _LAST)


def _name_of(report: RowBatch) -> str:
    return report.column(STATED)[0].as_py()


def pieces_of(report: RowBatch) -> list[Staged]:
    """The pieces of a commit."""
    return Staged.unpack([report.drop_columns([STATED])])


class _Progress:
    """What this process knows of commits: how often each was found in place, which are published, and what went wrong."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        self._published: set[str] = set()
        self._busy: set[str] = set()
        self._trouble: dict[str, Exception] = {}
        self._away: dict[str, float] = {}
        """Since when a destination does not take a commit."""

    def of(self, names: Iterable[str]) -> dict[str, int]:
        """How often each was seen; raises what went wrong with one of them."""
        with self._lock:
            for name in names:
                if (trouble := self._trouble.pop(name, None)) is not None:
                    raise trouble
            return {name: self._seen.get(name, 0) for name in names}

    def is_published(self, name: str) -> bool:
        with self._lock:
            return name in self._published

    def saw(self, seen: dict[str, int]) -> None:
        """Each was seen once more than when the bundle was registered: one message of a runner may end many bundles."""
        with self._lock:
            self._seen.update((name, max(self._seen.get(name, 0), times + 1)) for name, times in seen.items())
            while len(self._seen) > _REMEMBERED:
                self._published.discard(oldest := next(iter(self._seen)))
                del self._seen[oldest]

    def publish(self, sink: TwoPhase, name: str, pieces: list[Staged]) -> bool:
        """Whether it is visible now; what comes later waits for it."""
        try:
            sink.publish(name, pieces)
        except Exception as e:
            with self._lock:
                began = self._away.setdefault(name, time.monotonic())
                if not isinstance(e, TransientError) or time.monotonic() > began + PATIENCE_SECS:
                    self._trouble[name] = e
            return False
        with self._lock:
            self._published.add(name)
            self._away.pop(name, None)
        return True

    @contextmanager
    def alone(self, writer: str) -> Iterator[bool]:
        """Whether nobody else publishes for a writer now: messages come in several threads, and two at one commit hinder each other."""
        with self._lock:
            free = writer not in self._busy
            self._busy.add(writer)
        try:
            yield free
        finally:
            if free:
                with self._lock:
                    self._busy.discard(writer)

    def forget(self, name: str) -> None:
        with self._lock:
            self._seen.pop(name, None)
            self._published.discard(name)


PROGRESS = _Progress()


class _PublishFn(beam.DoFn):
    """Publishes a commit with the second message that a bundle with its name is durable; emits the rows that have become visible."""

    WAITING = BagStateSpec("waiting", RowBatchCoder())

    def __init__(self, step: str, sink: TwoPhase, counts: str = ROWS_PUBLISHED):
        self.step = step
        self.sink = sink
        self.counts = counts

    def process(self, keyed, waiting=beam.DoFn.StateParam(WAITING), finalizer=beam.DoFn.BundleFinalizerParam):
        shard, report = keyed
        if report.schema.names[0] != "poke":
            waiting.add(report)
        reports = {_name_of(batch): batch for batch in waiting.read()}
        published = [name for name in reports if PROGRESS.is_published(name)]
        left = {name: batch for name, batch in reports.items() if name not in published}
        if published:
            waiting.clear()
            for batch in left.values():
                waiting.add(batch)
            count(self.step, COMMITS_PUBLISHED, len(published))
            for name in published:
                PROGRESS.forget(name)
                rows = sum(reports[name].column("rows").to_pylist())
                count(self.step, self.counts, rows)
                yield rows
        gauge(self.step, f"{COMMITS_WAITING}{shard}", len(left))
        seen = PROGRESS.of(left)
        due = {name: pieces_of(left[name]) for name in takewhile(seen.get, sorted(left))}  # in order: of a key the later row must win
        finalizer.register(lambda: _finalize(self.sink, seen, due))  # always: Prism tells every bundle, and stumbles where nobody listens


def _finalize(sink: TwoPhase, seen: dict[str, int], due: dict[str, list[Staged]]) -> None:
    with PROGRESS.alone(f"{sink.location()} {writer_of(next(iter(due)))}" if due else "") as alone:
        for name, pieces in due.items() if alone else ():
            if not PROGRESS.is_published(name) and not PROGRESS.publish(sink, name, pieces):
                break
    PROGRESS.saw(seen)
