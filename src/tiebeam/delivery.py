"""Delivery: nothing lost, nothing doubled, and nothing visible before the whole run is known to be good.

Sinks stage while the pipeline runs. At the end the dead letters are published first, then the share of rejected rows
is judged, then every sink publishes. A run that dies on the way has changed nothing that readers see; publishing is
idempotent under the run's name, so the runner may repeat it, and a later run of the same name finds its work done.

    with beam.Pipeline() as p, Delivery(p, dead_letters="rejected/", run_id="2026-11-24"):
        p | ReadFromJsonl("in/*.jsonl") | WriteToParquet("out/")

Without a `Delivery` a sink is a delivery of its own: it keeps the dead letters of the steps above it beside its output.
"""

from __future__ import annotations

import json
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam import pvalue
from apache_beam.metrics import Metrics
from apache_beam.transforms import window
from apache_beam.utils.windowed_value import WindowedValue

from tiebeam import __version__, dead_letters, files, registry
from tiebeam.commits import Commit
from tiebeam.errors import ConfigError, Problem, TooManyRejectedError
from tiebeam.rows import ROW_POSITION, RowBatch, with_column
from tiebeam.staging import Staged, TwoPhase, Writer
from tiebeam.steps import NAMESPACE, ROWS_OUT, BatchFn, apply_batches, count

ALREADY_PUBLISHED = "already_published"
CURSOR = "@"
"""In the name of a run: where its cursor ended follows. Such a run is published even when no row came through."""
JOBS, PARKED = "_jobs", "parked"

_open: weakref.WeakKeyDictionary[beam.Pipeline, Delivery] = weakref.WeakKeyDictionary()


class Delivery:
    """Publishes everything a pipeline writes together, at its end, and keeps its dead letters.

    `dead_letters` is a folder, `bigquery:TABLE` or any sink, by default a folder beside the first sink's output.
    A run whose share of rejected rows is above `max_rejected_ratio` publishes its dead letters and nothing else, and
    fails with TooManyRejectedError. `prior_attempts` gives, by row position, how often a row was refused before (a
    replay knows); a row refused more than `max_attempts` times is parked, in a folder within the store.
    """

    def __init__(
        self,
        pipeline: beam.Pipeline,
        dead_letters: str | TwoPhase | None = None,
        *,
        run_id: str | None = None,
        max_rejected_ratio: float = 1.0,
        max_attempts: int = 3,
        name: str = "",
        prior_attempts: dict[str, int] | None = None,
    ):
        self.pipeline = pipeline
        self._store = dead_letters
        self.named = dead_letters if isinstance(dead_letters, str) else None
        self.run_id = run_id or uuid.uuid4().hex
        self.max_rejected_ratio, self.max_attempts = max_rejected_ratio, max_attempts
        self.stamp = _StampFn("Keep dead letters", name, self.run_id, prior_attempts or {})
        self.sinks: dict[str, tuple[str, TwoPhase, beam.PCollection]] = {}
        self.read: list[beam.PCollection] = []

    @property
    def store(self) -> TwoPhase:
        """The sink of the dead letters."""
        if self._store is None:
            if not self.sinks:
                raise ConfigError(Problem("a pipeline without a sink needs a place for dead letters", "dead_letters", "name a folder"))
            self._store = beside(next(iter(self.sinks)))
        if isinstance(self._store, str):
            self._store = keep_at(self._store)
        return self._store

    def store_location(self) -> str:
        return self.store.location()

    def keep_job(self, job: dict[str, Any]) -> None:
        """Keeps with the store what a replay needs to build the same job again."""
        if hasattr(self.store, "letter_table"):
            self.store.letter_table().keep_note(self.run_id, json.dumps(job))
        else:
            files.write(files.join(self.store_location(), JOBS, f"{self.run_id}.json"), json.dumps(job, indent=2).encode())

    def discard(self) -> None:
        """Removes what this run staged, after it failed."""
        for sink in [self.store, *(sink for _, sink, _ in self.sinks.values())]:
            sink.discard(self.run_id)

    def __enter__(self) -> Delivery:
        if self.pipeline in _open:
            raise ConfigError(Problem("this pipeline is inside a Delivery already", "Delivery", "write every sink inside the first one"))
        _open[self.pipeline] = self
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        del _open[self.pipeline]
        if kind is None:
            if self.store_location() in self.sinks:
                what = f"rows and dead letters both go to {self.store_location()}"
                raise ConfigError(Problem(what, "dead_letters", "name another place"))
            rejected = dead_letters.claim(self.pipeline)
            staged = {f"staged by {label}": pieces for label, _, pieces in self.sinks.values()}
            inputs = {**staged, **{f"rejected {i}": letters for i, letters in enumerate(rejected)}}
            if inputs:
                inputs | "Deliver" >> _Deliver(self, rejected)


class _Deliver(beam.PTransform):
    """Keeps the dead letters, judges the run, and has every sink publish."""

    def __init__(self, delivery: Delivery, rejected: list[beam.PCollection]):
        super().__init__()
        self.delivery = delivery
        self.rejected = rejected

    def expand(self, inputs: dict[str, beam.PCollection]) -> beam.PCollection:
        gate = _keep(self.delivery, self.rejected)
        for label, sink, staged in self.delivery.sinks.values():
            if staged.is_bounded:
                _publish(self.delivery.pipeline, f"Publish {label}", sink, self.delivery.run_id, staged, gate=pvalue.AsIter(gate))
        return gate


def keep_at(path: str) -> TwoPhase:
    """The sink that dead letters go to when only a place was given: a folder, or `bigquery:TABLE`."""
    name, colon, table = path.partition(":")
    if not colon or name not in registry.modules("connectors"):
        return registry.connector("sink", "jsonl")(path=path, mode="append")
    sink = registry.connector("sink", name)
    if not hasattr(sink, "letter_table"):
        raise ConfigError(Problem(f"{name} keeps no dead letters", "dead_letters", "name a folder, or bigquery:TABLE"))
    return sink(table=table)


def parked_beside(place: str) -> str:
    """Where letters of a store are parked: within a folder, or in a table beside."""
    return f"{place}_{PARKED}" if place.partition(":")[0] in registry.modules("connectors") else files.join(place, PARKED)


def beside(location: str) -> str:
    """The default place of dead letters: beside the output, with `.rejected` behind its name."""
    return location.partition("#")[0].rstrip("/") + ".rejected"


def note_source(pipeline: beam.Pipeline, label: str, read: Callable[[], beam.PCollection]) -> beam.PCollection:
    """Builds a source, and remembers what it delivers and what it rejects as the rows read."""
    delivery = _open.get(pipeline)
    before = dead_letters.unclaimed(pipeline)
    rows = read()
    if delivery is not None:
        rejected = [r for r in dead_letters.unclaimed(pipeline) if r not in before]
        delivery.read += [rows, *rejected]
    return rows


def deliver(sink: TwoPhase, rows: beam.PCollection) -> beam.PCollection:
    """Stages rows, and has them published: by the open `Delivery` of the pipeline, or else by themselves."""
    delivery = _open.get(rows.pipeline)
    label = rows.pipeline.transforms_stack[-1].full_label.replace("/", " ")  # a sink's own label is unique in its composite only
    if not rows.is_bounded:
        return _deliver_on(sink, rows, label, delivery)
    if delivery is None:
        delivery = Delivery(rows.pipeline, beside(sink.location()))
        staged = _stage(sink, rows, label, delivery.run_id)
        gate = _keep(delivery, dead_letters.claim(rows.pipeline, upstream_of=staged), f"dead letters of {label}")
        _publish(rows.pipeline, f"Publish {label}", sink, delivery.run_id, staged, gate=pvalue.AsIter(gate))
        return staged
    if sink.location() in delivery.sinks:
        raise ConfigError(Problem(f"two sinks write to {sink.location()}", label, "flatten their rows into one sink"))
    staged = _stage(sink, rows, label, delivery.run_id)
    delivery.sinks[sink.location()] = (label, sink, staged)
    return staged


def _deliver_on(sink: TwoPhase, rows: beam.PCollection, label: str, delivery: Delivery | None) -> beam.PCollection:
    """Has rows of an input without end published as they come, and so their dead letters."""
    owner = delivery or Delivery(rows.pipeline, beside(sink.location()))
    staged = rows | "Commit" >> Commit(sink, label, owner.run_id)
    if delivery is None:
        _keep(owner, dead_letters.claim(rows.pipeline, upstream_of=staged), f"dead letters of {label}")
    else:
        delivery.sinks[sink.location()] = (label, sink, staged)
    return staged


def _stage(sink: TwoPhase, rows: beam.PCollection, label: str, run_id: str) -> beam.PCollection:
    everything = rows | "Whole run" >> beam.WindowInto(window.GlobalWindows())
    return apply_batches(everything, "Stage", _StageFn(label, sink, run_id))


def _keep(delivery: Delivery, rejected: list[beam.PCollection], label: str = "dead letters") -> beam.PCollection:
    """Writes dead letters to the store and returns the gate: a PCollection that has an element once all may publish."""
    p = delivery.pipeline
    whole = [r | f"Whole run of {label} {i}" >> beam.WindowInto(window.GlobalWindows()) for i, r in enumerate(rejected)]
    letters = whole | f"All {label}" >> beam.Flatten(pipeline=p)
    letters.element_type = RowBatch
    stamped = letters | f"Keep {label}" >> beam.ParDo(delivery.stamp).with_output_types(RowBatch)
    if not letters.is_bounded:
        if delivery.max_rejected_ratio < 1:
            fix = "leave it out; watch rows_rejected instead"
            raise ConfigError(Problem("an input that never ends has no share of rejected rows", "max_rejected_ratio", fix))
        delivery.store.commit_secs = min([delivery.store.commit_secs, *(sink.commit_secs for _, sink, _ in delivery.sinks.values())])
        return stamped | f"Commit {label}" >> Commit(delivery.store, f"Store {label}", delivery.run_id, final=True)
    kept = _store(p, label, delivery.store, delivery.run_id, stamped | f"Live {label}" >> _Attempts(most=delivery.max_attempts))
    if delivery.stamp.prior_attempts:
        parked = keep_at(parked_beside(delivery.named or delivery.store_location()))
        beyond = stamped | f"Parked {label}" >> _Attempts(least=delivery.max_attempts + 1)
        kept = (kept, _store(p, f"parked {label}", parked, delivery.run_id, beyond)) | f"Kept {label}" >> beam.Flatten()
    if delivery.max_rejected_ratio >= 1:
        return kept
    if not delivery.read:
        fix = "read with a tiebeam source inside the Delivery"
        raise ConfigError(Problem("no source says how many rows were read, so no share can be judged", "max_rejected_ratio", fix))
    read = delivery.read | "Rows read" >> beam.Flatten(pipeline=p) | "Count rows read" >> _CountRows()
    refused = letters | "Count rows rejected" >> _CountRows()
    judge = beam.Map(_judge, pvalue.AsSingleton(refused), pvalue.AsSingleton(read), delivery.max_rejected_ratio)
    return kept | "Judge the share rejected" >> judge.with_output_types(int)


def _store(p: beam.Pipeline, label: str, store: TwoPhase, run_id: str, letters: beam.PCollection) -> beam.PCollection:
    """Publishes letters under the run's name and their own digest: an attempt with other letters is a publication of its own."""
    digests = letters | f"Digest {label}" >> beam.Map(dead_letters.digest).with_output_types(int)
    name = digests | f"Name {label}" >> beam.CombineGlobally(dead_letters.NameFn(run_id)).with_output_types(str)
    stage = beam.ParDo(_StageFn(f"Stage {label}", store, run_id), pvalue.AsSingleton(name)).with_output_types(RowBatch)
    staged = dead_letters.route_nowhere(letters | f"Stage {label}" >> stage.with_outputs(dead_letters.REJECTED, main="rows"))
    return _publish(p, f"Publish {label}", store, run_id, staged, name=pvalue.AsSingleton(name))


class _Attempts(beam.PTransform):
    """Keeps the dead letters tried at least and at most so often."""

    def __init__(self, least: int = 0, most: int = 2**31 - 1):
        super().__init__()
        self.least, self.most = least, most

    def expand(self, letters: beam.PCollection) -> beam.PCollection:
        def within(batch, least=self.least, most=self.most):
            attempt = batch.column("attempt")
            kept = batch.filter(pc.and_(pc.greater_equal(attempt, least), pc.less_equal(attempt, most)))
            return [kept] if kept.num_rows else []

        return letters | beam.FlatMap(within).with_output_types(RowBatch)


def _judge(kept: int, refused: int, read: int, allowed: float) -> int:
    if read and refused / read > allowed:
        raise TooManyRejectedError(
            f"TooManyRejectedError: {refused:,} of {read:,} rows read were rejected, a share of {refused / read:.4f}; "
            f"max_rejected_ratio is {allowed:g}. Nothing was published but the dead letters."
        )
    return kept


@beam.typehints.with_input_types(RowBatch)
class _CountRows(beam.PTransform):
    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        sizes = batches | beam.Map(lambda batch: batch.num_rows).with_output_types(int)
        return sizes | beam.WindowInto(window.GlobalWindows()) | beam.CombineGlobally(sum)


class _StageFn(BatchFn):
    """Hands the rows of a bundle to one writer, and emits what it staged when the bundle ends."""

    def __init__(self, step: str, sink: TwoPhase, run_id: str):
        super().__init__(step)
        self.sink = sink
        self.run_id = run_id
        self._writer: Writer | None = None

    def start_bundle(self) -> None:
        self.teardown()  # what a failed bundle left open must not become part of this one

    def apply(self, batch: RowBatch, name: str | None = None) -> Iterable[dead_letters.Letters]:
        if self._writer is None:
            self._writer = self.sink.writer(name or self.run_id)
        try:
            yield from self._writer.write(batch) or ()
        except BaseException:
            self.teardown()
            raise

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._writer is None:
            return
        try:
            staged = self._writer.close()
        except BaseException:
            self.teardown()
            raise
        self._writer = None
        count(self.step, ROWS_OUT, sum(s.rows for s in staged))
        if staged:
            whole = window.GlobalWindow()
            yield WindowedValue(Staged.pack(staged), whole.max_timestamp(), (whole,))

    def teardown(self) -> None:
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


def _publish(p: beam.Pipeline, label: str, sink: TwoPhase, run_id: str, staged: beam.PCollection, **sides: Any) -> beam.PCollection:
    begin = p | f"{label}: begin" >> beam.Create([0])
    return begin | label >> beam.ParDo(_PublishFn(sink, run_id), pvalue.AsIter(staged), **sides).with_output_types(int)


class _PublishFn(beam.DoFn):
    """Publishes the whole run once everything it waits for is there; emits the number of rows."""

    def __init__(self, sink: TwoPhase, run_id: str):
        self.sink = sink
        self.run_id = run_id

    def process(self, _, staged, gate=(), name=None):
        list(gate)
        pieces = Staged.unpack(staged)
        noted = self.sink.mode == "replace" or (name is None and CURSOR in self.run_id)
        if (pieces or noted) and not self.sink.publish(name or self.run_id, pieces):
            Metrics.counter(NAMESPACE, ALREADY_PUBLISHED).inc()
        yield sum(s.rows for s in pieces)


class _StampFn(BatchFn):
    """Fills in what only the pipeline knows: its name and version, the run, and how often each row was tried."""

    def __init__(self, step: str, name: str, run_id: str, prior_attempts: dict[str, int]):
        super().__init__(step)
        self.name = name
        self.run_id = run_id
        self.prior_attempts = prior_attempts

    def apply(self, batch: RowBatch) -> Iterable[RowBatch]:
        n = batch.num_rows
        prior = [self.prior_attempts.get(position, 0) for position in batch.column(ROW_POSITION).to_pylist()]
        batch = with_column(batch, "attempt", pa.array([p + 1 for p in prior], pa.int32()))
        for column, value in (("pipeline", self.name), ("pipeline_version", __version__), ("run_id", self.run_id)):
            batch = with_column(batch, column, pa.array([value] * n, pa.string()))
        yield batch
